"""FedVRA: a dual for each client removes the drift of FedProx, and the server's mean dual is the clients'."""

import pytest
import torch

from fedreft_lib import run
from fedreft_lib.core.interventions import DiReFT
from fedreft_lib.core.state import Spec
from fedreft_lib.core.training import Trained
from fedreft_lib.errors import ConfigError
from fedreft_lib.federation.assembly import assemble
from fedreft_lib.federation.local_clients import start
from fedreft_lib.federation.rounds import federated_round
from fedreft_lib.methods.fedvra import FEDVRA
from fedreft_lib.methods.method import Sent
from tests.helpers.federations import GLUE, fresh, rows, same, small, stopped

BOTH = pytest.mark.parametrize("intervention", ["loreft", "lora"])
SPEC = Spec.of({"b": (1,)})


# ---- quadratic clients f_k = H (x - c)^2 / 2, each of which finds its minimum ----------------------------------------


def minimum(config, H, c, before):
    """Of f plus the method's penalty: one Newton step, which is exact for quadratics."""
    penalty = FEDVRA.penalty(config)
    x = before["b"].clone().requires_grad_()
    objective = (H * (x - c) ** 2 / 2).sum() + penalty({"b": x}, before, ("b",), 1, 1)
    (slope,) = torch.autograd.grad(objective, x, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), x)
    return (x - slope / curvature).detach()


def quadratic(c, rounds, H=(1.0, 4.0), drawn=lambda t: None, **fields):
    """phi0 after each round, from 0; by the method's own hooks. drawn(t): the clients of round t, None: all."""
    config = small(method="fedvra", vra_gamma=1.0, **fields)
    n = len(c)
    x, h, memory, path = torch.zeros(1).double(), [torch.zeros(1).double()] * n, {}, []
    for t in range(rounds):
        who, sent = drawn(t) or list(range(n)), []
        for k in who:
            before = {"b": x, "kept.dual.b": h[k]}
            trained = Trained({**before, "b": minimum(config, H[k], c[k], before)}, [0.0], 0.0)
            h[k] = FEDVRA.after(None, config, before, trained, {}, None, t)["kept.dual.b"]
            sent.append(trained.state["b"])
        X, weights = torch.stack(sent), torch.ones(len(who)).double()
        aggregate = FEDVRA.aggregate(X, weights, config)
        message = Sent(
            X, x.expand(len(who), 1), weights, SPEC, config, DiReFT, memory, tuple(who),
            started=x.expand(len(who), 1), examples=(1,) * n,
        )  # fmt: skip
        x = FEDVRA.answer(message, aggregate)[0]["b"]
        torch.testing.assert_close(memory["dual"], torch.stack(h).mean(0), atol=1e-12, rtol=0)
        path.append(float(x))
    return path


@pytest.mark.parametrize(("a", "rounds"), [(1.0, 20), (0.5, 57), (0.25, 124), (1.5, 22), (1.9, 137)])
def test_it_reaches_the_optimum_of_the_sum_in_as_many_rounds_as_the_algebra_says(a, rounds):
    path = quadratic((1.0, 3.0), rounds + 5, vra_a=a)  # the optimum is (1 * 1 + 4 * 3) / 5
    first = next(t for t in range(len(path)) if all(abs(x - 2.6) < 1e-6 for x in path[t:])) + 1
    assert first == rounds


def test_without_the_dual_it_ends_beside_the_optimum_and_a_server_that_shrinks_is_a_ridge():
    assert quadratic((1.0, 3.0), 200, vra_a=0.0)[-1] == pytest.approx((0.5 * 1 + 0.8 * 3) / 1.3)  # sum M c / sum M
    assert quadratic((0.0, 1.0), 300, vra_a=0.0)[-1] == pytest.approx(0.615385, abs=1e-6)
    assert quadratic((0.0, 1.0), 300)[-1] == pytest.approx(0.8)
    assert quadratic((0.0, 1.0), 300, vra_d=0.9)[-1] == pytest.approx(4 / 5.2)
    with pytest.raises(ConfigError, match="vra_a"):
        small(vra_a=2.0)  # does not converge


