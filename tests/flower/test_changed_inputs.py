"""A host notices that its data or its backbone changed, and a run goes on with none that changed."""

from pathlib import Path

import pytest

from fedreft_lib import RunConfig
from fedreft_lib.errors import ElsewhereWarning, FedReFTError
from tests.helpers.changes import BACKBONE, CHANGES, config_of, fresh, what
from tests.helpers.federations import computes, same
from tests.helpers.pairs import few


def over_flower(config: RunConfig, home: Path, nodes: str, folder: Path | None, at_first_lesson=lambda: None):
    """A run over Flower's messages, and its grid; something happens before the first client is to learn."""
    pytest.importorskip("flwr", reason="the flower extra is not installed")
    from fedreft_lib.flower.relay import app_of, in_this_process
    from fedreft_lib.flower.server_app import serve
    from tests.flower.grid import DirectGrid

    grid, done = DirectGrid(app_of(in_this_process(home / nodes)), config.clients), []

    def breaks(kind: str, k: int) -> bool:
        if kind == "train.learn" and not done:
            done.append(at_first_lesson())
        return False

    grid.breaks = breaks
    return lambda: serve(grid, config, folder, patience=60.0), grid


@pytest.mark.parametrize("change", few(CHANGES, "gold", "reference", "weights"))
def test_a_host_does_not_train_on_what_changed_since_the_run_began(home, change):
    kind, make = CHANGES[change]
    config = config_of(home, kind)
    serves, grid = over_flower(config, home, "nodes", None, lambda: make(home))
    if change in BACKBONE:  # which all hosts here share
        with pytest.raises(FedReFTError, match="needs 2"):
            serves()
        changed = {0, 1, 2}
    else:
        with pytest.warns(UserWarning, match="there are no scores of client1-birds after round 1: .*data of client 1"):
            done = serves()
        changed = {0}
        (row,) = [row for row in done.history.to_dict("records") if row["metric"] == "present"]
        assert row["client"] == "client1-birds" and "the data of client 1 changed since the run began" in row["note"]
    learned = {k: reply for kind, k, _, reply in grid.sent if kind == "train.learn"}
    refused = {k for k, reply in learned.items() if reply.has_error()}
    assert refused == changed and len(learned) == 3
    assert all(f"the {what(change)} of client {k + 1} changed" in learned[k].error.reason for k in refused)


@pytest.mark.parametrize("change", few(CHANGES, "gold", "norm"))
def test_hosts_begin_a_run_on_new_data_or_another_backbone_anew(home, monkeypatch, change):
    kind, make = CHANGES[change]
    config = config_of(home, kind)
    serves, _ = over_flower(config, home, "nodes", home / "run")
    before = serves()
    computed = computes(monkeypatch)
    if change == "gold":
        same(over_flower(config, home, "nodes", home / "run")[0](), before)
        assert computed == []
    make(home)
    with pytest.warns(ElsewhereWarning, match=f"other {what(change)}.*: they are computed again"):
        again = over_flower(config, home, "nodes", home / "run")[0]()
    assert computed == [1]
    same(again, fresh(config, home / "fresh"))
    assert len(list((home / "nodes").glob("*/client1"))) == 2  # the old states are kept apart


def test_a_server_does_not_begin_with_a_host_that_has_another_backbone(home, monkeypatch):
    config = config_of(home, "questions")
    serves, grid = over_flower(config, home, "nodes", None)
    grid.spoils = lambda kind, k, content: _says(content, backbone="folder 0") if k == 1 else content
    with pytest.raises(
        FedReFTError, match=r"^client2-birds has another backbone .*folder 0.*give all of them the same"
    ):
        serves()
    assert {kind for kind, *_ in grid.sent} == {"query.hello"}


def _says(content, **changes):
    from fedreft_lib.flower import records

    values = records.values(content)
    return records.packed({**values, "has": {**values["has"], **changes}})
