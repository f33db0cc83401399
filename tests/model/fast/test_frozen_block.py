"""Frozen blocks in few passes compute what the blocks' own forward passes do, and leave all others alone."""

from contextlib import contextmanager
from functools import cache
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedreft_lib.core.interventions import DiReFT, LoReFT
from fedreft_lib.methods.lora import LoRA
from fedreft_lib.model.adapters import InLinears
from fedreft_lib.model.fast import frozen_block, packed_attention
from fedreft_lib.model.fast.frozen_block import FAMILIES, FeedForward
from fedreft_lib.model.fast.packed_attention import GIVEN, install
from fedreft_lib.model.steered import SteeredModel
from tests.helpers.models import random_backbone, steered
from tests.model.fast.test_textbook_attention import ULP, error
from tests.model.test_steered import other_backbone, some_sequences

pytestmark = pytest.mark.skipif(not GIVEN, reason="this transformers takes no attention from outside: all is padded")

LAYERS = 4
DTYPES = (torch.float32, torch.bfloat16)


@cache
def backbone_of(family, dtype=torch.float32, **more):
    """A random model of four blocks, also random where models begin with ones and zeros."""
    backbone = other_backbone(random_backbone(), family, **more)
    for weight in (p for p in backbone.model.parameters() if p.dim() == 1):
        weight += 0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel()))
    install(backbone.model)
    backbone.model.to(dtype)
    return backbone


@contextmanager
def plain():
    """Every block in its own way, and torch's own attention."""
    with (
        mock.patch.object(frozen_block, "known", lambda block: False),
        mock.patch.object(packed_attention, "EXPLICIT", 0),
    ):
        yield


def counted():
    """Counts the blocks that are computed in few passes."""
    return mock.patch.object(FeedForward, "apply", wraps=FeedForward.apply)


def reading(model, sequences, state, owners=None, cached=False):
    """Last hidden states, log-probabilities of answers, and the gradients of a random sum of them."""
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in state.items()}
    batch = model.batch(sequences, owners=owners, hidden=model.hidden_below(sequences) if cached else None)
    assert batch.packed
    found = [model.hidden_states(batch, leaves)[batch.mask.bool()], model.answer_logprobs(batch, leaves)[0]]
    generator = torch.Generator().manual_seed(0)
    total = sum((each.float() * torch.randn(each.shape, generator=generator)).sum() for each in found)
    return [each.detach() for each in found] + list(torch.autograd.grad(total, list(leaves.values())))


@st.composite
def cases(draw):
    """A model's family and adapter, texts, and the owner of each where there are several states."""
    lengths = draw(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 4)), min_size=1, max_size=5))
    layers = tuple(sorted(draw(st.sets(st.integers(0, LAYERS - 1), min_size=1))))
    sites = {name: draw(st.integers(0, 5)) for name in ("prefix", "suffix")}
    return {
        "family": draw(st.sampled_from(FAMILIES)),
        "adapter": {
            "intervention": draw(st.sampled_from([LoReFT, DiReFT])), "layers": layers, "rank": draw(st.integers(1, 6)),
            "tied": draw(st.booleans()), **(sites if any(sites.values()) else {"prefix": 1, "suffix": 0}),
        },
        "sequences": some_sequences(lengths, draw(st.integers(0, 99))),
        "owners": draw(st.none() | st.lists(st.integers(0, 2), min_size=len(lengths), max_size=len(lengths))),
        "cached": draw(st.booleans()) and layers[0] > 0,
    }  # fmt: skip


def read(case, dtype):
    model = steered(backbone_of(case["family"], dtype), **case["adapter"])
    states = [model.start("random", seed) for seed in range(3)]
    owned = case["owners"] is not None
    state = {name: torch.stack([each[name] for each in states]) if owned else states[0][name] for name in states[0]}
    owners = torch.tensor(case["owners"]) if owned else None
    return reading(model, case["sequences"], state, owners, case["cached"])


def size(x):
    return float(x.double().norm())


@settings(max_examples=25, deadline=None, derandomize=True)
@given(case=cases())
def test_outputs_and_gradients_are_those_of_the_plain_blocks(case):
    with counted() as calls:
        ours = read(case, torch.float32)
    assert calls.call_count >= LAYERS - case["adapter"]["layers"][0] - 1
    with plain(), counted() as calls:
        theirs = read(case, torch.float32)
    assert not calls.called
    for found, wanted in zip(ours, theirs, strict=True):
        assert size(found - wanted) <= 2e-5 * size(wanted) + 1e-5


@settings(max_examples=15, deadline=None, derandomize=True)
@given(case=cases())
def test_in_bfloat16_they_are_as_exact_as_the_plain_blocks(case):
    with plain():
        wanted, theirs = read(case, torch.float32), read(case, torch.bfloat16)
    ours = read(case, torch.bfloat16)
    for found, other, exact in zip(ours, theirs, wanted, strict=True):
        assert size(found - exact) <= 2.5 * size(other - exact) + 8 * ULP * size(exact)  # one draw of rounding errors


