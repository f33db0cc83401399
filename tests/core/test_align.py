"""States that say the same in other numbers are brought together before they are averaged."""

import pytest
import torch
from scipy.linalg import orthogonal_procrustes

from fedreft_lib.core.interventions import INTERVENTIONS
from fedreft_lib.core.rotation import align
from fedreft_lib.federation.assembly import assemble
from fedreft_lib.federation.local_clients import start
from fedreft_lib.federation.rounds import federated_round
from tests.helpers.federations import small

SITES, RANK, D = 3, 4, 16
KINDS = list(INTERVENTIONS.values())


def drawn(kind, seed=0):
    return kind.init(SITES, RANK, D, start="random", generator=torch.Generator().manual_seed(seed))


def rotations(seed=0):
    """Random orthogonal Q (S, r, r), reflections among them."""
    Q = torch.linalg.qr(torch.randn(SITES, RANK, RANK, generator=torch.Generator().manual_seed(seed)))[0]
    return torch.cat([Q[:1] * torch.tensor([-1.0, 1, 1, 1])[:, None], Q[1:]])


def turned(state, Q):
    """(Q R, Q W, Q b), one site after another."""
    return {name: torch.stack([Q[s] @ state[name][s] for s in range(SITES)]) for name in state}


def edits(kind, state, h):
    return torch.stack([kind.edit(h, {n: t[s] for n, t in state.items()}) for s in range(SITES)])


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_alignment_never_changes_what_an_intervention_does(kind):
    state, reference = drawn(kind, 1), drawn(kind, 2)
    h = torch.randn(20, D, generator=torch.Generator().manual_seed(3))
    found = align(state, reference)
    assert list(found) == list(state)
    torch.testing.assert_close(edits(kind, found, h), edits(kind, state, h), atol=1e-5, rtol=1e-5)
    assert float((found["R"] - state["R"]).abs().max()) > 0.05  # and yet it is another state


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_state_that_was_only_turned_is_turned_back(kind):
    state = drawn(kind)
    found = align(turned(state, rotations()), state)
    for name in state:
        torch.testing.assert_close(found[name], state[name], atol=1e-5, rtol=1e-5)


def test_the_turn_is_procrustes():
    state, reference = drawn(INTERVENTIONS["loreft"], 1), drawn(INTERVENTIONS["loreft"], 2)
    found = align(state, reference)
    for s in range(SITES):
        Q = torch.from_numpy(orthogonal_procrustes(state["R"][s].numpy().T, reference["R"][s].numpy().T)[0]).T
        for name in state:
            torch.testing.assert_close(found[name][s], Q @ state[name][s], atol=1e-5, rtol=1e-5)


def test_other_tensors_are_left_alone():
    state = drawn(INTERVENTIONS["loreft"])
    assert align({**state, "head.f": torch.ones(2)}, drawn(INTERVENTIONS["loreft"], 2))["head.f"].tolist() == [1, 1]


def test_averaging_aligned_states_keeps_what_averaging_raw_ones_loses():
    kind = INTERVENTIONS["loreft"]
    state, h = drawn(kind), torch.randn(20, D, generator=torch.Generator().manual_seed(3))
    clients = [turned(state, rotations(seed)) for seed in range(5)]
    wanted = edits(kind, state, h) - h

    def lost(states):
        mean = {name: torch.stack([each[name] for each in states]).mean(0) for name in state}
        return float((edits(kind, mean, h) - h - wanted).norm() / wanted.norm())

    assert lost([align(each, state) for each in clients]) < 1e-5
    assert lost(clients) > 0.5


@pytest.mark.parametrize("method", ["fedavg", "fedreft"])
def test_a_round_with_alignment_averages_what_each_client_learned_turned_to_the_common_start(method):
    config = small(method=method, mixing=1.0, aggregation="mean", align=True, retraction="raw", lr=0.1, local_steps=6)
    federation = assemble(config)
    spec, X = federation.model.spec, start(federation, config)
    learned, _ = federated_round(federation, config.but(method="local", align=False), X, 1)
    common = spec.named(X[0])
    found, _ = federated_round(federation, config, X, 1)
    sent = []
    for row in learned:
        state, aligned = spec.named(row), {}
        for s in range(len(state["R"])):
            Q = torch.from_numpy(orthogonal_procrustes(state["R"][s].numpy().T, common["R"][s].numpy().T)[0]).T
            for name in state:
                aligned.setdefault(name, []).append(Q @ state[name][s])
        sent.append(spec.row({name: torch.stack(parts) for name, parts in aligned.items()}))
    sent = torch.stack(sent)
    assert float((sent - learned).abs().max()) > 1e-4
    for k in range(4):
        heard = sent if method == "fedavg" else torch.stack([sent[j] for j in range(4) if j != k])
        torch.testing.assert_close(found[k], heard.mean(0), atol=1e-5, rtol=1e-5)
