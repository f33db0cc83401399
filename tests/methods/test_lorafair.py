"""LoRA-FAIR: B, or W and b, come as near to the clients' mean addition as their distance from the means allows."""

import numpy as np
import pytest
import torch

from fedreft_lib import RunConfig
from fedreft_lib.core.interventions import LoReFT
from fedreft_lib.core.rotation import retract
from fedreft_lib.core.state import Spec
from fedreft_lib.federation.assembly import assemble
from fedreft_lib.federation.local_clients import start
from fedreft_lib.federation.rounds import federated_round
from fedreft_lib.federation.training import train_clients
from fedreft_lib.methods import METHODS
from fedreft_lib.methods.lora import LoRA
from fedreft_lib.methods.method import Sent
from tests.helpers.federations import finish, fresh, named, same, small, stopped

# Clients 1, 3 and 4 are drawn in round 1, where 3 is late; it arrives in round 2, where client 1 is lost.
PART = {"sampled": 3, "late": [[3, 1]], "drops": [[1, 2]]}
BOTH = pytest.mark.parametrize("intervention", ["loreft", "lora"])
FAIR = METHODS["lorafair"]


def answered(states, weights, lam, kind=LoRA(1.0), **fields):  # noqa: B008
    """What the server answers to clients that sent these states."""
    intervention = "lora" if isinstance(kind, LoRA) else "loreft"
    config = RunConfig(method="lorafair", intervention=intervention, fair_lambda=lam, **fields)
    spec = Spec.of({name: tuple(tensor.shape) for name, tensor in states[0].items()})
    X, weights = torch.stack([spec.row(state) for state in states]), torch.tensor(weights)
    sent = Sent(X, torch.zeros_like(X), weights, spec, config, kind)
    return FAIR.answer(sent, FAIR.aggregate(X, weights, config))[0]


def pair(A, B):
    return {"q_proj.A": torch.tensor([A]).float(), "q_proj.B": torch.tensor([B]).float()}


TWO = [pair([[1, 0]], [[1], [0]]), pair([[1, 1]], [[0], [2]])]


@pytest.mark.parametrize(
    ("lam", "correction", "error"),
    [
        (0.0, (-0.1, 0.2), 0.5),  # the floor: the part of the mean addition outside the rows of A
        (0.01, (-0.099206, 0.198413), None),
        (1.25, (-0.05, 0.1), 0.515388),
        (1e30, (0.0, 0.0), 0.559017),
    ],
)
def test_two_clients_by_hand(lam, correction, error):
    found = answered(TWO, [4.0, 4.0], lam)
    A, B = found["q_proj.A"][0].double(), found["q_proj.B"][0].double()
    assert A.tolist() == [[1.0, 0.5]]
    assert (B[:, 0] - torch.tensor([0.5, 1.0])).tolist() == pytest.approx(correction, abs=1e-6)
    if error is not None:
        exact = sum(each["q_proj.B"][0] @ each["q_proj.A"][0] for each in TWO) / 2
        assert float((exact - B @ A).norm()) == pytest.approx(error, abs=1e-6)