def test_in_bfloat16_rounding_is_on_average_not_larger_than_in_the_plain_blocks():
    exact_model, model = (steered(backbone_of("Llama", dtype), LoReFT, layers=range(LAYERS)) for dtype in DTYPES)
    ratios = []
    for seed in range(8):  # many draws of rounding errors
        sequences, state = some_sequences([(n, 3) for n in range(20, 84, 16)], seed), model.start("random", seed)
        with plain():
            wanted, theirs = reading(exact_model, sequences, state), reading(model, sequences, state)
        each = zip(reading(model, sequences, state), theirs, wanted, strict=True)
        ratios.append([error(found, exact) / error(other, exact) for found, other, exact in each])
    assert float(torch.tensor(ratios).log().mean().exp()) < 1.1  # 0.92


# ---- where it does not apply ----------------------------------------------------------------------------------------


def calls_on(backbone):
    """How many blocks of a pass are computed in few passes."""
    model = steered(backbone, LoReFT)
    batch = model.batch(some_sequences())
    with counted() as calls:
        model.hidden_states(batch, model.start("random", 0))
    return calls.call_count


def test_a_block_of_another_class_or_with_another_activation_stays_plain():
    assert calls_on(backbone_of("Llama")) == LAYERS
    assert calls_on(backbone_of("Qwen3", head_dim=8)) == 0
    assert calls_on(backbone_of("Llama", hidden_act="gelu")) == 0


def test_a_block_whose_weights_train_stays_plain():
    backbone = other_backbone(random_backbone(), "Llama")
    install(backbone.model)
    backbone.layers[1].mlp.up_proj.weight.requires_grad_()
    assert calls_on(backbone) == LAYERS - 1


def test_with_additions_in_some_blocks_all_stay_plain_so_that_an_addition_of_nothing_changes_no_bit():
    backbone = backbone_of("Llama")
    model = SteeredModel(backbone, InLinears.of(backbone, LoRA(2.0), (1, 2), 2, ("q_proj", "down_proj")))
    batch = model.batch(some_sequences())
    with counted() as calls:
        found = model.hidden_states(batch, model.start("identity", 0))
        assert torch.equal(model.hidden_states(batch, None), found)
    assert not calls.called


@pytest.mark.parametrize("family", FAMILIES)
def test_with_additions_in_attention_the_second_halves_are_in_few_passes(family):
    def adapted(dtype):
        backbone = backbone_of(family, dtype)
        return SteeredModel(backbone, InLinears.of(backbone, LoRA(2.0), (1, 2), 2, ("q_proj", "v_proj", "o_proj")))

    exact, model = map(adapted, DTYPES)
    sequences, state = some_sequences(), model.start("random", 0)
    with plain(), counted() as calls:
        wanted, theirs = reading(exact, sequences, state), reading(model, sequences, state)
    assert not calls.called
    with counted() as calls:
        ours = reading(model, sequences, state)
    assert calls.call_count == 2 * LAYERS  # two passes
    for found, other, right in zip(ours, theirs, wanted, strict=True):
        assert size(found - right) <= 2.5 * size(other - right) + 8 * ULP * size(right)
    for found, right in zip(reading(exact, sequences, state), wanted, strict=True):
        assert size(found - right) <= 2e-5 * size(right) + 1e-5
    batch = model.batch(sequences)
    assert torch.equal(model.hidden_states(batch, None), model.hidden_states(batch, model.start("identity", 0)))


@pytest.mark.parametrize("where", ["", "self_attn", "mlp.up_proj", "post_attention_layernorm"])
def test_a_block_of_which_somebody_replaced_a_part_stays_plain(where):
    backbone = backbone_of("Llama")
    module = backbone.layers[2].get_submodule(where)
    with mock.patch.object(module, "forward", module.forward):
        assert calls_on(backbone) == LAYERS - 1
    handle = module.register_forward_hook(lambda module, args, output: output)
    assert calls_on(backbone) == (LAYERS - 1 if where else LAYERS)  # of a block itself it only changes the output
    handle.remove()


def test_padded_batches_and_generation_keep_their_bits():
    model = steered(backbone_of("Llama"), LoReFT)
    prompts, state = some_sequences(((14, 0), (3, 0))), model.start("random", 0)
    batch = model.batch(prompts, side="left")
    with counted() as calls:
        found = model.hidden_states(batch, state)
    assert not calls.called
    with plain():
        assert torch.equal(model.hidden_states(batch, state), found)


def test_afterwards_every_block_has_its_own_forward_pass_again():
    model = steered(backbone_of("Llama"), LoReFT)
    batch = model.batch(some_sequences())
    with pytest.raises(ZeroDivisionError), model.blocks(batch):
        assert all("forward" in vars(block) for block in model.backbone.layers)
        raise ZeroDivisionError
    assert not any("forward" in vars(block) for block in model.backbone.layers)
