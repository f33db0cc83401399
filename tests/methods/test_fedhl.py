"""FedHL: changes of clients of different ranks are added to a sum of full rank, which each receives truncated."""

import dataclasses

import numpy as np
import pytest
import torch

from fedreft_lib import run
from fedreft_lib.core.interventions import INTERVENTIONS
from fedreft_lib.core.state import Spec
from fedreft_lib.errors import ConfigError
from fedreft_lib.federation.assembly import assemble
from fedreft_lib.federation.local_clients import start
from fedreft_lib.federation.rounds import federated_round
from fedreft_lib.methods.additions import factors
from fedreft_lib.methods.fedhl import FEDHL, added, by_error, deployed
from fedreft_lib.methods.lora import LoRA
from fedreft_lib.methods.masked import Masked
from fedreft_lib.methods.method import Sent
from tests.helpers.federations import fresh, same, small, stopped

BOTH = pytest.mark.parametrize("intervention", ["loreft", "lora"])
RANKS = (2, 1, 2, 1)
SCALE = 8.0  # lora_alpha 16 over rank 2


def hl(**fields):
    return small(**{"method": "fedhl", "ranks": RANKS, "retraction": "raw", "lr": 0.05, **fields})


def groups(intervention):
    return [""] if intervention == "loreft" else ["q_proj.", "v_proj."]


def whole(state, group, rank):
    """The first rows' addition, (places, d_out, d_in) or [M, c], by NumPy in float64."""
    phi = {n.removeprefix(group): t.double().numpy() for n, t in state.items() if n.startswith(group)}
    if group:
        return SCALE * phi["B"][:, :, :rank] @ phi["A"][:, :rank]
    R, W, b = (phi[name][:, :rank] for name in "RWb")
    Rt = R.transpose(0, 2, 1)
    return np.concatenate([Rt @ (W - R), Rt @ b[..., None]], -1)


def cut(W, rank):
    """The best approximation of that rank."""
    U, S, Vh = np.linalg.svd(W)
    return (U[..., :rank] * S[:, None, :rank]) @ Vh[:, :rank]


def p_of(e, how):
    e = np.array(e)
    p = {"paper": 1 / (e**2 + 1e-6), "uniform": np.ones_like(e), "blend": 1 / (e + e.mean() + 1e-300)}[how]
    return p / p.sum()


# ---- by hand --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("e", "how", "expected"), [
    ((5, 1, 0), "paper", (4e-8, 1e-6, 0.999999)), ((5, 1), "paper", (0.0384615, 0.9615385)),
    ((0, 0, 0), "paper", (1 / 3, 1 / 3, 1 / 3)), ((0, 0), "blend", (0.5, 0.5)), ((5, 1, 0), "uniform", (1 / 3,) * 3),
    ((4, 2), "blend", (5 / 12, 7 / 12)),
])  # fmt: skip
def test_a_clients_weight_goes_by_the_square_of_its_squared_error(e, how, expected):
    found = by_error(torch.tensor(e).double(), how)
    torch.testing.assert_close(found, torch.tensor(expected).double(), atol=1e-7, rtol=2e-6)


def test_where_nobody_trains_the_sum_stays_to_the_bit_and_a_mean_of_products_loses_its_tail():
    config = small(method="fedhl", intervention="lora", clients=3, tasks=["piqa"], setup="iid", ranks=[1, 2, 3], rank=3)
    kind, W = Masked(LoRA(1.0)), torch.diag(torch.tensor([3.0, 2.0, 1.0]))[None]
    spec = Spec.of({"A": (1, 3, 3), "B": (1, 3, 3)})
    state = factors(kind.kind, W.double(), 3)
    X = spec.row(state).expand(3, -1)
    sent = Sent(X, X, torch.ones(3), spec, config, kind, {"delta.": W}, (0, 1, 2), started=X)
    sent = dataclasses.replace(sent, weights=FEDHL.weigh(sent))
    answers = FEDHL.answer(sent, FEDHL.aggregate(X, sent.weights, config))
    assert torch.equal(sent.memory["delta."], W)
    for k, kept in enumerate(([3, 0, 0], [3, 2, 0], [3, 2, 1])):
        torch.testing.assert_close(added(kind, answers[k], config, k)[""][0], torch.diag(torch.tensor(kept)).double())
    torch.testing.assert_close(sent.weights, by_error(torch.tensor([5.0, 1.0, 0.0]).double(), "paper"))
    flexlora = sum(added(kind, state, config, k)[""] for k in range(3)) / 3
    torch.testing.assert_close(flexlora[0].diagonal(), torch.tensor([3, 4 / 3, 1 / 3]).double())
    assert float((flexlora - W).norm() / W.norm()) == pytest.approx(0.2519763, abs=1e-7)