def test_with_two_of_six_drawn_the_optimum_is_reached_and_without_the_dual_never():
    generator = torch.Generator().manual_seed(0)
    draws = [torch.randperm(6, generator=generator)[:2].tolist() for _ in range(600)]
    c, H = (1.0, 3.0, -2.0, 0.5, 2.0, 4.0), (1.0, 4.0, 2.0, 1.0, 3.0, 1.0)
    optimum = sum(h * x for h, x in zip(H, c, strict=True)) / sum(H)
    drawn = {"H": H, "drawn": draws.__getitem__}
    assert quadratic(c, 600, **drawn)[-1] == pytest.approx(optimum, abs=1e-6)
    last = quadratic(c, 600, vra_a=0.0, **drawn)[-50:]
    assert max(last) - min(last) > 0.5


# ---- in a federation -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{}, {"intervention": "lora"}, {"sharing": "R"}, GLUE], ids=str)
def test_without_the_dual_it_is_fedprox_to_the_bit(fields):
    fields = {"rounds": 2, "test_size": 2, **fields}
    prox = run(small(method="fedprox", proximal_mu=0.3, **fields), progress=False)
    vra = run(small(method="fedvra", vra_gamma=0.3, vra_a=0.0, **fields), progress=False)
    for one, other in zip(prox.states, vra.states, strict=True):
        found, dual = vra.spec.named(other), vra.spec.named(vra.states[0])
        assert all(torch.equal(found[name], tensor) for name, tensor in prox.spec.named(one).items())
        assert not any(dual[name].any() for name in dual if name.startswith("kept."))
    assert prox.history["uplink_bytes"].sum() == vra.history["uplink_bytes"].sum()  # no dual is sent
    assert not torch.equal(run(vra.config.but(vra_a=1.0), progress=False).states, vra.states)


def test_the_dual_pulls_each_step_by_gamma_times_itself(learned):
    config = small(
        method="fedvra", intervention="lora", optimiser="sgd", local_steps=1, lr=0.5, clip=1e6, vra_gamma=0.2, rounds=1
    )
    federation = assemble(config)
    spec, X = federation.model.spec, start(federation, config)
    state = spec.named(X[1].clone())
    h = torch.randn(state["q_proj.B"].shape, generator=torch.Generator().manual_seed(0))
    given = X.clone()
    given[1] = spec.row({**state, "kept.dual.q_proj.B": h})
    found = [spec.named(learned(federation, config, each)[1]) for each in (X, given)]
    for name in ("q_proj.A", "q_proj.B", "v_proj.A", "v_proj.B"):
        pulled = found[0][name] - (0.5 * 0.2 * h if name == "q_proj.B" else 0)
        torch.testing.assert_close(found[1][name], pulled, atol=1e-6, rtol=1e-6)
        step = found[1][name] - state[name]
        torch.testing.assert_close(found[1][f"kept.dual.{name}"], step + (h if name == "q_proj.B" else 0))


@BOTH
def test_a_round_is_the_formula_and_the_servers_dual_is_the_clients_whoever_is_away_late_or_lost(
    uneven, learned, intervention
):
    config = small(
        method="fedvra", intervention=intervention, vra_d=0.9, vra_a=0.7, retraction="raw", rounds=5,
        late=[[1, 1], [4, 3]], drops=[[2, 2]], joins=[[3, 2]], leaves=[[2, 4]],
    )  # fmt: skip
    federation = uneven(config)
    spec = federation.model.spec
    names = [name for name in spec.names if not name.startswith("kept.")]
    p = torch.tensor([8, 5, 2, 8]).double() / 23
    X, memory, late, dual, newest = start(federation, config), {}, {}, 0.0, None
    for t in range(1, 6):
        there = {1: [1, 3], 2: [0, 2, 3], 3: [0, 1, 2], 4: [0, 1, 2, 3], 5: [0, 2, 3]}[t]
        # What each begins with, and what it learns, if its update is not one of the round before.
        begun = X if newest is None else torch.stack([spec.row({**spec.named(row), **newest}) for row in X])
        alone = config.but(late=[], drops=[], joins=[], leaves=[])
        trained = learned(federation, alone, begun, t)
        origin, arrived = begun.clone(), trained.clone()
        for k, (first, last) in late.items():
            origin[k], arrived[k] = first, last
        late = {k - 1: (begun[k - 1], trained[k - 1]) for k, round in config.late if round == t}
        X, report = federated_round(federation, config, X, t, memory=memory)
        memory = report.memory
        of = [spec.columns(names, part).double() for part in (arrived, origin)]
        dual = dual + 0.7 * sum(p[k] * (of[0][k] - of[1][k]) for k in there)
        mean = sum(p[k] * of[0][k] for k in there) / sum(p[k] for k in there)
        torch.testing.assert_close(memory["dual"].double(), dual, atol=1e-6, rtol=1e-5)
        newest = {name: spec.named(X[there[0]])[name] for name in names}
        for k in there:
            torch.testing.assert_close(spec.columns(names, X)[k].double(), 0.9 * mean + dual, atol=1e-5, rtol=1e-5)
        h = spec.columns([f"kept.dual.{name}" for name in names], X).double()
        torch.testing.assert_close(memory["dual"].double(), p @ h, atol=1e-6, rtol=1e-5)
    assert float(dual.abs().max()) > 1e-3 and sum(row["metric"] == "present" for row in report.rows) == 1


