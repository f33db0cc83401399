"""FedGLOMO: a momentum that takes the clients' noise out of local steps, and the sampling's out of the server's."""

import numpy as np
import pytest
import torch

from fedreft_lib.core.state import Spec
from fedreft_lib.core.training import Recipe
from fedreft_lib.errors import ConfigError
from fedreft_lib.federation.assembly import assemble
from fedreft_lib.federation.client import common_start
from fedreft_lib.federation.local_clients import start
from fedreft_lib.federation.participation import away
from fedreft_lib.federation.rounds import federated_round
from fedreft_lib.federation.training import train_clients
from fedreft_lib.methods import METHODS
from fedreft_lib.methods.method import Sent, plain_mean
from tests.helpers.federations import finish, rows, same, small, stopped, thinned

BOTH = pytest.mark.parametrize("intervention", ["loreft", "lora"])
SGD = {"optimiser": "sgd", "lr": 0.5}


def glomo(beta=1.0, m=0.0, build=small, **fields):
    return build(**{"method": "fedglomo", "glomo_beta": beta, "glomo_momentum": m, **SGD, **fields})


def edits(done):
    """The clients' tensors without what is kept or told beside them."""
    return [{n: x for n, x in done.spec.named(row).items() if n.split(".")[0] not in ("kept", "told")} for row in
            done.states]  # fmt: skip


# ---- a client -------------------------------------------------------------------------------------------------------


def steps(m, noise, lr=0.1):
    """The point after len(noise) steps on H (x - c)^2 / 2 + noise_s x, from 0: by the library; without noise."""
    H, c = torch.tensor([1.0, 4.0]).double(), torch.tensor([1.0, 3.0]).double()
    recipe = Recipe(lr=lr, schedule="constant", warmup=0.0, clip=1e9, optimiser="sgd")

    def loss_at(step, phi):
        return (H * (phi["x"] - c).square() / 2 + noise[step] * phi["x"]).sum()

    found, _ = METHODS["fedglomo"].optimiser(small(method="fedglomo", glomo_momentum=m))(
        {"x": torch.zeros(2).double(), "still": torch.ones(1)}, loss_at, recipe, steps=len(noise), before=0, of=None,
        rotated=(), trains=("x",), penalty=None, device="cpu", on_step=lambda: None,
    )  # fmt: skip
    assert found["still"] == 1
    x = torch.zeros(2).double()
    for _ in noise:
        x = x - lr * H * (x - c)
    return found["x"], x


def test_with_full_momentum_noise_of_single_batches_does_not_move_the_steps():
    noise = torch.randn(12, 2, generator=torch.Generator().manual_seed(0)).double()
    noise = noise - noise.mean(0)  # the whole data has none
    found, exact = steps(1.0, noise)
    torch.testing.assert_close(found, exact, atol=1e-15, rtol=0)
    half, exact = steps(0.5, noise)
    assert float((half - exact).norm()) > 0.01


def test_the_recursion_is_the_written_out_one():
    noise = torch.randn(5, 2, generator=torch.Generator().manual_seed(1)).double()
    H, c, m, lr = np.array([1.0, 4.0]), np.array([1.0, 3.0]), 0.7, 0.1
    x = last = np.zeros(2)
    v = H * (x - c) + noise.numpy().mean(0)
    for xi in noise.numpy():  # the stale gradient is that of the new batch
        v = (H * (x - c) + xi) + m * (v - (H * (last - c) + xi))
        last, x = x, x - lr * v
    np.testing.assert_allclose(steps(m, noise)[0], x, atol=1e-14)


# ---- the server -----------------------------------------------------------------------------------------------------


def spread(beta):
    """The mean squared distance from the optimum over 300 rounds, where 2 of 5 clients with quadratics are drawn."""
    H, c = torch.linspace(0.5, 2.5, 5), torch.linspace(-2, 2, 5)
    optimum = (H * c).sum() / H.sum()
    generator, spec, memory = torch.Generator().manual_seed(0), Spec.of({"x": (1,)}), {}

    def learned(x, who):
        return c[who, None] + (x - c[who, None]) * (1 - 0.05 * H[who, None]) ** 3  # three steps of exact descent

    config, w, previous, seen = glomo(beta), torch.zeros(1), None, []
    for _ in range(300):
        who = torch.randperm(5, generator=generator)[:2]
        X, weights = learned(w, who), torch.ones(2)
        change = torch.zeros(2, 1) if previous is None else (w - X) - (previous - learned(previous, who))
        sent = Sent(X, w.expand(2, 1), weights, spec, config, None, memory, told={"told.change.x": change})
        answer = METHODS["fedglomo"].answer(sent, plain_mean(X, weights, config))[0]
        assert torch.equal(answer["kept.previous.x"], w)
        w, previous = answer["x"], w
        seen.append(float((w - optimum) ** 2))
    return float(np.mean(seen[100:]))


def test_the_less_a_round_counts_the_less_sampling_moves_the_server():
    found = [spread(beta) for beta in (1.0, 0.5, 0.2, 0.1)]
    assert all(later < 0.8 * earlier for earlier, later in zip(found, found[1:], strict=False)), found


