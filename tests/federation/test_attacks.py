"""Twelve bad updates and four attacks: none poisons, none aborts, and what an attack sends is what it says."""

import itertools
import math

import pytest
import torch

from fedreft_lib import run
from fedreft_lib.core.aggregation import AGGREGATIONS
from fedreft_lib.errors import ConfigError
from fedreft_lib.federation.assembly import assemble
from fedreft_lib.federation.attacks import ATTACKS, BAD_UPDATES, sent_by
from fedreft_lib.federation.dealing import partition_of
from fedreft_lib.federation.local_clients import start
from fedreft_lib.federation.rounds import federated_round
from fedreft_lib.methods import METHODS
from tests.helpers.federations import LORA, small
from tests.helpers.pairs import few

BEFORE = {"R": torch.ones(2, 3), "b": torch.zeros(4)}
LEARNED = {"R": torch.ones(2, 3) + 0.3, "b": torch.full((4,), -0.4)}


def flat(state):
    return torch.cat([state[name].flatten() for name in BEFORE])


def five(**changes):
    """Five clients, so that with one set aside everybody has three others."""
    return small(setup="mixed", clients=5, hostile=1, rounds=1, retraction="raw", **changes)


def rounds_with_and_without(config):
    """X after a round with the hostile client, and after one in which it is away; and the report of the first."""
    federation = assemble(config)
    X = start(federation, config)
    attacked, report = federated_round(federation, config, X, 1)
    calm = config.but(hostile=0, drops=[[5, 1]])
    return attacked, federated_round(assemble(calm), calm, X, 1)[0], report


def test_there_are_twelve():
    assert len(BAD_UPDATES) == 12


SENDING = [name for name, method in METHODS.items() if method.aggregate and name != "fedreft"]


def each_twice(names):
    """Every bad update with every name; in the fast tests each name has two, and none of the updates is left out."""
    bad = [*BAD_UPDATES]
    fast = {(bad[(2 * i + j) % len(bad)], name) for i, name in enumerate(names) for j in (0, 1)}
    assert {each for each, _ in fast} == set(bad)
    return few(itertools.product(bad, names), *fast)


@pytest.mark.parametrize(("bad", "aggregation"), each_twice(AGGREGATIONS))
def test_no_bad_update_reaches_anybody_whatever_the_aggregation(bad, aggregation):
    attacked, calm, report = rounds_with_and_without(five(attack=bad, aggregation=aggregation))
    assert torch.equal(attacked[:4], calm[:4])  # to the bit as if it had not been there
    assert bool(attacked.isfinite().all())
    admitted = {row["client"][:7]: (row["value"], row["note"]) for row in report.rows if row["metric"] == "admitted"}
    value, reason = admitted.pop("client5")
    assert value == 0 and reason and "\n" not in reason
    assert set(admitted.values()) == {(1.0, "")}


@pytest.mark.parametrize(("bad", "method"), each_twice(SENDING))
def test_no_bad_update_reaches_anybody_whatever_the_method(bad, method):
    extra = LORA if method in ("fedit", "flora") else {}
    attacked, calm, _ = rounds_with_and_without(five(attack=bad, method=method, **extra))
    assert torch.equal(attacked[:4], calm[:4])


@pytest.mark.parametrize("bad", few(BAD_UPDATES, "one_nan", "extra_key", "huge_count"))
def test_a_run_goes_on_and_says_whom_it_set_aside(tmp_path, bad):
    done = run(five(attack=bad).but(rounds=2), tmp_path, progress=False)
    set_aside = [(each["round"], each["client"][:7]) for each in done.manifest["set_aside"]]
    assert set_aside == [(1, "client5"), (2, "client5")]
    assert all(each["reason"] for each in done.manifest["set_aside"])
    assert bool(done.states.isfinite().all())


# ---- attacks --------------------------------------------------------------------------------------------------------


def attacked(attack, client="client4-x", t=1, seed=0, **more):
    config = small(hostile=2, attack=attack, attack_scale=3.0, seed=seed, **more)
    return sent_by(config, 3, client, t, BEFORE, LEARNED, 8)


def test_only_the_last_clients_are_hostile():
    config = small(hostile=1, attack="sign_flip")
    assert sent_by(config, 2, "client3", 1, BEFORE, LEARNED, 8).state is LEARNED
    assert sent_by(config, 3, "client4", 1, BEFORE, LEARNED, 8).state is not LEARNED