KINDS = [INTERVENTIONS[name] for name in ("loreft", "direft", "noreft", "orthonormal_direft")]


@pytest.mark.parametrize("kind", [*KINDS, LoRA(1.7)], ids=lambda kind: kind.name)
@pytest.mark.parametrize("of_rank", [0, 2, 5])
def test_the_factors_are_the_best_approximation_offset_and_all(kind, of_rank):
    generator = torch.Generator().manual_seed(of_rank)
    d = 6
    left, right = (torch.randn(3, d, of_rank, generator=generator).double() for _ in range(2))
    W = left @ right.mT
    if kind.residual:
        W = torch.cat([W, left.sum(-1, keepdim=True)], -1)
    found = factors(kind, W, 4)
    state = {name: tensor.double() for name, tensor in found.items()}
    m = kind.as_map(state)
    made = m["B"] @ m["A"]
    if kind.residual:
        made = torch.cat([made, m["c"].unsqueeze(-1)], -1)
        torch.testing.assert_close(state["R"] @ state["R"].mT, torch.eye(4).double().expand(3, 4, 4), atol=1e-6, rtol=0)
    torch.testing.assert_close(made.numpy(), cut(W.numpy(), 4), atol=1e-5, rtol=1e-5, check_dtype=False)
    again = factors(kind, W * (1 + 1e-12), 4)
    for name in found if of_rank == 5 else ():  # the signs do not hang on the last digits
        torch.testing.assert_close(again[name], found[name], atol=1e-5, rtol=1e-5)


def test_a_module_that_is_narrower_than_the_rank_has_empty_rows():
    W = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0)).double()
    found = factors(LoRA(2.0), W, 4)
    assert found["A"].shape == (2, 4, 5) and found["B"].shape == (2, 3, 4)
    torch.testing.assert_close((2 * found["B"] @ found["A"]).double(), W, atol=1e-5, rtol=1e-5)


# ---- in a federation ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("intervention", "how"), [("loreft", "blend"), ("loreft", "uniform"), ("lora", "paper")])
def test_rounds_are_the_formula_whoever_is_away_late_or_lost(learned, intervention, how):
    config = hl(intervention=intervention, hl_weights=how, rounds=3, late=[[2, 1]], drops=[[4, 2]], joins=[[3, 2]])
    federation = assemble(config)
    spec = federation.model.spec
    X, memory, late, newest = start(federation, config), {}, {}, {}
    W = {group: 0.0 for group in groups(intervention)}
    for t in range(1, 4):
        there = {1: [0, 3], 2: [0, 1, 2]}.get(t, [0, 1, 2, 3])
        begun = torch.stack([spec.row({**spec.named(row), **newest}) for row in X])
        trained = learned(federation, config.but(late=[], drops=[], joins=[]), begun, t)
        origin, arrived = begun.clone(), trained.clone()
        for k, (first, last) in late.items():
            origin[k], arrived[k] = first, last
        late = {1: (begun[1], trained[1])} if t == 1 else {}
        X, report = federated_round(federation, config, X, t, memory=memory)
        memory = report.memory
        of = {(k, g): [whole(spec.named(rows[k]), g, RANKS[k]) for rows in (origin, arrived)] for k in there for g in W}
        e = [sum(((W[g] - of[k, g][0]) ** 2).sum() for g in W) for k in there]
        p = p_of(e, how)
        np.testing.assert_allclose(report.M[0][there], p, atol=1e-5)
        W = {g: W[g] + sum(w * (of[k, g][1] - of[k, g][0]) for w, k in zip(p, there, strict=True)) for g in W}
        for g in W:
            np.testing.assert_allclose(memory[f"delta.{g}"], W[g], atol=1e-5)
            for rank in (1, 2):
                for k in there:
                    np.testing.assert_allclose(whole(spec.named(X[k]), g, rank), cut(W[g], rank), atol=1e-4)
        newest = {n: x for n, x in spec.named(X[there[0]]).items() if not n.endswith("live")}
    assert max(e) > 1e-4 and max(np.linalg.matrix_rank(each, tol=1e-4).max() for each in W.values()) > 2


