"""The formulas, written out; the identity start; the parameter counts that the papers print."""

import pytest
import torch

from fedreft_lib.core.interventions import INTERVENTIONS, DiReFT, LoReFT
from fedreft_lib.core.rotation import orthonormality_error
from fedreft_lib.core.sites import Sites
from fedreft_lib.core.state import Spec
from fedreft_lib.errors import ConfigError
from fedreft_lib.model.tokens import Tokens
from tests.helpers.models import random_backbone, steered


def made(intervention, sites=1, r=3, d=8, start="random", seed=0):
    return intervention.init(sites, r, d, start=start, generator=torch.Generator().manual_seed(seed))


def written_out(name, h, phi):
    """The six formulas of the module's table, in float64, for h (n, d) and one site."""
    h, R, b = h.double(), phi["R"].double(), phi["b"].double()
    Rh = torch.einsum("rd,nd->nr", R, h)
    Wh = torch.einsum("rd,nd->nr", phi["W"].double(), h) if "W" in phi else None
    inner = {
        "loreft": lambda: Wh + b - Rh,
        "direft": lambda: Wh + b,
        "noreft": lambda: Wh + b - Rh,
        "orthonormal_direft": lambda: Wh + b,
        "consreft": lambda: b - Rh,
        "lobireft": lambda: b.expand_as(Rh),
    }[name]()
    return h + torch.einsum("rd,nr->nd", R, inner)