@BOTH
def test_a_run_with_two_drawn_clients_one_late_and_one_lost_is_right_and_resumes_to_the_same_bits(
    tmp_path, intervention
):
    config = small(
        method="fedvra", intervention=intervention, sampled=3, drops=[[1, 2], [4, 1]], late=[[2, 1], [3, 3]], rounds=4,
        test_size=2,
    )  # fmt: skip
    whole = fresh(config)
    shared = [name for name in whole.spec.names if not name.startswith("kept.")]
    h = whole.spec.columns([f"kept.dual.{name}" for name in shared], whole.states)
    torch.testing.assert_close(whole.memory["dual"], h.mean(0), atol=1e-6, rtol=1e-5)  # all have eight examples
    assert h.any() and len(rows(whole, "present")) >= 2
    stopped(config, tmp_path, 1)
    assemble(config).memo.clear()
    same(run(config, tmp_path, progress=False), whole)


def test_clients_that_never_train_have_no_part_in_the_mean_of_the_duals():
    done = run(small(method="fedvra", unseen=1, rounds=2, test_size=1), progress=False)
    h = done.spec.columns([name for name in done.spec.names if name.startswith("kept.")], done.states)
    torch.testing.assert_close(done.memory["dual"], h[:3].mean(0), atol=1e-6, rtol=1e-5)
    assert not h[3].any()


def test_a_refused_update_leaves_both_duals_as_they_were(uneven, learned, set_aside):
    config = small(method="fedvra", retraction="raw")
    federation = uneven(config)
    spec, X = federation.model.spec, start(federation, config)
    sent = learned(federation, config, X)
    set_aside(2)
    found, report = federated_round(federation, config, X, 1)
    step = (sent - X)[:, : len(report.memory["dual"])].double()
    assert not any(x.any() for n, x in spec.named(found[2]).items() if n.startswith("kept."))
    expected = sum(n / 23 * step[k] for k, n in ((0, 8), (1, 5), (3, 8)))
    torch.testing.assert_close(report.memory["dual"].double(), expected, atol=1e-6, rtol=1e-5)


def test_a_shared_head_has_a_dual_and_an_averaged_one_has_none():
    for head in ("shared", "averaged"):
        names = assemble(small(**{**GLUE, "method": "fedvra", "head": head})).model.spec.names
        assert ("kept.dual.head.D" in names) == (head == "shared") and "kept.dual.R" in names


@pytest.mark.parametrize(("fields", "said"), [
    ({"vra_gamma": 0.0}, "vra_gamma must be above 0"), ({"norm_clip": 1.0}, "norm_clip would change"),
    ({"align": True}, "align turns whole interventions"),
])  # fmt: skip
def test_what_would_part_the_duals_is_refused(fields, said):
    with pytest.raises(ConfigError, match=said):
        small(method="fedvra", **fields)
    small(method="fedvra", vra_gamma=0.0, vra_a=0.0)  # FedAvg
