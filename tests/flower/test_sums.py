"""Mean-ABM by a server that is told sums: what it computes, what it sees, and what that is worth."""

import numpy as np
import pytest
import torch

pytest.importorskip("flwr", reason="the flower extra is not installed")

from flwr.app import Context, Message, RecordDict
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
from hypothesis import given
from hypothesis import strategies as st

from fedreft_lib import run
from fedreft_lib.errors import ConfigError, FedReFTError
from fedreft_lib.files import load_tensors
from fedreft_lib.flower import records
from fedreft_lib.flower.client_files import NodeFiles
from fedreft_lib.flower.levels import MODULUS, Levels
from fedreft_lib.flower.relay import app_of, in_this_process
from fedreft_lib.flower.secure_sums import check_sums, serve_sums
from tests.flower.grid import DirectGrid
from tests.helpers.federations import small

N = 4


@pytest.fixture
def grid(tmp_path):
    return DirectGrid(app_of(in_this_process(tmp_path / "nodes")), N)


def mean_abm(**changes):
    return small(**{"aggregation": "mean", "mixing": 0.5, "rounds": 1, **changes})


def served(grid, config, **how):
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    return serve_sums(grid, context, config, patience=60.0, **how)


def on_disk(tmp_path, k):
    """A client's folder."""
    (folder,) = (tmp_path / "nodes").glob(f"*/client{k + 1}")
    return folder


def learned(tmp_path, k):
    return load_tensors(on_disk(tmp_path, k) / "learned.safetensors")[0]["learned"]


def after(tmp_path):
    return torch.stack([next(NodeFiles(on_disk(tmp_path, k)).rows(99)) for k in range(N)])


def test_the_sum_is_that_of_the_rounded_updates_to_the_bit(grid, tmp_path):
    found = served(grid, mean_abm())
    levels = Levels.of(N)
    expected = sum(levels.rounded(learned(tmp_path, k)) for k in range(N))
    assert found.sums.dtype == torch.float64 and torch.equal(found.sums[0], expected)


@pytest.mark.parametrize("changes", ({}, {"mixing": "adaptive"}, {"sharing": "R"}, {"train_size": 5}), ids=str)
def test_clients_end_where_mean_abm_has_them_but_for_the_rounding(grid, tmp_path, changes):
    config = mean_abm(**changes)
    found = served(grid, config)
    plain = run(config, progress=False)
    levels = Levels.of(N)
    bound = N / (N - 1) * levels.step / 2  # of the mean of the others, and lam is 1 at most
    apart = (after(tmp_path) - plain.states).abs().max()
    assert apart <= bound + 4 * torch.finfo(torch.float32).eps  # of numbers about 1, and of retraction
    shares = [h[h["metric"] == "lam"]["value"].tolist() for h in (found.history, plain.history)]
    assert shares[0] == shares[1]


def test_over_rounds_it_stays_with_the_plain_run(grid, tmp_path):
    config = mean_abm(rounds=3)
    found = served(grid, config)
    plain = run(config, progress=False)
    moved = (plain.states - plain.states.mean(0)).abs().max()
    assert (after(tmp_path) - plain.states).abs().max() < 1e-3 * moved
    tests = [h[h["metric"] == "accuracy"] for h in (found.history, plain.history)]
    assert [*tests[0]["round"].unique()] == [0, 3]
    assert tests[0]["value"].tolist() == tests[1]["value"].tolist()


def test_no_update_reaches_the_server_but_behind_masks(grid, tmp_path):
    served(grid, mean_abm())
    updates = [Levels.of(N).rounded(learned(tmp_path, k)) for k in range(N)]
    masked = 0
    for kind, k, _, reply in grid.sent:
        arrays = [array for record in reply.content.array_records.values() for array in record.values()]
        assert not arrays, f"{kind} of client {k + 1} sends arrays in the clear"
        configs = reply.content.config_records.get("secaggplus_configs", {})
        for raw in configs.get("masked_params", []):
            numbers = np.frombuffer(raw, np.uint8)
            masked += 1
            for update in updates:
                level = torch.round((update + 8) / Levels.of(N).step).long().numpy()
                assert level[:4].tobytes() not in numbers.tobytes()
    assert masked >= N