# ---- whole runs -----------------------------------------------------------------------------------------------------


@BOTH
def test_without_any_momentum_it_is_fedavg_to_the_bit(intervention):
    fields = {"intervention": intervention, "rounds": 2}
    one, other = finish(glomo(**fields)), finish(small(method="fedavg", **SGD, **fields))
    for ours, theirs in zip(edits(one), edits(other), strict=True):
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert one.accuracy().tolist() == other.accuracy().tolist()


@BOTH
@pytest.mark.parametrize("m", [0.0, 1.0])
def test_where_all_take_part_and_training_has_no_chance_beta_has_no_effect(intervention, m):
    fields = {"intervention": intervention, "batch_size": 8, "local_steps": 2, "m": m, "test_size": 1}
    fields["schedule_over"] = (
        "round"  # else a round trains from the state before with other rates than the round before
    )
    one, other = edits(finish(glomo(0.2, **fields))), edits(finish(glomo(1.0, **fields)))
    for name in one[0]:
        torch.testing.assert_close(one[0][name], other[0][name], atol=2e-6, rtol=1e-4)


@BOTH
def test_some_drawn_one_late_one_dropped_are_the_written_out_rounds(intervention):
    beta, config = 0.3, glomo(0.3, build=thinned, intervention=intervention, retraction="raw", engine="one_by_one")
    plain = config.but(method="fedavg")
    federation = assemble(plain)
    row, named = federation.model.spec.row, federation.model.spec.named

    def D(w, who, t):
        trained = train_clients(federation, plain, {k: named(w) for k in who}, t)
        return {k: w - row(trained[k].state) for k in who}

    federation.memo.clear()
    w, previous, u, arriving = row(common_start(federation.model.layout, plain)), None, None, {}
    for t in (1, 2, 3):
        who = [k for k in range(6) if k not in away(config, t) and k not in arriving]
        moved = D(w, who, t)
        stale = {k: torch.zeros_like(w) for k in who} if previous is None else D(previous, who, t)
        change = {k: moved[k] - stale[k] if previous is not None else stale[k] for k in who}
        here = {k: (w - moved[k], change[k]) for k in who if (k + 1, t) not in (*config.late, *config.drops)}
        here |= arriving
        arriving = {k: (w - moved[k], change[k]) for k in who if (k + 1, t) in config.late}
        step = w - torch.stack([x for x, _ in here.values()]).mean(0)
        changes = torch.stack([d for _, d in here.values()]).mean(0)
        u = step if u is None else beta * step + (1 - beta) * (u + changes)
        w, previous = w - u, w
    done = finish(config)
    found = row({n.removeprefix("for all."): x for n, x in done.memory.items() if "kept." not in n and n != "u"})
    torch.testing.assert_close(found, w, atol=2e-6, rtol=1e-5)
    assert float(rows(done, "brought up to date").shape[0]) > 0


def test_a_client_begins_again_from_the_state_before(learned):
    """With momentum too: what it reports is the difference of two trainings on the same batches."""
    config = glomo(0.5, m=1.0, engine="one_by_one", rounds=2)
    federation = assemble(config)
    spec, X = federation.model.spec, start(federation, config)
    first, report = federated_round(federation, config, X, 1)
    held = spec.named(first[2])
    assert all(torch.equal(held[f"kept.previous.{n}"], spec.named(X[2])[n]) for n in ("R", "W", "b"))
    told = spec.named(learned(federation, config, first, 2)[2])
    starts = {2: held}, {2: {**held, **{n: held[f"kept.previous.{n}"] for n in ("R", "W", "b")}}}
    now, before = (train_clients(federation, config, each, 2)[2].state for each in starts)
    for n in ("R", "W", "b"):
        expected = (held[n] - now[n]) - (held[f"kept.previous.{n}"] - before[n])
        torch.testing.assert_close(told[f"told.change.{n}"], expected, atol=1e-7, rtol=1e-5)
        assert expected.any()


@BOTH
def test_it_resumes_to_the_same_bits_and_sends_twice_as_much(tmp_path, intervention):
    config = glomo(0.5, m=1.0, build=thinned, intervention=intervention, test_size=1)
    whole = finish(config)
    stopped(config, tmp_path, 1)
    same(finish(config, tmp_path), whole)
    size = sum(tensor.numel() for tensor in edits(whole)[0].values())
    assert set(rows(whole, "loss", "train")["uplink_bytes"]) == {0, 2 * 4 * size}
    assert set(rows(whole, "residual")["downlink_bytes"]) == {2 * 4 * size}


@pytest.mark.parametrize(
    ("fields", "said"),
    [({"dropout": 0.1, "m": 0.5}, "compares gradients of one batch"), ({"norm_clip": 1.0}, "norm_clip does not bound")],
)
def test_what_would_compare_unlike_things_is_refused(fields, said):
    with pytest.raises(ConfigError, match=said):
        glomo(**fields)
