"""The facts about the methods agree with closed forms and with runs that keep what they look at."""

from dataclasses import replace

import pytest
import torch

from fedreft_lib import RunConfig, run
from fedreft_lib.runs.client_states import ClientStates
from fedreft_lib.workbook import method_facts

LORA = RunConfig(
    backbone="tiny-llama", source="synthetic", layers="1-2", intervention="lora", rank=2, lr=0.01,
    train_size=8, held_out_size=4, test_size=4, rounds=1, local_steps=2, max_length=64, method="local",
)  # fmt: skip


@pytest.mark.parametrize(
    ("method", "intervention", "kept"),
    [
        ("local", "loreft", "R, W, b"), ("fedavg", "loreft", "nothing"), ("fedsa", "lora", "B"),
        ("fedsa", "loreft", "W, b"), ("ffa", "lora", "nothing"), ("feddpa", "lora", "local.A, local.B"),
        ("fedalt", "loreft", "route"), ("flora", "lora", "nothing"),
    ],
)  # fmt: skip
def test_what_is_trained_and_never_sent_stays_private(method, intervention, kept):
    config = LORA.but(method=method, intervention=intervention, rounds=0)
    assert method_facts.kept(run(config, progress=False)) == kept


def test_what_is_learned_is_where_local_training_alone_ends():
    alone = run(LORA, progress=False)
    states = method_facts.learned(LORA.but(method="fedit"))
    assert torch.equal(torch.stack([alone.spec.row(state) for state in states]), alone.states)


def test_all_begin_at_the_start_and_have_moved_from_it():
    start = method_facts.start_of(LORA)
    assert torch.equal(run(LORA.but(rounds=0), progress=False).states[0], start)


def test_averaging_products_has_a_gap_and_freezing_a_factor_closes_it():
    assert method_facts.average_gap(LORA.but(method="fedit")) > 1e-4
    assert method_facts.average_gap(LORA.but(method="ffa")) < 1e-6
    assert method_facts.average_gap(LORA.but(method="ffa", intervention="loreft")) < 1e-5


def test_the_gap_is_that_of_the_products_written_out():
    states = method_facts.learned(LORA.but(method="fedit"))
    missed = size = 0.0
    for target in LORA.targets:
        for layer in range(2):
            A, B = (torch.stack([s[f"{target}.{n}"][layer] for s in states]).double() for n in "AB")
            exact = sum(b @ a for a, b in zip(A, B, strict=True)) / len(A)
            missed += float((B.mean(0) @ A.mean(0) - exact).square().sum())
            size += float(exact.square().sum())
    assert method_facts.average_gap(LORA.but(method="fedit")) == pytest.approx((missed / size) ** 0.5, rel=1e-3)


def test_the_table_counts_what_the_closed_forms_say():
    configs = {name: LORA.but(method=name) for name in ("fedit", "flora", "fedsa", "local")}
    runs = [run(config, progress=False) for config in configs.values()]
    table = method_facts.facts(runs).set_axis(configs)
    spec = dict(runs[0].spec.shapes)
    A, B = (sum(torch.Size(shape).numel() for name, shape in spec.items() if name.endswith(n)) for n in "AB")
    assert list(table["trained"]) == [A + B] * 4
    assert list(table["sent up"]) == [A + B, A + B, A, 0]
    assert list(table["sent down"]) == [A + B, LORA.clients * (A + B), A, 0]


def test_routers_start_undecided_and_weigh_as_they_are_turned():
    undecided = run(LORA.but(method="fedalt", rounds=0), progress=False)
    assert method_facts.own_share(undecided, 0, "q_proj").tolist() == [0.5, 0.5]

    def turned(rows):
        state = {name: tensor.clone() for name, tensor in undecided.spec.named(undecided.states[0]).items()}
        route = torch.randn(state["q_proj.route"].shape, generator=torch.Generator().manual_seed(0))
        state["q_proj.route"] = route[:, rows]
        clients = ClientStates(undecided.spec.row(state), 4)
        return method_facts.own_share(replace(undecided, clients=clients), 0, "q_proj")

    assert not torch.allclose(turned([0, 1]), torch.tensor(0.5), atol=1e-3)
    assert torch.allclose(turned([0, 1]) + turned([1, 0]), torch.ones(2))


def test_the_held_out_loss_falls_with_training():
    config = LORA.but(local_steps=8, lr=0.02)
    assert method_facts.held_out_loss(run(config, progress=False)) < method_facts.held_out_loss(
        run(config.but(rounds=0), progress=False)
    )


def test_reconstructions_are_named_for_what_they_are():
    assert method_facts.reconstruction(LORA.but(method="fedit")) == ""
    assert "LoReFT" in method_facts.reconstruction(LORA.but(method="ffa", intervention="loreft"))
    assert "mixing weight" in method_facts.reconstruction(LORA.but(method="fedreft", intervention="loreft"))
