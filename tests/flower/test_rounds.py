"""A federation over Flower's messages is the one in one process: history, states and bytes, to the bit."""

import pytest
import torch

pytest.importorskip("flwr", reason="the flower extra is not installed")

from fedreft_lib import run
from fedreft_lib.errors import ConfigError, FedReFTError
from fedreft_lib.federation.assembly import assemble
from fedreft_lib.federation.client import sent_names
from fedreft_lib.flower import records
from fedreft_lib.flower.relay import app_of, in_this_process
from fedreft_lib.flower.server_app import serve
from tests.flower.grid import DirectGrid
from tests.helpers.federations import GLUE, ONCE, agreeing, same, small, together

SOME = [
    *({"mixing": 0.3, "aggregation": "mean"}, {"mixing": "scheduled"}, {"mixing": "adaptive"}),
    *(fields for fields in ONCE if fields["method"] != "centralised"),
]
# What the wire could change of a message: numbers that JSON has not, other types and shapes, keys, a sender's own.
HOSTILE = ["one_nan", "broadcastable_shape", "integer_dtype", "complex_dtype", "missing_key", "extra_key", "nan_count",
           "negative_count", "sign_flip", "collude", "label_flip"]  # fmt: skip
PART = [
    {"sampled": 3},
    {"drops": [[2, 1], [3, 2]]},
    {"late": [[1, 1], [4, 2]]},
    {"joins": [[2, 2]], "leaves": [[4, 1]]},
    {"method": "fedavg", "sampled": 2},
    {"method": "fedadam", "drops": [[1, 1]], "server_lr": 0.01},
]
MORE = [
    {"align": True},
    {"norm_clip": 1.0, "aggregation": "krum", "setup": "iid", "clients": 5},
    {"union_size": 6, "eval_every": 1, "item_scores": True},
    {"intervention": "direft", "dropout": 0.1},
    {"scoring": "generation", "prompt_format": "llm_adapters", "max_new_tokens": 3},
    {"method": "fedsb"},
    {"method": "fedhl", "ranks": [2, 1, 2, 1]},  # clients that begin differently, over interventions
    {"method": "fedppa", "client_layers": ["2-2", "2-3", "3-3", "2-3"], "rank": 4},
    {"method": "flame", "active": [4, 2, 1, 4]},
    {"method": "alore"},
    {**GLUE, "layers": "all", "head": "averaged", "item_scores": True},
    {**GLUE, "layers": "all", "head": "private", "mixing": "adaptive"},
    {**GLUE, "layers": "all", "head": "shared", "method": "fedavg"},
]


@pytest.fixture
def over(tmp_path):
    """run_over_flower(config, folder=None, before=...): a run, and the grid that it went over."""

    def run_over_flower(config, folder=None, before=lambda grid: None, seed=0, **how):
        grid = DirectGrid(app_of(in_this_process(tmp_path / "nodes")), config.clients, seed)
        before(grid)
        return serve(grid, config, folder, **{"patience": 60.0, **how}), grid

    return run_over_flower


def alone(config):
    assemble(config).memo.clear()
    return run(config, progress=False)


def equal(found, expected):
    """The same run; what a client keeps to itself apart, which the server does not see."""
    names = sent_names(assemble(expected.config).model.layout, expected.config)
    for one, other in zip(found.states, expected.states, strict=True):
        ours, theirs = found.spec.named(one), found.spec.named(other)
        assert all(torch.equal(ours[name], theirs[name]) for name in names)
    if set(names) == {name for name, _ in found.spec.shapes}:
        same(found, expected)
    else:
        same(type(found)(**{**vars_of(found), "clients": expected.clients}), expected)


def vars_of(done):
    names = ("config", "history", "clients", "spec", "round_mixing", "manifest", "folder", "memory", "items")
    return {name: getattr(done, name) for name in names}


@pytest.mark.parametrize("fields", SOME, ids=together)
def test_every_method_gives_what_it_gives_in_one_process(over, fields):
    config = small(**fields, rounds=2)
    if config.method in ("fedalt", "flora"):  # of which a cohort is not exact, see cohort.py; nodes train one by one
        config = config.but(engine="one_by_one")
    found, _ = over(config)
    equal(found, alone(config))


@pytest.mark.parametrize("fields", PART, ids=together)
def test_who_is_away_late_or_drops_out(over, fields):
    config = small(**fields)
    found, _ = over(config)
    equal(found, alone(config))


@pytest.mark.parametrize("fields", MORE, ids=together)
def test_other_settings(over, fields):
    config = small(**fields, rounds=2)
    found, _ = over(config)
    equal(found, alone(config))


@pytest.mark.parametrize("fields", [
    {"mixing": "adaptive", "union_size": 6}, {"method": "feddpa"}, {"setup": "distinct", "tasks": ("piqa", "siqa")},
    {"engine": "one_by_one", "schedule_over": "rounds"}, {"hostile": 1, "attack": "label_flip", "late": [[1, 1]]},
], ids=together)  # fmt: skip
def test_texts_that_a_model_labels_have_the_same_labels_on_every_node(over, decoder, fields):
    """Nodes train one by one; the passes of a run in one process may hold the rows of several clients."""
    config = agreeing(decoder, **fields)
    found, _ = over(config)
    expected = alone(config)
    assert found.manifest["data"] == expected.manifest["data"]
    if config.engine == "one_by_one":
        equal(found, expected)
        return
    assert found.accuracy().tolist() == expected.accuracy().tolist()
    names = sent_names(assemble(config).model.layout, config)
    for one, other in zip(found.states, expected.states, strict=True):
        ours, theirs = found.spec.named(one), found.spec.named(other)
        for name in names:
            assert float((ours[name] - theirs[name]).norm()) < 1e-4 * float(theirs[name].norm()), name