@BOTH
def test_a_round_of_equal_full_ranks_is_the_mean_of_the_products(learned, intervention):
    config = hl(intervention=intervention, ranks=(), hl_weights="uniform")
    federation = assemble(config)
    spec, X = federation.model.spec, start(federation, config)
    sent = learned(federation, config, X)
    _, report = federated_round(federation, config, X, 1)
    for g in groups(intervention):
        flexlora = sum(whole(spec.named(row), g, 2) for row in sent) / 4
        np.testing.assert_allclose(report.memory[f"delta.{g}"], flexlora, atol=1e-6)
        assert np.abs(flexlora).max() > 1e-3


@BOTH
def test_a_client_trains_its_own_rows_alone_and_one_of_full_rank_trains_as_ever(learned, intervention):
    config = hl(intervention=intervention, local_steps=5)
    federation = assemble(config)
    spec, X = federation.model.spec, start(federation, config)
    begun, sent = spec.named(X[1]), spec.named(learned(federation, config, X)[1])
    moved = {n for n, tensor in sent.items() if not torch.equal(tensor[:, 0], begun[n][:, 0]) and n[-1] != "B"}
    still = [n for n in begun if n.rpartition(".")[2] in ("W", "b", "A", "live")]
    assert all(torch.equal(sent[n][:, 1], begun[n][:, 1]) for n in still)
    assert all(torch.equal(sent[n][..., 1], begun[n][..., 1]) for n in begun if n.endswith("B"))
    assert moved == {n for n in begun if n.rpartition(".")[2] in ("R", "W", "b", "A")}
    # Whatever stands in its other rows, it learns the same.
    other = spec.named(X[1].clone())
    for n in other:
        if n.rpartition(".")[2] in ("W", "b", "A"):
            other[n][:, 1] += 3.0
    Y = X.clone()
    Y[1] = spec.row(other)
    again = spec.named(learned(federation, config, Y)[1])
    assert all(torch.equal(again[n][:, 0], sent[n][:, 0]) for n in sent if not n.endswith("B"))
    plain = assemble(config.but(method="fedavg"))
    avg = learned(plain, config.but(method="fedavg"), start(plain, config.but(method="fedavg")))[0]
    full = spec.named(learned(federation, config, X)[0])
    assert all(torch.equal(full[n], tensor) for n, tensor in plain.model.spec.named(avg).items())


@BOTH
def test_a_run_with_three_drawn_one_late_and_one_lost_resumes_to_the_same_bits(tmp_path, intervention):
    config = hl(intervention=intervention, sampled=3, drops=[[1, 2]], late=[[2, 1]], rounds=3, test_size=2)
    whole = fresh(config)
    stopped(config, tmp_path, 1)
    assemble(config).memo.clear()
    same(run(config, tmp_path, progress=False), whole)


def test_a_client_is_tested_with_its_own_rank_or_with_all_rows():
    config = hl(rounds=1)
    federation = assemble(config)
    state = federation.model.spec.named(start(federation, config)[1])
    assert state["live"].tolist() == [[1.0, 0.0]] * 4
    assert torch.equal(deployed(federation.model, config, state, None, 1)["live"], state["live"])
    full = deployed(federation.model, config.but(hl_deploy="full"), state, None, 1)
    assert full["live"].eq(1).all() and torch.equal(full["W"], state["W"])


@pytest.mark.parametrize(("fields", "said"), [
    ({"intervention": "lobireft"}, "has no W"), ({"intervention": "consreft", "init": "random"}, "has no W"),
    ({"ranks": [1, 2, 3, 1]}, "ranks must be from 1 to rank = 2"), ({"ranks": [1, 2]}, "an entry for each of 4"),
    ({"sharing": "R"}, "fedhl itself determines"),
])  # fmt: skip
def test_what_has_no_truncation_is_refused(fields, said):
    with pytest.raises(ConfigError, match=said):
        hl(**fields)
