"""A partition shares nothing, keeps its sizes, is a function of its arguments, and each setup is what its name says."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedreft_lib.data import Question, load_questions
from fedreft_lib.data.partition import SETUPS, ClientData, Pool, check_disjoint, drop_repeats, label_table, partition
from fedreft_lib.errors import ConfigError, DataError

TASKS = ("arc_easy", "piqa", "siqa")
POOLS = {
    task: Pool(
        tuple(load_questions(task, "train", source="synthetic"))[: 400 - 60 * i],
        tuple(load_questions(task, "test", source="synthetic")),
    )
    for i, task in enumerate(TASKS)
}
SIZES = {"train_size": 30, "held_out_size": 5, "test_size": 12}


def _tasks(questions):
    return Counter(question.task for question in questions)


@settings(max_examples=60, deadline=None)
@given(
    setup=st.sampled_from(SETUPS),
    clients=st.integers(3, 7),
    seed=st.integers(0, 2**63 - 1),
    train_size=st.integers(1, 40),
    held_out_size=st.integers(0, 8),
    test_size=st.integers(0, 40),
    alpha=st.sampled_from([0.01, 0.5, 100.0]),
)
def test_nothing_is_shared_and_sizes_are_kept(setup, clients, seed, train_size, held_out_size, test_size, alpha):
    arguments = {
        "seed": seed,
        "train_size": train_size,
        "held_out_size": held_out_size,
        "test_size": test_size,
        "alpha": alpha,
    }
    dealt = partition(POOLS, setup, clients, **arguments)
    assert len({client.name for client in dealt}) == len(dealt) == clients
    from_train = {question for pool in POOLS.values() for question in pool.train}
    everything = []
    for client in dealt:
        assert (len(client.train), len(client.held_out), len(client.test)) == (train_size, held_out_size, test_size)
        assert from_train.issuperset(client.train + client.held_out)
        assert from_train.isdisjoint(client.test)
        everything += client.train + client.held_out + client.test
        # held-out and test follow the client's own mix: each task within one question of its share
        for part in (client.held_out, client.test):
            for task, count in _tasks(client.train).items():
                assert abs(_tasks(part)[task] - len(part) * count / train_size) < 1
    assert len(everything) == len(set(everything)) == len({question.uid for question in everything})
    assert partition(POOLS, setup, clients, **arguments) == dealt


@pytest.mark.parametrize("clients", [3, 4, 7])
def test_distinct_gives_each_client_one_task_in_turn(clients):
    dealt = partition(POOLS, "distinct", clients, seed=0, **SIZES)
    for k, client in enumerate(dealt):
        assert set(_tasks(client.train + client.held_out + client.test)) == {TASKS[k % 3]}
        assert client.name == f"client{k + 1}-{TASKS[k % 3]}"


def test_iid_gives_each_client_the_shares_of_the_union():
    union = np.array([len(POOLS[task].train) for task in TASKS])
    for client in partition(POOLS, "iid", 5, seed=0, **SIZES):
        counts = np.array([_tasks(client.train)[task] for task in TASKS])
        assert np.all(np.abs(counts - 30 * union / union.sum()) < 1)


def test_mixed_follows_the_hypergeometric_law_of_the_shuffled_union():
    union = np.array([len(POOLS[task].train) for task in TASKS])
    counts = np.array(
        [
            [_tasks(client.train)[task] for task in TASKS]
            for seed in range(60)
            for client in partition(POOLS, "mixed", 4, seed=seed, train_size=30, held_out_size=0, test_size=0)
        ]
    )
    p, n = union / union.sum(), union.sum()
    variance = 30 * p * (1 - p) * (n - 30) / (n - 1)
    assert np.all(np.abs(counts.mean(0) - 30 * p) < 4 * np.sqrt(variance / len(counts)))
    assert np.all(np.abs(counts.var(0) / variance - 1) < 0.5)


@pytest.mark.parametrize("alpha, at_least, at_most", [(0.02, 0.9, 1.0), (1000.0, 0.3, 0.45)])
def test_dirichlet_is_uneven_for_small_alpha_and_even_for_large(alpha, at_least, at_most):
    dealt = [
        client
        for seed in range(10)
        for client in partition(
            POOLS, "dirichlet", 4, seed=seed, train_size=30, held_out_size=0, test_size=0, alpha=alpha
        )
    ]
    largest_share = np.mean([max(_tasks(client.train).values()) / 30 for client in dealt])
    assert at_least < largest_share < at_most


def test_another_seed_or_setup_draws_other_questions():
    first = {q.uid for q in partition(POOLS, "iid", 3, seed=0, **SIZES)[0].train}
    for setup, seed in (("iid", 1), ("mixed", 0)):
        assert first != {q.uid for q in partition(POOLS, setup, 3, seed=seed, **SIZES)[0].train}


@pytest.mark.parametrize("setup", SETUPS)
def test_a_change_of_held_out_size_leaves_training_and_test_sets_alone(setup):
    few, many = (partition(POOLS, setup, 4, seed=0, **(SIZES | {"held_out_size": size})) for size in (2, 9))
    assert [(c.train, c.test) for c in few] == [(c.train, c.test) for c in many]


def test_the_draw_is_the_same_on_every_machine_and_numpy():
    dealt = partition(POOLS, "dirichlet", 4, seed=7, **SIZES)
    # written down once with numpy 2.4; another numpy that draws otherwise would change every published run
    assert label_table(dealt).loc["train"].to_numpy().tolist() == [[15, 10, 5], [7, 10, 13], [10, 19, 1], [5, 15, 10]]
    assert [client.test[0].uid for client in dealt] == [
        "88241ea279594b0b",
        "44b713707aa5c7af",
        "0679e6528ad7b170",
        "8424a1553a67a0fa",
    ]


def test_repeats_go_from_the_training_set_first_and_are_counted():
    a, b, c, d = POOLS["piqa"].train[:4]
    again = replace(a, question=a.question.upper(), task="arc_easy")
    pools = {"piqa": Pool((a, b, b, c), (c, d, d)), "arc_easy": Pool((again,), ())}
    kept, dropped = drop_repeats(pools)
    assert kept == {"piqa": Pool((a, b), (c, d)), "arc_easy": Pool((), ())}
    assert dropped == {"piqa": {"train": 2, "test": 1}, "arc_easy": {"train": 1, "test": 0}}


def test_sharing_is_found_between_clients_and_within_one():
    a, b, c, d = POOLS["piqa"].train[:4]
    one = ClientData("one", (a,), (b,), (c,))
    check_disjoint([one, ClientData("two", (d,), (), ())])
    same = replace(c, gold=1 - c.gold)  # the gold label is no part of what a question is
    with pytest.raises(DataError, match=f"{c.uid} of piqa is in the test set of one and again in the train set of two"):
        check_disjoint([one, ClientData("two", (same,), (), ())])
    with pytest.raises(DataError, match="in the train set of one and again in the held_out set of one"):
        check_disjoint([ClientData("one", (a,), (a,), ())])


@pytest.mark.parametrize(
    "setup, sizes, said",
    [
        ("distinct", {"train_size": 279}, "3 clients need 284 training questions of siqa, but there are 280"),
        ("distinct", {"test_size": 401}, "3 clients need 401 test questions of arc_easy, but there are 400"),
        ("mixed", {"train_size": 400}, "3 clients need 1200 training questions of all tasks, but there are 1020"),
        ("iid", {"train_size": 338}, "training questions of arc_easy, but there are 400"),
        ("dirichlet", {"train_size": 390}, "3 clients need [0-9]+ training questions of [a-z_]+, but there are"),
    ],
)
def test_too_few_questions_are_refused_with_how_many_there_are(setup, sizes, said):
    with pytest.raises(DataError, match=said):
        partition(POOLS, setup, 3, seed=0, **(SIZES | sizes))


def test_setups_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="setup must be one of distinct, mixed, iid, dirichlet, got 'even'"):
        partition(POOLS, "even", 3, seed=0, **SIZES)
    with pytest.raises(ConfigError, match="3 tasks need 3 clients or more, got 2"):
        partition(POOLS, "distinct", 2, seed=0, **SIZES)


def test_the_label_table_counts_every_question_once():
    dealt = partition(POOLS, "mixed", 4, seed=0, **SIZES)
    table = label_table(dealt)
    assert list(table.columns) == sorted(TASKS)
    for split, size in (("train", 30), ("held_out", 5), ("test", 12)):
        assert list(table.loc[split].index) == [client.name for client in dealt]
        assert (table.loc[split].sum(axis=1) == size).all()
    assert table.loc[("train", "client2"), "siqa"] == sum(q.task == "siqa" for q in dealt[1].train)


def test_questions_of_one_pool_only_need_no_second_task():
    pools = {"piqa": POOLS["piqa"]}
    for setup in SETUPS:
        dealt = partition(pools, setup, 2, seed=0, **SIZES)
        assert all(isinstance(question, Question) for client in dealt for question in client.train)