@pytest.mark.parametrize("attack", HOSTILE)
def test_a_hostile_node_is_refused_or_borne_as_in_one_process(over, attack):
    config = small(setup="iid", clients=5, hostile=1, attack=attack, rounds=1)
    found, _ = over(config)
    equal(found, alone(config))


def test_the_order_of_arrival_does_not_matter(over):
    config = small(rounds=2)
    found, grid = over(config, seed=1)
    equal(found, alone(config))
    assert [k for kind, k, *_ in grid.sent if kind == "train.learn"] != [0, 1, 2, 3] * 2


def test_what_goes_over_the_wire_is_what_is_sent_and_as_much_as_the_history_says(over):
    config = small(rounds=2, sharing="Wb")
    found, grid = over(config)
    names = set(sent_names(assemble(config).model.layout, config))
    up = [records.tensors(reply.content) for kind, _, _, reply in grid.sent if kind == "train.learn"]
    down = [records.tensors(message.content) for kind, _, message, _ in grid.sent if kind == "train.take_in"]
    assert all(set(tensors) == names for tensors in up + down) and names == {"W", "b"}
    for tensors, column in ((up, "uplink_bytes"), (down, "downlink_bytes")):
        counted = sum(t.numel() * t.element_size() for each in tensors for t in each.values())
        assert counted == found.history[column].sum() > 0
    for kind, _, message, reply in grid.sent:
        if kind != "train.take_in":
            assert not message.content["arrays"]
        if kind != "train.learn":
            assert not reply.content["arrays"]
        for each in (message, reply):
            assert {array.stype for array in each.content["arrays"].values()} <= {"numpy.ndarray"}


def stops(kind, times):
    """Ends the server over so many messages of a kind."""
    seen = []

    def breaks(found, k):
        seen.append(found)
        if seen.count(kind) == times:
            raise KeyboardInterrupt
        return False

    return lambda grid: setattr(grid, "breaks", breaks)


def test_a_server_that_stopped_goes_on_from_its_checkpoint(over, tmp_path):
    config = small(rounds=4)
    with pytest.raises(KeyboardInterrupt):  # in the third round, when two clients have been answered, and two have not
        over(config, tmp_path / "run", stops("train.take_in", 10))
    found, grid = over(config, tmp_path / "run")
    assert sum(kind == "train.learn" for kind, *_ in grid.sent) == 2 * config.clients
    equal(found, alone(config))


def test_a_node_that_does_not_answer_is_as_one_that_dropped_out(over):
    config = small(rounds=2, min_clients=2)

    def breaks_once(grid):
        grid.breaks = lambda kind, k: kind == "train.learn" and k == 1 and len(grid.sent) < 14

    found, _ = over(config, before=breaks_once)
    expected = alone(config.but(drops=[[2, 1]]))
    assert torch.equal(found.states, expected.states)
    (row,) = [row for row in found.history.to_dict("records") if row["metric"] == "present"]
    assert (row["round"], row["value"]) == (1, 0.0) and "did not answer" in row["note"] and "broke" in row["note"]


def test_a_client_whose_answer_is_lost_keeps_the_state_that_the_server_holds_of_it(over):
    config = small(rounds=2)

    def loses_one(grid):
        grid.loses = lambda kind, k: kind == "train.take_in" and k == 2 and len(grid.sent) < 20

    found, grid = over(config, before=loses_one, patience=0.5)
    (row,) = [row for row in found.history.to_dict("records") if row["metric"] == "answered"]
    assert row["round"] == 1 and "keeps its state" in row["note"]
    errors = [reply.error.reason for *_, reply in grid.sent if reply.has_error()]
    assert not errors  # in the second round it found the older state, though it had taken in the answer


def test_a_node_that_lost_its_disk_is_told_apart(over, tmp_path):
    config = small(rounds=2)

    def loses_its_disk(grid):
        def breaks(kind, k):
            if kind == "train.learn" and k == 0:
                for path in tmp_path.glob("nodes/*/client1/after*"):
                    path.unlink()
            return False

        grid.breaks = breaks

    with pytest.warns(UserWarning, match="there are no scores of client1-arc_easy after round 2"):
        found, _ = over(config, before=loses_its_disk)
    (row,) = [row for row in found.history.to_dict("records") if row["metric"] == "present"]
    assert row["round"] == 2 and "has no state of before round 2 as the server holds it" in row["note"]


def test_what_only_one_process_can_do_is_refused_in_a_sentence(over):
    with pytest.raises(ConfigError, match="over Flower no data leaves its client"):
        over(small(method="centralised"))


def test_a_start_that_is_made_of_what_all_tell_survives_the_servers_end(over, tmp_path):
    config = small(method="fedsb", intervention="lora", rounds=2)
    with pytest.raises(KeyboardInterrupt):
        over(config, tmp_path / "run", stops("train.learn", 6))
    found, _ = over(config, tmp_path / "run")
    equal(found, alone(config))


def test_a_start_needs_everybody(over):
    def one_breaks(grid):
        grid.breaks = lambda kind, k: kind == "query.statistics" and k == 2

    with pytest.raises(FedReFTError, match="client3-siqa is needed for the start"):
        over(small(method="fedsb", intervention="lora"), before=one_breaks)


def test_clients_that_do_not_come_are_named(over):
    def one_is_missing(grid):
        del grid.nodes[101]

    with pytest.raises(FedReFTError, match=r"have not come: \[2\]"):
        over(small(), before=one_is_missing, patience=0.3)
