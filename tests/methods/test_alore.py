"""ALoRE: a sum of Kronecker products, trained and averaged factor by factor."""

import numpy as np
import pytest
import torch

from fedreft_lib import run
from fedreft_lib.core.interventions import LoReFT
from fedreft_lib.errors import ConfigError
from fedreft_lib.federation.assembly import assemble
from fedreft_lib.federation.local_clients import start
from fedreft_lib.federation.rounds import federated_round
from fedreft_lib.methods.kronecker import Kronecker
from fedreft_lib.methods.lora import LoRA
from fedreft_lib.workbook import method_facts
from tests.helpers.federations import finish, same, small, stopped, thinned

BOTH = pytest.mark.parametrize("intervention", ["loreft", "lora"])
SCALE = 1.7
PLACES = pytest.mark.parametrize(
    ("kind", "dims"),
    [(LoReFT, (8,)), (LoRA(SCALE), (8, 8)), (LoRA(SCALE), (8, 12))],
    ids=["residual", "square", "wide"],
)


def drawn(kind, *dims, n=4, rank=3):
    """A state of one place, all random, in float64."""
    phi = Kronecker(kind, n).init(1, rank, *dims, start="random", generator=torch.Generator().manual_seed(1))
    return {name: tensor[0].double() for name, tensor in phi.items()}


def dense(phi):
    """sum_i S_i (x) (P_i Q_i), by NumPy."""
    each = zip(*(phi[name].numpy() for name in "SPQ"), strict=True)
    return sum(np.kron(S, P @ Q) for S, P, Q in each)


@PLACES
def test_an_edit_adds_the_dense_kronecker_sum(kind, dims):
    made, phi = Kronecker(kind, 4), drawn(kind, *dims)
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0)).double()
    D = dense(phi) * (1 if kind.residual else SCALE)
    expected = x.numpy() @ D.T + (phi["c"].numpy() if kind.residual else 0)
    np.testing.assert_allclose(made.delta(x, phi), expected, atol=1e-14)
    found = made.as_map(phi)
    np.testing.assert_allclose(found["B"] @ found["A"], D, atol=1e-14)
    if kind.residual:
        np.testing.assert_allclose(made.edit(x, phi), x.numpy() + expected, atol=1e-14)
    one = {name: torch.stack([tensor, 2 * tensor]) for name, tensor in phi.items()}  # two states, one for each row
    each = [made.delta(row, {name: tensor[k] for name, tensor in one.items()}) for k, row in enumerate(x)]
    torch.testing.assert_close(made.delta(x, one), torch.stack(each))


def test_one_block_that_is_one_is_lora_to_the_bit():
    phi = {name: tensor.float() for name, tensor in drawn(LoRA(SCALE), 8, 12, n=1).items()}
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    expected = LoRA(SCALE).as_map({"A": phi["Q"][0], "B": phi["P"][0]})
    found = Kronecker(LoRA(SCALE), 1).delta(x, {**phi, "S": torch.ones(1, 1, 1)})
    assert torch.equal(found, x @ expected["A"].T @ expected["B"].T)


def test_few_numbers_have_a_high_rank():
    made = Kronecker(LoReFT, 4)
    phi = {name: tensor[0].double() for name, tensor in made.init(
        1, 4, 96, start="random", generator=torch.Generator().manual_seed(0)).items()}  # fmt: skip
    assert np.linalg.matrix_rank(dense(phi)) == 64
    numbers = {name: tensor.numel() for name, tensor in phi.items() if name != "c"}
    assert sum(numbers.values()) == 64 + 2 * 96 * 4
    paper = made.shapes(24, 4, 768)  # d = 768, two places in 12 blocks: printed as 0.15M
    assert sum(np.prod(paper[name]) for name in "SPQ") == 148_992


@BOTH
def test_training_begins_at_the_backbone_and_moves_the_whole_sum(intervention, learned):
    config = small(method="alore", intervention=intervention)
    federation = assemble(config)
    spec, X = federation.model.spec, start(federation, config)
    begun, after = spec.named(X[0]), spec.named(learned(federation, config, X)[0])
    assert all(not tensor.any() for name, tensor in begun.items() if name.rsplit(".", 1)[-1] in ("Q", "c"))
    assert all(not torch.equal(after[name], begun[name]) for name in begun)


@BOTH
def test_the_server_takes_the_mean_of_each_factor(uneven, learned, intervention):
    config = small(method="alore", intervention=intervention)
    federation = uneven(config)
    X = start(federation, config)
    sent, (found, _) = learned(federation, config, X), federated_round(federation, config, X, 1)
    mean = torch.tensor([8, 5, 2, 8], dtype=torch.float64) / 23 @ sent.double()
    torch.testing.assert_close(found.double(), mean.expand(4, -1), atol=1e-6, rtol=1e-5)


def test_the_mean_of_the_factors_is_not_the_mean_of_the_sums():
    lora = {"intervention": "lora", "init": "random", "lr": 0.05}
    config = small(method="alore", **lora)
    states = method_facts.learned(config)
    missed = size = 0.0
    for target in ("q_proj.", "v_proj."):
        for place in range(2):
            each = [{n: state[f"{target}{n}"][place].double() for n in "SPQ"} for state in states]
            mean = {n: sum(phi[n] for phi in each) / 4 for n in "SPQ"}
            exact = sum(map(dense, each)) / 4
            missed, size = missed + np.sum((dense(mean) - exact) ** 2), size + np.sum(exact**2)
    assert method_facts.average_gap(config) == pytest.approx((missed / size) ** 0.5, rel=1e-3)
    assert (missed / size) ** 0.5 > 0.05


@BOTH
def test_it_bears_absence_and_resumes_to_the_same_bits(tmp_path, intervention):
    config = thinned(method="alore", intervention=intervention)
    whole = finish(config)
    stopped(config, tmp_path, 1)
    same(finish(config, tmp_path), whole)


def test_blocks_that_do_not_divide_a_width_are_refused_and_nothing_stays_private():
    for fields in ({}, {"intervention": "lora"}):
        with pytest.raises(ConfigError, match="alore_blocks must divide the widths 64 and"):
            finish(small(method="alore", alore_blocks=3, **fields))
    assert method_facts.kept(run(small(method="alore", intervention="lora", rounds=0), progress=False)) == "nothing"
