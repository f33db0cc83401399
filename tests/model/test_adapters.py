"""An adapter acts where it says, with or without cached hidden states, and leaves the model as it was."""

import dataclasses

import pytest
import torch

from fedreft_lib.core.interventions import LoReFT
from fedreft_lib.core.sites import Sites
from fedreft_lib.errors import ConfigError
from fedreft_lib.federation.assembly import assemble
from fedreft_lib.methods.branches import Blend
from fedreft_lib.methods.lora import LoRA
from fedreft_lib.model import scoring
from fedreft_lib.model.adapters import AtSites, InLinears
from fedreft_lib.model.backbone import load_backbone
from fedreft_lib.model.steered import SteeredModel
from fedreft_lib.model.tokens import Tokens
from tests.helpers.federations import small
from tests.helpers.models import random_backbone

CLOSE = {"atol": 2e-5, "rtol": 1e-4}


def with_lora(backbone, layers, targets=("q_proj", "v_proj"), rank=2, kind=None):
    return SteeredModel(backbone, InLinears.of(backbone, kind or LoRA(4.0), layers, rank, targets))


def sequences(seed=0, sizes=((9, 3), (14, 2), (6, 4)), answers=True):
    generator = torch.Generator().manual_seed(seed)
    ids = [tuple(torch.randint(5, 250, (p + a,), generator=generator).tolist()) for p, a in sizes]
    if answers:
        return [Tokens(each, p, (a,)) for each, (p, a) in zip(ids, sizes, strict=True)]
    return [Tokens(each[:p], p) for each, (p, _) in zip(ids, sizes, strict=True)]


def merged(model, state):
    """A context in which the frozen weights themselves hold s B A, which is what the additions stand for."""

    class Merged:
        def shift(self, sign):
            for name, place in model.adapter.linears.items():
                modules = place.modules(model.backbone.layers)
                for module, A, B in zip(modules, state[f"{name}.A"], state[f"{name}.B"], strict=True):
                    module.weight.data += sign * 4.0 * B @ A

        def __enter__(self):
            self.before = [p.clone() for p in model.backbone.model.parameters()]
            self.shift(1)

        def __exit__(self, *_):
            for parameter, old in zip(model.backbone.model.parameters(), self.before, strict=True):
                parameter.data.copy_(old)

    return Merged()


# ---- lora in a model ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "targets", [("q_proj", "v_proj"), ("k_proj",), ("o_proj", "down_proj"), ("gate_proj", "up_proj")], ids="+".join
)
@pytest.mark.parametrize("layers", [(0, 1, 2), (1,)], ids=["all layers", "one"])
def test_additions_are_weights_added(targets, layers):
    model = with_lora(random_backbone(), layers, targets)
    state, batch = model.start("random", 1), model.batch(sequences())
    with merged(model, state):
        expected, _ = model.answer_logprobs(batch, None)
    torch.testing.assert_close(model.answer_logprobs(batch, state)[0], expected, atol=1e-3, rtol=1e-3)
    assert float((model.answer_logprobs(batch, None)[0] - expected).abs().max()) > 0.01


def test_only_the_chosen_layers_are_touched():
    model = with_lora(random_backbone(), (1,))
    state, batch, seen = model.start("random", 1), model.batch(sequences()), []
    handles = [
        layer.register_forward_hook(lambda m, a, out: seen.append(out[0] if isinstance(out, tuple) else out))
        for layer in model.backbone.layers
    ]
    model.hidden_states(batch, state)
    model.hidden_states(batch, None)
    for handle in handles:
        handle.remove()
    assert torch.equal(seen[0], seen[3]) and not torch.equal(seen[1], seen[4])
    assert model.adapter.linears["v_proj"].modules(model.backbone.layers) == [model.backbone.layers[1].self_attn.v_proj]


def test_the_model_is_left_without_hooks_even_after_an_error():
    model = with_lora(random_backbone(), (0, 2))
    state = model.start("random", 1)
    with (
        pytest.raises(KeyError),
        model.adapter.attached(model.backbone.layers, state, None or model.batch(sequences())),
    ):
        raise KeyError
    assert not any(module._forward_hooks for module in model.backbone.model.modules())


@pytest.mark.parametrize("layers", ["2-3", "1-3"], ids=["cached", "not cached"])
def test_lora_on_cached_hidden_states_is_lora_on_the_whole_model(layers):
    config = small(intervention="lora", layers=layers)
    federation = assemble(config)
    model, train = federation.model, federation.clients[0].train
    assert (train.hidden is not None) == (layers == "2-3") and model.adapter.below == int(layers[0]) - 1
    state = model.start("random", 1)
    state = {name: tensor.requires_grad_() for name, tensor in state.items()}
    found = train.losses(model, range(8), state)
    expected = dataclasses.replace(train, hidden=None).losses(model, range(8), state)
    torch.testing.assert_close(found, expected, **CLOSE)
    for one, other in zip(
        torch.autograd.grad(found.sum(), list(state.values())),
        torch.autograd.grad(expected.sum(), list(state.values())),
        strict=True,
    ):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


