"""The last block computes for the tokens that are read alone, and they are what the whole block gives them."""

import contextlib
from unittest import mock

import pytest
import torch
import transformers

from fedreft_lib.core.interventions import LoReFT
from fedreft_lib.model.fast import last_block
from fedreft_lib.model.fast.packed_attention import GIVEN, LLAMA_LIKE
from fedreft_lib.model.tokens import Tokens
from fedreft_lib.model.ways import Ways
from tests.helpers.models import random_backbone, random_state, steered
from tests.model.fast.test_packed_attention import build
from tests.model.test_steered import forked_sequences, some_sequences

FAMILIES = [kind for kind in ("llama", "Mistral", "Qwen2", "Qwen3") if hasattr(transformers, f"{kind.title()}Config")]


def test_every_family_is_tried():
    known = {name for name in LLAMA_LIKE if hasattr(transformers.models, name)}
    assert known == {kind.lower() for kind in FAMILIES}


def whole():
    """Nothing left out, as a reference."""
    return mock.patch.object(last_block, "read_at", lambda *_: contextlib.nullcontext())


def losses_and_gradients(model, batch, state):
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in state.items()}
    logprobs, answers = model.answer_logprobs(batch, leaves)
    logprobs.mean().backward()
    return logprobs.detach(), answers, {name: leaf.grad for name, leaf in leaves.items()}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("sequences", [some_sequences(), forked_sequences()], ids=["one answer", "several answers"])
@pytest.mark.parametrize("layers", [(0, 2), (2,)], ids=str)
def test_logprobs_and_gradients_are_those_of_the_whole_block(family, packed, sequences, layers):
    if packed and not GIVEN:
        pytest.skip("this transformers takes no attention from outside: all is padded")
    model = steered(build(family), LoReFT, layers=layers)
    batch = model.read_by(Ways("packed" if packed else "together")).batch(sequences)
    state = random_state(model)
    found, answers, gradients = losses_and_gradients(model, batch, state)
    with whole():
        expected, expected_answers, expected_gradients = losses_and_gradients(model, batch, state)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(answers, expected_answers)
    for name in state:
        torch.testing.assert_close(gradients[name], expected_gradients[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("seed", range(20))
def test_on_random_shapes(seed):
    generator = torch.Generator().manual_seed(seed)

    def number(low, high):
        return int(torch.randint(low, high + 1, (), generator=generator))

    sequences = []
    for _ in range(number(1, 6)):
        prompt, answers = number(1, 30), tuple(number(1, 5) for _ in range(number(1, 4)))
        ids = torch.randint(5, 250, (prompt + sum(answers),), generator=generator)
        sequences.append(Tokens(tuple(ids.tolist()), prompt, answers))
    model = steered(random_backbone(), LoReFT, layers=(number(0, 2),), prefix=number(1, 4), suffix=number(0, 4))
    batch, state = model.batch(sequences), random_state(model)
    found, _, gradients = losses_and_gradients(model, batch, state)
    with whole():
        expected, _, expected_gradients = losses_and_gradients(model, batch, state)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for name in state:
        torch.testing.assert_close(gradients[name], expected_gradients[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_its_own_modules_see_each_token_that_is_read_once(family):
    model, seen = steered(build(family), LoReFT), []
    block = model.backbone.layers[-1]
    batch = model.batch(forked_sequences())
    sources = {(row, source) for row, source, _, _ in batch.targets.tolist()}
    with contextlib.ExitStack() as stack:
        for name in last_block.OWN:
            module = block.get_submodule(name)
            inner = getattr(module, "up_proj", module)
            original = inner.forward
            stack.enter_context(
                mock.patch.object(inner, "forward", lambda x, f=original: seen.append(x.shape[:-1].numel()) or f(x))
            )
        model.answer_logprobs(batch, None)
    rows = -(-len(sources) // 8) * 8
    assert seen == [rows] * len(last_block.OWN) and rows < int(batch.mask.sum())


def test_it_is_left_as_it_was_even_by_a_failure():
    model = steered(random_backbone(), LoReFT)
    block, batch = model.backbone.layers[-1], model.batch(some_sequences())
    model.answer_logprobs(batch, None)
    with mock.patch.object(block.mlp, "forward", side_effect=KeyError), pytest.raises(KeyError):
        model.answer_logprobs(batch, None)
    modules = [block.get_submodule(name) for name in last_block.OWN]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in modules)
    torch.testing.assert_close(model.hidden_states(batch, None), model.hidden_states(batch, {}))
