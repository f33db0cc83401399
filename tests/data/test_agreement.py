"""Agreement: rules whose labels agree as asked, whitened components, and an optimum that a simulation reaches."""

import json
from dataclasses import replace

import numpy as np
import pytest

from fedreft_lib.data import Question, agreement, render
from fedreft_lib.data.agreement import COMPONENTS, LONGEST, SHORTEST, TEST, TRAIN, Text
from fedreft_lib.data.commonsense import TASKS
from fedreft_lib.errors import ConfigError

SHARES = (0.5, 0.7, 1.0)
CLIENTS = (4, 11, 16)


def gaussian(n, seed=0):
    return np.random.default_rng(seed).standard_normal((n, COMPONENTS))


# ---- rules ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [*SHARES, 0.6, 0.95])
@pytest.mark.parametrize("clients", [1, 4, 11, 16, 40])
def test_two_rules_of_one_eleven_have_the_angle_at_which_labels_agree_as_asked(clients, share):
    w = agreement.rules(clients, share, seed=3)
    assert w.shape == (clients, COMPONENTS)
    squared = np.cos(np.pi * (1 - share))  # c^2, the cosine of any two: w_0 and the v_k are orthonormal
    for first in range(0, clients, 11):
        own = w[first : first + 11]
        n = len(own)
        np.testing.assert_allclose(own @ own.T, squared + (1 - squared) * np.eye(n), atol=1e-7)
    shared = [w[first : first + 11].mean(0) for first in range(0, clients, 11)]
    if clients == 40 and share == 0.7:  # what all elevens share is w_0 itself, so they agree on average
        cosines = (w @ w.T)[np.triu_indices(40, 1)]
        assert cosines.mean() == pytest.approx(squared, abs=0.02) and len(shared) == 4


def test_rules_depend_on_the_seed_and_their_number_alone():
    w = agreement.rules(4, 0.7, seed=0)
    assert np.array_equal(w, agreement.rules(4, 0.7, seed=0))
    assert np.abs(w - agreement.rules(4, 0.7, seed=1)).max() > 0.1
    np.testing.assert_array_equal(w, agreement.rules(30, 0.7, seed=0)[:4])  # more clients change no rule


