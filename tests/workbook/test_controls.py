"""Controls that no config describes: nothing but what they are about differs from a run of the config."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from fedreft_lib import assemble
from fedreft_lib.errors import DataError
from fedreft_lib.federation.local_clients import start
from fedreft_lib.methods import uncertainty
from fedreft_lib.workbook import arms, controls, statistics
from tests.helpers.federations import finish, same, small

FLIPPED = {"setup": "iid", "hostile": 1, "attack": "label_flip", "train_size": 40, "tasks": ("arc_easy", "piqa")}


def uids(federation):
    return [[item.uid for item in client.train] for client in federation.questions]


@pytest.mark.parametrize("threads", [1, 3])
def test_on_a_configs_own_federation_it_is_the_configs_run(threads):
    config, before = small(method="flood"), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        same(controls.run_on(assemble(config), config), finish(config))
    finally:
        torch.set_num_threads(before)


def test_each_arm_and_seed_is_a_run_in_memory():
    both = controls.run_arms(small(), {"FedAvg": {"method": "fedavg"}}, [0, 1])
    for seed, done in enumerate(both["FedAvg"]):
        assert done.config == small(method="fedavg", seed=seed) and done.folder is None


def test_a_methods_own_adapter_can_be_trained_in_one_place():
    config = small(method="centralised", intervention="direft")
    same(controls.run_on(assemble(config.but(method="fedavg")), config), finish(config))
    done = controls.run_on(assemble(config.but(method="alore", intervention="loreft")), config)
    assert {"S", "P", "Q"} <= set(done.spec.names) and len(done.states) == 1 and len(done.accuracy()) == 4


def test_items_are_dealt_anew_with_their_labels_and_all_else_stays():
    config = small(method="fedavg", setup="iid")
    federation = assemble(config)
    hands = [[0], [9, 8], [16, 17, 18, 31], list(range(24, 31))]
    other = controls.redealt(federation, hands)
    items = [item for client in federation.questions for item in client.train]
    assert [list(client.train) for client in other.questions] == [[items[i] for i in hand] for hand in hands]
    for before, after, hand in zip(federation.clients, other.clients, hands, strict=True):
        assert len(after.train) == len(hand) and after.test == before.test and after.held_out == before.held_out
    encoded = [sequence for client in federation.clients for sequence in client.train.sequences]
    assert [s for client in other.clients for s in client.train.sequences] == [
        encoded[i] for hand in hands for i in hand
    ]
    weights = controls.run_on(other, config).mixing_matrices[-1][0].tolist()
    assert weights == pytest.approx([1 / 14, 2 / 14, 4 / 14, 7 / 14])
    assert controls.run_on(other, config, controls.Equal).mixing_matrices[-1][0].tolist() == [0.25] * 4
    with pytest.raises(DataError, match="again in"):
        controls.redealt(federation, [[0], [0], [1], [2]])


@pytest.mark.parametrize("own_texts", [False, True])
def test_a_fifth_of_each_clients_items_and_all_of_the_lasts_are_the_lasts_with_wrong_answers(own_texts):
    config = small(**FLIPPED)
    federation = assemble(config)
    right = {item.uid: item for client in assemble(config.but(hostile=0)).questions for item in client.train}
    other = controls.planted(federation, 10, "piqa", own_texts=own_texts)
    of_last = set(uids(federation)[-1])
    for client in other.questions[:-1]:
        assert [item.uid in of_last for item in client.train] == [False] * 8 + [True] * 2
        assert [item.task for item in client.train[:8]] == ["arc_easy"] * 8
    strange = [item for client in other.questions[:-1] for item in client.train[8:]] + list(other.questions[-1].train)
    assert len(strange) == 16 and {item.task for item in strange} == {"arc_easy" if own_texts else "piqa"}
    assert all(item.gold != right[item.uid].gold for item in strange)
    with pytest.raises(DataError, match="too few items of piqa"):
        controls.planted(federation, 20, "piqa")


def test_exchanged_reports_are_the_same_numbers_at_other_clients():
    config = small(method="flood", setup="iid", rounds=1, lr=0.05)
    honest, other = finish(config), controls.run_on(assemble(config), config, controls.Exchanged)
    told, exchanged = (
        sorted(done.spec.columns(["told.confidence"], done.states).flatten().tolist()) for done in (honest, other)
    )
    assert len(set(told)) == 4 and told == exchanged
    weights, permuted = (done.mixing_matrices[0, 0].tolist() for done in (honest, other))
    assert sorted(weights) == pytest.approx(sorted(permuted)) and weights != permuted


def test_shuffled_weights_are_at_other_items_and_where_all_are_equal_nothing_differs():
    config = small(method="flood", setup="iid", train_size=20, flood_boost=0.0)
    same(controls.run_on(assemble(config), config, controls.ShuffledItems), finish(config))
    config = config.but(flood_boost=3.0)
    other = controls.run_on(assemble(config), config, controls.ShuffledItems)
    assert not torch.equal(other.states, finish(config).states)


def test_a_score_is_beside_chance_and_each_arm_beside_its_own_control():
    config = small(**FLIPPED, method="flood", rounds=1)
    federation = controls.planted(assemble(config), 10, "piqa")
    done = controls.run_on(federation, config)
    table = controls.spotted(federation, done, [0, 2], "foreign").set_index(["method", "client"])["value"]
    state = federation.model.spec.named(start(federation, config)[2])
    o = uncertainty.scores(federation.model, config, state, federation.clients[2].train, "entropy")
    assert table["foreign, before training", "client3"] == 100 * roc_auc_score([False] * 8 + [True] * 2, o)
    assert len(table) == 4

    runs = controls.run_arms(
        small(), {"a": {"method": "local"}, "b": {"method": "fedavg"}, "c": {"lr": 0.1}}, [0, 1, 2]
    )
    pairs = controls.against_controls("title", runs, {"a": "b", "c": "a"}, [1])
    by = {name: arms.scores({name: runs[name]}, [1])["value"] for name in runs}
    assert pairs.loc["title", "b", "a"]["difference"] == pytest.approx(np.mean(by["a"] - by["b"]))
    assert pairs.loc["title", "a", "c"]["difference"] == pytest.approx(np.mean(by["c"] - by["a"]))
    assert set(pairs["family"]) == {2} and len(statistics.sentences(pairs)) == 2