def some(kind, clients=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    dims = (7, 5) if isinstance(kind, LoRA) else (7,)
    names = {"A": "q_proj.A", "B": "q_proj.B"}
    states = [kind.init(2, 3, *dims, start="random", generator=generator) for _ in range(clients)]
    return [{names.get(name, name): tensor for name, tensor in state.items()} for state in states]


def added(state):
    """R^T [W - R, b], or A^T B^T, of every place."""
    if "R" in state:
        return state["R"].mT @ torch.cat([state["W"] - state["R"], state["b"].unsqueeze(-1)], -1)
    return state["q_proj.A"].mT @ state["q_proj.B"].mT


@pytest.mark.parametrize("kind", [LoRA(2.0), LoReFT], ids=["lora", "loreft"])
@pytest.mark.parametrize("retraction", ["polar", "raw"])
def test_the_larger_lambda_the_nearer_to_the_means_and_the_farther_from_the_mean_addition(kind, retraction):
    n, states = [8.0, 5.0, 2.0, 0.0], some(kind)
    exact = sum(w / 15 * added(state).double() for w, state in zip(n, states, strict=True))
    errors = []
    for lam in (0.0, 0.01, 0.1, 1.0, 10.0, 1e30):
        found = answered(states, n, lam, kind, retraction=retraction)
        if "R" in found:
            found["R"] = retract(found["R"], retraction)
        errors.append(float((added(found) - exact).norm()))
    assert errors == sorted(errors) and errors[0] < 0.99 * errors[-1]
    means = {name: sum(w / 15 * state[name] for w, state in zip(n, states, strict=True)) for name in states[0]}
    if "R" in means:
        means["R"] = retract(means["R"], retraction)
    for name, mean in means.items():
        torch.testing.assert_close(found[name], mean, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", [LoRA(2.0), LoReFT], ids=["lora", "loreft"])
@pytest.mark.parametrize("lam", [0.0, 0.3])
def test_where_all_have_one_subspace_there_is_nothing_to_correct(kind, lam):
    states = some(kind)
    one = "q_proj.A" if isinstance(kind, LoRA) else "R"
    states = [{**state, one: states[0][one]} for state in states]
    found = answered(states, [1.0, 2.0, 3.0, 4.0], lam, kind)
    for name, tensor in found.items():
        mean = sum(w / 10 * state[name] for w, state in zip((1, 2, 3, 4), states, strict=True))
        torch.testing.assert_close(tensor, mean, atol=1e-6, rtol=1e-5)


def test_a_mean_without_full_rank_has_the_smallest_correction():
    """A has two equal rows: only the sum of B's columns matters."""
    states = [pair([[1, 0], [1, 0]], [[1, 0], [0, 0]]), pair([[1, 2], [1, 2]], [[0, 0], [2, 0]])]
    found = answered(states, [1.0, 1.0], 0.0)["q_proj.B"][0].double()
    A = np.array([[1.0, 1.0], [1.0, 1.0]])
    B, exact = np.array([[0.5, 0.0], [1.0, 0.0]]), np.array([[0.5, 0.0], [1.0, 2.0]])
    expected = B + np.linalg.lstsq(A.T, (exact - B @ A).T, rcond=None)[0].T
    np.testing.assert_allclose(found, expected, atol=1e-6)


@BOTH
@pytest.mark.parametrize("lam", [0.0, 0.5])
@pytest.mark.parametrize("part", [{}, PART], ids=["all", "part"])
def test_a_round_solves_the_stacked_least_squares_problem(uneven, intervention, lam, part):
    config = small(method="lorafair", intervention=intervention, fair_lambda=lam, lr=0.1, local_steps=3, **part)
    federation = uneven(config)
    X = start(federation, config)
    found, _ = federated_round(federation, config, X, 1)
    who = [0, 3] if part else [0, 1, 2, 3]
    n = np.array([8, 5, 2, 8])[who] / np.array([8, 5, 2, 8])[who].sum()
    trained = [each.state for each in train_clients(federation, config, named(federation, X, who), 1).values()]
    states = [{name: tensor.double().numpy() for name, tensor in state.items()} for state in trained]
    answer = {name: x.double().numpy() for name, x in federation.model.spec.named(found[0]).items()}
    assert torch.equal(found[0], found[3])
    moved = 0.0
    for group in [""] if intervention == "loreft" else ["q_proj.", "v_proj."]:
        for place in range(4 if intervention == "loreft" else 2):

            def parts(state, group=group, place=place):
                if intervention == "lora":
                    return state[f"{group}A"][place], state[f"{group}B"][place].T
                R, W, b = (state[name][place] for name in "RWb")
                return R, np.concatenate([W, b[:, None]], axis=1)

            def additions(state):
                A, C = parts(state)
                return A.T @ (C - np.pad(A, ((0, 0), (0, 1)))) if intervention == "loreft" else A.T @ C  # noqa: B023

            exact = sum(w * additions(state) for w, state in zip(n, states, strict=True))
            mean = sum(w * parts(state)[1] for w, state in zip(n, states, strict=True))
            A, C = parts(answer)
            base = np.pad(A, ((0, 0), (0, 1))) if intervention == "loreft" else 0 * mean
            design = np.concatenate([A.T, lam**0.5 * np.eye(len(A))])
            wanted = np.concatenate([exact - A.T @ (mean - base), 0 * mean])
            expected = mean + np.linalg.lstsq(design, wanted, rcond=None)[0]
            np.testing.assert_allclose(C, expected, atol=1e-5)
            moved = max(moved, float(np.abs(expected - mean).max()))
    assert moved > 1e-4


@pytest.mark.parametrize(("intervention", "method"), [("lora", "fedit"), ("loreft", "fedavg")])
def test_with_a_huge_lambda_it_is_fedit_or_fedavg_to_the_bit(intervention, method):
    fields = {"intervention": intervention, "rounds": 2}
    expected = finish(small(method=method, **fields))
    found, nearer = (finish(small(method="lorafair", fair_lambda=lam, **fields)) for lam in (1e30, 0.01))
    assert torch.equal(found.states, expected.states) and not torch.equal(nearer.states, expected.states)


def test_a_client_that_was_not_admitted_does_not_count(uneven, set_aside):
    config = small(method="lorafair", intervention="lora", lr=0.1)
    federation = uneven(config)
    X = start(federation, config)
    set_aside(2)
    found, _ = federated_round(federation, config, X, 1)
    calm = config.but(drops=[[3, 1]])
    assert torch.equal(found[0], federated_round(uneven(calm), calm, X, 1)[0][0])


@BOTH
def test_a_run_with_some_away_that_was_stopped_goes_on_to_the_bit(tmp_path, intervention):
    config = small(method="lorafair", intervention=intervention, test_size=2, **PART)
    whole = fresh(config)
    stopped(config, tmp_path, 1)
    assemble(config).memo.clear()
    same(finish(config, tmp_path), whole)