def test_a_generation_has_the_additions_at_every_token_it_writes():
    model = with_lora(random_backbone(seed=3), (0, 2))
    state, prompts = model.start("random", 1), sequences(answers=False)
    found = model.generate(prompts, state, 12)
    with merged(model, state):
        expected = model.generate(prompts, None, 12)
    assert found == expected != model.generate(prompts, None, 12)
    decode = model.backbone.tokenizer.decode
    for prompt, text in zip(prompts, found, strict=True):  # without a cache, one token after the other
        ids = list(prompt.ids)
        for _ in range(12):
            hidden = model.hidden_states(model.batch([Tokens(tuple(ids), len(ids))]), state)
            chosen = int(model.backbone.model.get_output_embeddings()(hidden[0, -1]).argmax())
            if chosen == model.backbone.tokenizer.eos_token_id:
                break
            ids.append(chosen)
        assert decode(ids[len(prompt.ids) :], skip_special_tokens=True) == text


def test_a_target_that_is_not_there_is_refused_with_the_nearest_that_is():
    backbone = load_backbone("tiny-llama")
    with pytest.raises(ConfigError, match="no linear module 'q_prj'; did you mean 'q_proj'|q_proj"):
        InLinears.of(backbone, LoRA(1.0), (0,), 2, ["q_prj"])
    with pytest.raises(ConfigError, match="'self_attn'"):  # there, but not linear
        InLinears.of(backbone, LoRA(1.0), (0,), 2, ["self_attn"])
    with pytest.raises(ConfigError, match="'query'"):
        assemble(small(intervention="lora", targets=["query"]))


@pytest.mark.parametrize("name", ["roberta", "bert"])
def test_an_encoders_modules_go_by_llamas_names_and_by_their_own(name):
    backbone = random_backbone(name)
    one = with_lora(backbone, (0, 2), ("q_proj", "v_proj"))
    other = with_lora(backbone, (0, 2), ("query", "value"))
    for ours, theirs in (("q_proj", "query"), ("v_proj", "value")):
        found = one.adapter.linears[ours].modules(backbone.layers)
        assert found == other.adapter.linears[theirs].modules(backbone.layers)
        assert found == [getattr(backbone.layers[i].attention.self, theirs) for i in (0, 2)]


# ---- both kinds of adapter ------------------------------------------------------------------------------------------


def blended(backbone, kind):
    if kind == "lora":
        return with_lora(backbone, (1, 2), kind=Blend(LoRA(4.0)))
    return SteeredModel(backbone, AtSites(Blend(LoReFT), Sites((1, 2), 2, 2), 2, backbone.hidden_size))


def alone(model, state, name):
    """The state of one branch in a model without branches."""
    adapter = dataclasses.replace(model.adapter, kind=model.adapter.kind.kind)
    return SteeredModel(model.backbone, adapter), {n.replace(f"{name}.", ""): t for n, t in state.items() if name in n}


@pytest.mark.parametrize("kind", ["loreft", "lora"])
def test_each_row_of_a_batch_is_blended_in_its_own_share(kind):
    model = blended(random_backbone(), kind)
    generator = torch.Generator().manual_seed(4)
    state = {n: t + 0.3 * torch.randn(t.shape, generator=generator) for n, t in model.start("random", 1).items()}
    batch = dataclasses.replace(model.batch(sequences()), share=torch.tensor([0.0, 1.0, 0.4]))
    found = model.hidden_states(batch, state)
    for row, name in ((0, "global"), (1, "local")):
        single, own = alone(model, state, name)
        expected = single.hidden_states(model.batch(sequences()), own)
        torch.testing.assert_close(found[row], expected[row], **CLOSE)
    for row, share in enumerate((0.0, 1.0, 0.4)):
        one = model.batch([sequences()[row]])
        apart = model.hidden_states(dataclasses.replace(one, share=torch.tensor([share])), state)
        torch.testing.assert_close(found[row, : apart.shape[1]], apart[0], **CLOSE)
    half = model.hidden_states(model.batch(sequences()), state)  # without shares: the kind's own, one half
    asked = model.hidden_states(dataclasses.replace(batch, share=torch.full((3,), 0.5)), state)
    torch.testing.assert_close(half, asked, **CLOSE)


@pytest.mark.parametrize("kind", ["loreft", "lora"])
def test_a_generation_is_blended_in_each_prompts_share(kind):
    model = blended(random_backbone(seed=3), kind)
    generator = torch.Generator().manual_seed(4)
    state = {n: t + 0.5 * torch.randn(t.shape, generator=generator) for n, t in model.start("random", 1).items()}
    prompts = sequences(answers=False)
    found = model.generate(prompts, state, 8, share=torch.tensor([0.0, 1.0, 0.0]))
    ends = {name: alone(model, state, name) for name in ("global", "local")}
    texts = {name: single.generate(prompts, own, 8) for name, (single, own) in ends.items()}
    assert found == [texts["global"][0], texts["local"][1], texts["global"][2]]
    assert texts["global"] != texts["local"]


@pytest.mark.parametrize("intervention", ["loreft", "lora"])
def test_a_state_is_what_its_shapes_say(intervention):
    federation = assemble(small(intervention=intervention))
    state = federation.model.start("random", 1)
    assert {name: tuple(t.shape) for name, t in state.items()} == federation.model.adapter.shapes
    assert set(federation.model.adapter.rotated) == ({"R"} if intervention == "loreft" else set())
    assert scoring.loss(federation.model, state, federation.clients[0].held_out, 4) > 0
