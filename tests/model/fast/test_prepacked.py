"""Weights packed ahead: products as torch's own, of the weights as they are now."""

import pytest
import torch
from torch import nn

from fedreft_lib import AtSites, LoReFT, Sites, load_backbone
from fedreft_lib.model.fast import prepacked
from fedreft_lib.model.fast.prepacked import PackedWeights
from fedreft_lib.model.steered import SteeredModel
from fedreft_lib.model.tokens import Tokens

pytestmark = pytest.mark.skipif(not prepacked._supported(), reason="this CPU or this torch packs no bfloat16 weights")


def linears(bias: bool = True, dtype: torch.dtype = torch.bfloat16) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(48, 96, bias=bias), nn.Linear(96, 17, bias=bias)).to(dtype).requires_grad_(False)


def by_hand(module: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    bias = 0 if module.bias is None else module.bias.double()
    return x.double() @ module.weight.double().T + bias


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found.double(), expected, rtol=2**-7, atol=2**-7)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1,), (4,), (16,), (3, 5), (200,)])
@torch.no_grad()
def test_products_are_those_of_the_weights(bias, shape):
    model, x = linears(bias), torch.randn(*shape, 48, dtype=torch.bfloat16)
    packed, module = PackedWeights(model), model[0]
    assert set(packed.forwards) == set(model)
    with packed.in_use():
        found = module(x)
    close(found, by_hand(module, x))
    assert found.dtype == torch.bfloat16 and found.shape == (*shape, 96)
    with packed.in_use():
        turned = module(x.flatten(0, -2).T.contiguous().T)  # of another layout in memory
        assert torch.equal(turned, found.flatten(0, -2)) and module(x[:0]).shape == (0, *shape[1:], 96)


@torch.no_grad()
def test_a_changed_weight_is_packed_anew():
    model, x = linears(), torch.randn(4, 48, dtype=torch.bfloat16)
    module = model[0]

    def found() -> torch.Tensor:
        with PackedWeights(model).in_use():
            return module(x)

    first = prepacked._KEPT.get(module)
    close(found(), by_hand(module, x))
    kept = prepacked._KEPT[module]
    close(found(), by_hand(module, x))
    assert first is None and prepacked._KEPT[module] is kept  # packed once
    for change in (
        lambda: module.weight.mul_(-2),
        lambda: setattr(module.weight, "data", torch.randn(96, 48, dtype=torch.bfloat16)),
        lambda: setattr(module, "weight", nn.Parameter(torch.randn(96, 48, dtype=torch.bfloat16))),
        lambda: module.load_state_dict(linears()[0].state_dict()),
        lambda: module.bias.add_(3),
    ):
        change()
        close(found(), by_hand(module, x))


@torch.no_grad()
def test_the_copy_goes_with_its_module():
    before, model = len(prepacked._KEPT), linears()
    packed = PackedWeights(model)
    assert len(prepacked._KEPT) == before + 2
    del packed, model
    assert len(prepacked._KEPT) == before


def test_modules_are_as_before_afterwards_and_hooks_still_run():
    model, x, seen = linears(), torch.randn(4, 48, dtype=torch.bfloat16), []
    model[0].register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.no_grad(), pytest.raises(KeyboardInterrupt), PackedWeights(model).in_use():
        assert "forward" in vars(model[0]) and torch.equal(model[0](x), seen[0])
        raise KeyboardInterrupt
    assert "forward" not in vars(model[0]) and "forward" not in vars(model[1])


def test_gradients_go_through_torchs_own_products():
    model, x = linears(), torch.randn(4, 48, dtype=torch.bfloat16, requires_grad=True)
    with PackedWeights(model).in_use():
        model[0](x).sum().backward()
    close(x.grad, model[0].weight.double().sum(0).expand(4, 48))


def test_what_is_left_alone(monkeypatch):
    class Own(nn.Linear):
        pass

    changed = nn.Linear(8, 8, dtype=torch.bfloat16)
    changed.forward = lambda x: x
    assert not PackedWeights(nn.Sequential(Own(8, 8, dtype=torch.bfloat16), changed)).forwards
    assert not PackedWeights(linears(dtype=torch.float32)).forwards
    assert not PackedWeights(linears().to("meta")).forwards
    monkeypatch.setattr(prepacked, "LIMIT", 100)
    assert not PackedWeights(linears()).forwards


@torch.no_grad()
def test_a_model_goes_on_with_the_same_logits(monkeypatch):
    backbone = load_backbone("tiny-llama", dtype="bfloat16", device="cpu")
    model = SteeredModel(backbone, AtSites(LoReFT, Sites((1, 2), prefix=3, suffix=3), rank=4, d=64))
    prompts, state = [Tokens((5, 6, 7, 8, 9), 5), Tokens((3, 4, 9), 3)], model.start("random", 0)

    def logits() -> torch.Tensor:
        text, found = model.continuation(prompts, state, 16), []
        for token in (5, 8, 2):
            found.append(text.logits())
            text.go_on(torch.tensor([token, token + 1]))
        return torch.stack(found)

    packed = logits()
    assert backbone.layers[0].mlp.up_proj in prepacked._KEPT
    monkeypatch.setattr(prepacked, "LIMIT", 0)
    torch.testing.assert_close(packed, logits(), rtol=0.02, atol=0.02)
