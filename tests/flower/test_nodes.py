"""Nodes that come, go, come back under another number, say nonsense, or pretend."""

import pytest
import torch

pytest.importorskip("flwr", reason="the flower extra is not installed")

from fedreft_lib.errors import DamageWarning, FedReFTError
from fedreft_lib.flower import records
from fedreft_lib.flower.client_files import NodeFiles
from fedreft_lib.flower.relay import app_of, in_this_process
from fedreft_lib.flower.server_app import serve
from tests.flower.grid import DirectGrid
from tests.flower.test_rounds import alone
from tests.helpers.federations import small


@pytest.fixture
def grid(tmp_path):
    return DirectGrid(app_of(in_this_process(tmp_path / "nodes")), 4)


def absent(done):
    rows = done.history[done.history["metric"].isin(("present", "answered")) & (done.history["value"] == 0)]
    return [(row.round, row.client[:7], row.metric, row.note) for row in rows.itertuples()]


def said(content, **changes):
    return records.packed({**records.values(content), **changes}, records.tensors(content))


NONSENSE = {
    "no numbers": {"examples": "many"},
    "a list for a loss": {"loss": [1]},
    "nothing": None,
}


@pytest.mark.parametrize("changes", NONSENSE.values(), ids=NONSENSE)
def test_a_node_that_answers_nonsense_is_as_one_that_drops_out(grid, changes):
    def spoils(kind, k, content):
        if kind != "train.learn" or k != 3:
            return content
        return type(content)() if changes is None else said(content, **changes)

    grid.spoils = spoils
    config = small(rounds=1)
    found = serve(grid, config, None, patience=60.0)
    ((_, client, metric, note),) = absent(found)
    assert (client, metric) == ("client4", "present") and "its reply cannot be read" in note
    assert torch.equal(found.states, alone(config.but(drops=[[4, 1]])).states)


@pytest.mark.parametrize("rows", [[{"client": "client1"}], "none", [{"split": "test", "value": "good"}]], ids=str)
def test_scores_that_cannot_be_read_are_left_out_with_a_warning(grid, rows):
    grid.spoils = lambda kind, k, content: said(content, rows=rows) if kind == "evaluate.scores" and k == 2 else content
    config = small(rounds=1)
    with pytest.warns(UserWarning, match="there are no scores of client3-siqa after round"):
        found = serve(grid, config, None, patience=60.0)
    assert torch.equal(found.states, alone(config).states)
    scored = found.history[found.history["metric"] == "accuracy"]
    assert sorted(set(scored["client"])) == ["client1-arc_easy", "client2-piqa", "client4-boolq"]


@pytest.mark.parametrize("share", [float("nan"), -0.1, 1.5, "all"])
def test_a_share_that_nobody_can_take_in_is_not_believed(grid, share):
    grid.spoils = lambda kind, k, content: said(content, lam=share) if kind == "train.take_in" and k == 0 else content
    found = serve(grid, small(rounds=1), None, patience=60.0)
    ((_, client, metric, note),) = absent(found)
    assert (client, metric) == ("client1", "answered") and "keeps its state" in note
    assert bool(found.states.isfinite().all())


def test_a_node_that_is_away_is_not_waited_for_and_comes_back_under_another_number(grid):
    config = small(rounds=3, min_clients=2)
    gone = []

    def breaks(kind, k):
        trained = sum(kind == "train.learn" for kind, *_ in grid.sent)
        if kind == "train.take_in" and k == 2 and trained == 4:
            gone.append(grid.nodes.pop(102))  # after it has been answered in the first round
        if kind == "train.take_in" and trained == 7 and gone:
            grid.nodes[202] = gone.pop()
        return False

    grid.breaks = breaks
    found = serve(grid, config, None, patience=60.0)
    assert [(t, client, metric) for t, client, metric, _ in absent(found)] == [(2, "client3", "present")]
    assert absent(found)[0][3] == "it did not answer: its node is not there"
    trained = [(k, kind) for kind, k, *_ in grid.sent if kind == "train.learn"]
    assert trained.count((2, "train.learn")) == 2


def test_a_second_node_that_says_it_is_a_client_is_ignored(grid):
    grid.nodes[200] = 1
    config = small(rounds=1)
    with pytest.warns(UserWarning, match="another node says that it is client 2"):
        found = serve(grid, config, None, patience=60.0)
    assert torch.equal(found.states, alone(config).states)


def test_a_node_of_another_federation_is_not_taken(grid):
    grid.nodes[200] = 7
    with pytest.warns(UserWarning, match="client 8 of a federation of 4"):
        serve(grid, small(rounds=1), None, patience=60.0)


def test_a_damaged_state_on_a_nodes_disk_is_passed_over(tmp_path):
    files = NodeFiles(tmp_path / "client1")
    for t in (1, 2, 3):
        files.keep(t, torch.full((4,), float(t)))
    assert [float(row[0]) for row in files.rows(9)] == [3, 2]  # the last two
    (tmp_path / "client1" / "after_round_0003.safetensors").write_bytes(b"damaged")
    with pytest.warns(DamageWarning, match="an older state is looked for"):
        assert [float(row[0]) for row in files.rows(9)] == [2]
    files.keep(1, torch.zeros(4))  # the run went back
    assert [float(row[0]) for row in files.rows(9)] == [0]
    with pytest.raises(FedReFTError, match="cannot be read"):
        files.learned(refused=False)