def test_an_update_does_not_leave_without_masks(grid):
    content = RecordDict({"fitins.config": records.packed({})[records.VALUES]})
    for kind in ("train.default", "train.hidden"):
        grid.push_messages([message := Message(content, 100, kind)])
        (reply,) = grid.pull_messages([message.metadata.message_id])
        assert reply.has_error()


@pytest.mark.parametrize("kind", ("train.learn", "train"))
def test_who_does_not_answer_is_not_in_the_sum_and_keeps_its_state(grid, tmp_path, kind):
    def breaks(asked, k):  # of the protocol's messages the third brings the masked update
        count = sum((sent[0], sent[1]) == ("train", k) for sent in grid.sent)
        return k == 2 and asked == kind and (kind != "train" or count == 2)

    grid.breaks = breaks
    found = served(grid, mean_abm())
    expected = sum(Levels.of(N).rounded(learned(tmp_path, k)) for k in (0, 1, 3))
    assert torch.equal(found.sums[0], expected)
    (row,) = found.history[found.history["metric"] == "answered"].itertuples()
    assert (
        row.client == "client3-siqa" and not list(on_disk(tmp_path, 2).glob("after_round*"))
        if kind == "train"
        else True
    )


@pytest.mark.parametrize(("kind", "asked"), [("train", 4), ("train.learn", 2)])
def test_a_sum_of_two_is_not_made_and_the_run_ends_with_a_sentence(grid, tmp_path, kind, asked):
    grid.breaks = lambda each, k: each == kind and k > 1
    said = f"round 1: there is no sum out of {asked} clients, clients keep what they have"
    with pytest.raises(FedReFTError, match=said):
        served(grid, mean_abm())
    assert not list((tmp_path / "nodes").glob("*/*/after_round*"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"aggregation": "geometric_median"}, "only the mean of the others"),
        ({"method": "fedavg"}, "only the mean of the others"),
        ({"sampled": 2}, "nobody is drawn"),
        ({"hostile": 1}, "nobody is drawn"),
        ({"item_scores": True}, "leave item_scores out"),
        ({"clients": 2, "tasks": ("piqa",)}, "says everything of the other"),
    ],
    ids=str,
)
def test_what_takes_more_than_a_sum_is_refused(changes, said):
    with pytest.raises(ConfigError, match=said):
        check_sums(mean_abm(**changes))


@given(st.lists(st.floats(-8, 8), min_size=1, max_size=20), st.integers(2, 40))
def test_rounding_is_half_a_step_at_most_and_sums_come_back_from_means(numbers, n):
    levels = Levels.of(n)
    assert n * levels.count < MODULUS
    x = torch.tensor(numbers, dtype=torch.float64)
    rounded = levels.rounded(x)
    assert (rounded - x).abs().max() <= levels.step / 2
    assert torch.equal(levels.rounded(rounded), rounded)
    total = rounded * n  # exact: whole multiples of a power of two
    assert torch.equal(levels.of_mean(total / n, n), total)


@pytest.mark.parametrize("value", (8.001, -9.0, float("nan"), float("inf")))
def test_a_number_that_would_be_cut_is_refused(value):
    with pytest.raises(FedReFTError, match="beyond 8"):
        Levels.of(4).rounded(torch.tensor([0.0, value]))


def test_flowers_masks_are_worth_32_bits():
    """Where this fails, Flower has mended its masks: then sums.py, notebook 10 and README say too little of them."""
    seed = bytes(range(32))
    # Words that are exchanged leave what they fold to as it is.
    other = seed[4:8] + seed[:4] + seed[8:]
    masks = [pseudo_rand_gen(each, MODULUS, [(50,)])[0] for each in (seed, other)]
    assert seed != other and np.array_equal(*masks)