@pytest.mark.parametrize("name", INTERVENTIONS)
@pytest.mark.parametrize(("r", "d"), [(1, 4), (3, 8), (8, 8)])
def test_an_edit_is_the_formula_written_out(name, r, d):
    intervention = INTERVENTIONS[name]
    phi = {n: t[0] for n, t in made(intervention, r=r, d=d).items()}
    h = torch.randn(11, d)
    torch.testing.assert_close(intervention.edit(h, phi).double(), written_out(name, h, phi), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", INTERVENTIONS)
def test_every_edit_is_a_map_with_an_offset(name):
    phi = {n: t[0] for n, t in made(INTERVENTIONS[name]).items()}
    h, found = torch.randn(11, 8), INTERVENTIONS[name].as_map(phi)
    expected = h + h @ (found["B"] @ found["A"]).T + found["c"]
    torch.testing.assert_close(expected.double(), written_out(name, h, phi), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", INTERVENTIONS)
def test_rows_that_carry_their_own_states_equal_one_after_another(name):
    intervention = INTERVENTIONS[name]
    phi = made(intervention, sites=5)  # five states, one for each row of the batch
    h = torch.randn(5, 7, 8)
    together = intervention.edit(h, phi)
    for row in range(5):
        alone = intervention.edit(h[row], {n: t[row] for n, t in phi.items()})
        torch.testing.assert_close(together[row], alone, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", [name for name in INTERVENTIONS if name not in ("consreft",)])
def test_the_identity_start_leaves_hidden_states_as_they_are_to_the_bit(name, dtype):
    intervention = INTERVENTIONS[name]
    phi = {n: t[0] for n, t in made(intervention, start="identity").items()}
    h = (100 * torch.randn(50, 8)).to(dtype)
    edited = intervention.edit(h, phi)
    assert edited.dtype == dtype and torch.equal(edited, h)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("intervention", [LoReFT, DiReFT], ids=["loreft", "direft"])
def test_a_whole_model_at_the_identity_start_is_the_bare_backbone_to_the_bit(intervention, dtype):
    backbone = random_backbone()
    backbone.model.to(dtype)
    model = steered(backbone, intervention, layers=(0, 1, 2))
    batch = model.batch([Tokens(tuple(range(5, 17)), 9, (3,)), Tokens(tuple(range(30, 36)), 4, (2,))])
    assert torch.equal(model.hidden_states(batch, model.start("identity", 0)), model.hidden_states(batch, None))
    assert not torch.equal(model.hidden_states(batch, model.start("random", 0)), model.hidden_states(batch, None))


def test_consreft_has_no_identity_start_and_says_so():
    with pytest.raises(ConfigError, match='use init="random"'):
        made(INTERVENTIONS["consreft"], start="identity")


@pytest.mark.parametrize("start", ["identity", "random"])
@pytest.mark.parametrize("name", INTERVENTIONS)
def test_a_start_has_the_shapes_that_it_announces_and_is_a_function_of_the_seed(name, start):
    intervention = INTERVENTIONS[name]
    if (name, start) == ("consreft", "identity"):
        return
    phi = made(intervention, sites=4, start=start)
    assert {n: tuple(t.shape) for n, t in phi.items()} == intervention.shapes(4, 3, 8)
    assert list(phi) == list(intervention.shapes(4, 3, 8))
    assert all(t.dtype == torch.float32 for t in phi.values())
    again, other = made(intervention, sites=4, start=start), made(intervention, sites=4, start=start, seed=1)
    assert all(torch.equal(again[n], phi[n]) for n in phi)
    assert not torch.equal(other["R"], phi["R"])
    if intervention.orthonormal:
        assert orthonormality_error(phi["R"]) < 1e-5


def test_the_random_start_has_the_spread_of_pyrefts_linear_layer():
    phi = made(LoReFT, sites=50, r=4, d=64)
    bound = 1 / 64**0.5  # torch.nn.Linear draws weight and bias uniformly in +-1/sqrt(d)
    reference = torch.nn.Linear(64, 200)
    for name, theirs in (("W", reference.weight), ("b", reference.bias)):
        assert phi[name].abs().max() <= bound and theirs.detach().abs().max() <= bound
        assert float(phi[name].std()) == pytest.approx(bound / 3**0.5, rel=0.1)


def test_drawing_a_start_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    made(LoReFT)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("name", INTERVENTIONS)
def test_gradients_are_those_of_finite_differences(name):
    intervention = INTERVENTIONS[name]
    phi = {n: t[0].double().requires_grad_() for n, t in made(intervention).items()}
    h = torch.randn(4, 8, dtype=torch.float64, requires_grad=True)
    names = list(phi)
    assert torch.autograd.gradcheck(
        lambda h, *tensors: intervention.edit(h, dict(zip(names, tensors, strict=True))), (h, *phi.values())
    )


# ---- published counts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layers", "d", "rank", "prefix", "suffix", "tied", "published"), [
    (12, 768, 1, 3, 0, False, 18_444),  # ReFT, GLUE: RoBERTa-base
    (24, 1024, 1, 3, 0, False, 49_176),  # ReFT and FedReFT, GLUE: RoBERTa-large
    (32, 4096, 8, 7, 7, True, 2_097_408),  # ReFT, commonsense: LLaMA-7B
    (32, 4096, 8, 7, 7, False, 4_194_816),  # FedReFT, GSM8K: LLaMA-3-8B, printed 4.19 M
    (28, 3072, 8, 7, 7, False, 2_752_960),  # FedReFT, commonsense: LLaMA-3.2-3B, printed 2.75 M
    (28, 3072, 32, 7, 7, False, 11_011_840),  # the same at rank 32, printed 11.01 M
])  # fmt: skip
@pytest.mark.parametrize("intervention", [LoReFT, DiReFT], ids=["loreft", "direft"])
def test_a_state_has_as_many_numbers_as_the_papers_print(
    intervention, layers, d, rank, prefix, suffix, tied, published
):
    sites = Sites(tuple(range(layers)), prefix, suffix, tied)
    assert Spec.of(intervention.shapes(len(sites), rank, d)).size == published


def test_the_frozen_backbone_adds_nothing_to_the_count():
    model = steered(random_backbone(d=32), LoReFT, layers=(0, 2), rank=4)
    assert model.spec.size == sum(t.numel() for t in model.start("random", 0).values()) == 4 * (2 * 4 * 32 + 4)