# ---- labels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1000, 1001])
def test_half_of_all_texts_are_answered_yes_whatever_the_components(n):
    skewed = np.exp(gaussian(n))
    y = agreement.labels(skewed, agreement.rules(5, 0.7, seed=1))
    assert y.dtype == bool and y.sum(0).tolist() == [n // 2] * 5


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("clients", CLIENTS)
def test_clients_agree_on_the_share_that_was_asked_for(clients, share):
    found = []
    for seed in range(1 if clients <= 11 else 12):
        y = agreement.labels(gaussian(20_000, seed), agreement.rules(clients, share, seed))
        counted = [np.mean(y[:, i] == y[:, j]) for i in range(clients) for j in range(i)]
        assert agreement.share_agreed(y) == pytest.approx(np.mean(counted), abs=1e-12)
        first = [np.mean(y[:, i] == y[:, j]) for i in range(min(clients, 11)) for j in range(i)]
        assert np.abs(np.array(first) - share).max() < 0.02  # each pair, with a standard error of 0.0035
        found.append(np.mean(counted))
    assert np.mean(found) == pytest.approx(share, abs=0.004 if clients <= 11 else 0.01)


# ---- the optimum ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("clients", CLIENTS)
def test_the_optimum_is_what_the_mean_rule_reaches_and_no_other_rule_exceeds(clients, share):
    """For more than eleven clients the mean over draws of rules is not exact: their directions are not orthogonal."""
    found = []
    for seed in range(1 if clients <= 11 else 12):
        e, w = gaussian(40_000, seed), agreement.rules(clients, share, seed)
        y = agreement.labels(e, w)
        mean = (e @ w.mean(0) > 0)[:, None]  # the median of a Gaussian's scores
        found.append(100 * np.mean(mean == y))
        assert agreement.shared_accuracy(y, e, w) == pytest.approx(found[-1], abs=0.5)
    wanted = agreement.optimum(share, clients)
    assert np.mean(found) == pytest.approx(wanted, abs=0.4 if clients <= 11 else 1.0)
    others = w.mean(0) + np.random.default_rng(9).standard_normal((200, COMPONENTS)) * 0.3
    each = [100 * np.mean((e[:4000] @ other > 0)[:, None] == y[:4000]) for other in others]
    assert max(each) < found[-1] + 1.0


def test_the_optimum_at_its_ends():
    assert agreement.optimum(1.0, 7) == pytest.approx(100) and agreement.optimum(0.5, 2) == pytest.approx(75)
    assert agreement.optimum(0.5, 4) == pytest.approx(100 * 2 / 3)  # an angle of 60 degrees
    for share in np.linspace(0.5, 1, 101):
        assert agreement.optimum(float(share), 1) == pytest.approx(100, abs=1e-5)


# ---- components -----------------------------------------------------------------------------------------------------


def states(n=300, d=40, rank=None, seed=0):
    """Hidden states with directions of different variance, around a mean."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, rank or d)) * 0.9 ** np.arange(rank or d) @ rng.standard_normal((rank or d, d)) + 5


def test_components_are_those_of_an_eigendecomposition_of_the_covariance():
    hidden = states()
    e = agreement.components(hidden)
    centred = hidden - hidden.mean(0)
    variances, directions = np.linalg.eigh(np.cov(hidden.T, bias=True))
    for i in range(COMPONENTS):
        direction = directions[:, -1 - i]
        direction = direction * np.sign(direction[np.abs(direction).argmax()])  # its largest loading is positive
        np.testing.assert_allclose(e[:, i], centred @ direction / np.sqrt(variances[-1 - i]), atol=1e-8)
    np.testing.assert_allclose(np.cov(e.T, bias=True), np.eye(COMPONENTS), atol=1e-9)


def test_components_do_not_depend_on_the_order_the_place_or_the_size_of_the_states():
    hidden, order = states(), np.random.default_rng(1).permutation(300)
    e = agreement.components(hidden)
    np.testing.assert_allclose(agreement.components(hidden[order]), e[order], atol=1e-8)
    np.testing.assert_allclose(agreement.components(1e3 * hidden - 7), e, atol=1e-8)


@pytest.mark.parametrize("hidden", [states(n=12), states(d=11), states(rank=11), np.ones((50, 20))])
def test_texts_that_differ_in_too_few_directions_are_refused(hidden):
    with pytest.raises(ConfigError, match=f"differ in 12 directions of the hidden state, these {len(hidden)} differ"):
        agreement.components(hidden)


def test_twelve_directions_are_enough():
    for hidden in (states(n=13), states(d=12), states(rank=12)):
        assert agreement.components(hidden).shape == (len(hidden), COMPONENTS)


# ---- texts ----------------------------------------------------------------------------------------------------------


def test_a_text_is_answered_yes_where_its_label_is_yes_in_every_task():
    for task in TASKS:
        for label, words in ((False, (" no", "false")), (True, (" yes", "true"))):
            question = Text(task, "Is the sea _ than a lake?").labelled(label)
            assert question.choices[question.gold] == words[0].strip()
            example = render(question, "plain")
            assert example.options[example.gold] == words[0] and len(example.options) == 2, task
            if task == "boolq":
                assert render(question, "llm_adapters").label == words[1]
        text = Text(task, "Is the sea _ than a lake?")
        assert text.uid == text.labelled(True).uid == text.labelled(False).uid


def test_texts_are_the_first_of_their_length_and_a_split_has_no_text_twice(tmp_path):
    def row(i, text):
        return {"context": f"  Day {i}. ", "question": text, "choices": ["left", "right", "up"], "gold": i % 3}

    lengths = [*range(120), *range(20, 60)]
    rows = [row(i, "x" * n + "?") for i, n in enumerate(lengths)] + [row(3, "x" * 20 + "?")] * 2
    rows += [row(i, "the same length?") for i in range(200, 600)]
    for split in ("train", "test"):
        (tmp_path / f"mine_{split}.json").write_text(json.dumps(rows), encoding="utf-8")
    for split, most in (("train", TRAIN), ("test", TEST)):
        texts = agreement.load("mine", split, source="local", data_dir=tmp_path)
        every = [" ".join(f"Day {i}. {q['question']}".split()) for i, q in enumerate(rows[: len(lengths)])]
        every += [f"Day 3. {'x' * 20}?"] + [f"Day {i}. the same length?" for i in range(200, 600)]
        wanted = [text for text in dict.fromkeys(every) if SHORTEST <= len(text) <= LONGEST][:most]
        assert [text.question for text in texts] == wanted and len(texts) == most
        assert {text.task for text in texts} == {"mine"}
    assert agreement.load("mine", "dev", source="local", data_dir=tmp_path) == []


def test_files_with_free_answers_give_texts_too(tmp_path):
    rows = [{"prompt": f"Tell me of day {i}.", "response": "It rained."} for i in range(30)]
    (tmp_path / "diary_train.json").write_text(json.dumps(rows), encoding="utf-8")
    texts = agreement.load("diary", "train", source="local", data_dir=tmp_path)
    assert [text.question for text in texts] == [row["prompt"] for row in rows]


def test_synthetic_texts_are_as_many_as_there_are_of_a_real_task():
    for task in TASKS:
        for split, n in (("train", TRAIN), ("test", TEST)):
            texts = agreement.load(task, split, source="synthetic")
            assert len(texts) == n and all(isinstance(text.labelled(True), Question) for text in texts)
            assert replace(texts[0], task="other").uid == texts[0].uid  # repeats are found across tasks