def test_a_flipped_sign_points_backwards():
    update = attacked("sign_flip")
    torch.testing.assert_close(flat(update.state) - flat(BEFORE), -3 * (flat(LEARNED) - flat(BEFORE)))
    assert update.examples == 8


@pytest.mark.parametrize("attack", ["noise", "collude"])
def test_noise_and_collusion_have_the_length_asked_for_and_another_direction_each_round(attack):
    steps = [flat(attacked(attack, t=t).state) - flat(BEFORE) for t in (1, 1, 2)]
    assert torch.equal(steps[0], steps[1]) and not torch.allclose(steps[0], steps[2])
    assert float(steps[0].norm()) == pytest.approx(3 * float((flat(LEARNED) - flat(BEFORE)).norm()), rel=1e-5)


def test_colluders_agree_on_a_direction_and_the_noisy_do_not():
    steps = {
        attack: [flat(attacked(attack, client).state) - flat(BEFORE) for client in ("client3", "client4")]
        for attack in ATTACKS
    }
    alike = {attack: float(torch.cosine_similarity(*both, dim=0)) for attack, both in steps.items()}
    assert alike["collude"] == pytest.approx(1) and abs(alike["noise"]) < 0.99


def test_flipped_labels_are_wrong_in_training_alone_and_for_the_hostile_alone():
    config = small(setup="mixed", hostile=1, attack="label_flip")
    honest, flipped = partition_of(config.but(hostile=0)), partition_of(config)
    assert honest[:3] == flipped[:3]
    assert (honest[3].test, honest[3].held_out) == (flipped[3].test, flipped[3].held_out)
    pairs = list(zip(honest[3].train, flipped[3].train, strict=True))
    assert pairs and all(a.uid == b.uid and a.gold != b.gold for a, b in pairs)
    assert not torch.equal(
        *(run(config.but(method="local", rounds=1, hostile=n), progress=False).states[3] for n in (0, 1))
    )


def test_flipped_labels_of_classes_are_other_classes_and_free_text_has_none():
    labelled = small(
        benchmark="glue", backbone="tiny-roberta", tasks=["sst2"], setup="iid", hostile=1, attack="label_flip"
    )
    honest, flipped = partition_of(labelled.but(hostile=0)), partition_of(labelled)
    labels = [[item.label for item in clients[3].train] for clients in (honest, flipped)]
    assert all(a == 1 - b for a, b in zip(*labels, strict=True))
    texts = small(benchmark="instruction", tasks=["telegram"], setup="iid", hostile=1, attack="label_flip")
    with pytest.raises(ConfigError, match="has neither: use another attack"):
        partition_of(texts)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_a_long_attack_moves_the_mean_far_and_robust_rules_hardly(aggregation):
    attack = five(attack="sign_flip", attack_scale=25.0, aggregation=aggregation, mixing=1.0)
    attacked, calm, report = rounds_with_and_without(attack)
    assert all(row["value"] for row in report.rows if row["metric"] == "admitted")  # within the norm's limit
    federation = assemble(attack)
    usual = float((calm[:4] - start(federation, attack)[:4]).norm(dim=1).median())
    moved = float((attacked[:4] - calm[:4]).norm(dim=1).max())
    assert moved > 5 * usual if aggregation == "mean" else moved < 1.5 * usual


def test_clipping_bounds_what_a_long_update_does_to_the_mean():
    config = five(attack="sign_flip", attack_scale=25.0, aggregation="mean", mixing=1.0)
    free, calm, _ = rounds_with_and_without(config)
    clipped, _, _ = rounds_with_and_without(config.but(norm_clip=1.0))
    assert float((clipped - calm)[:4].norm()) < 0.2 * float((free - calm)[:4].norm())


def test_an_update_beyond_the_limit_is_set_aside():
    attacked, calm, report = rounds_with_and_without(five(attack="noise", attack_scale=31.0))
    assert torch.equal(attacked[:4], calm[:4])
    note = next(row["note"] for row in report.rows if row["metric"] == "admitted" and not row["value"])
    assert "beyond 30 times the usual" in note and math.isfinite(float(note.split("norm of ")[1].split()[0]))
