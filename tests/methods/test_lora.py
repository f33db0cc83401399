"""Same numbers in, same outputs, gradients and training as huggingface's peft."""

import copy
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.distributed.tensor  # noqa: F401 (peft takes it for granted, and older transformers do not import it)
from transformers import GPT2Config, GPT2LMHeadModel

from fedreft_lib import RunConfig, run
from fedreft_lib.core.training import batches
from fedreft_lib.errors import ConfigError, FedReFTError
from fedreft_lib.federation.assembly import assemble
from fedreft_lib.federation.local_clients import start
from fedreft_lib.federation.training import train_client as train
from fedreft_lib.methods.lora import LoRA, SmallLoRA, SmallLoReFT
from fedreft_lib.model.adapters import InLinears
from fedreft_lib.model.backbone import load_backbone
from fedreft_lib.model.encoding import AnswerSet
from fedreft_lib.model.linears import places
from fedreft_lib.model.steered import SteeredModel
from fedreft_lib.model.tokens import Tokens
from fedreft_lib.workbook.method_facts import kept
from tests.helpers.families import backbone_of
from tests.helpers.models import random_backbone

peft = pytest.importorskip("peft")
# peft asks transformers for a property by a name that is on its way out.
pefts_warning = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

RANK, ALPHA = 3, 8.0
LAYERS = (0, 2)
MODELS = {"llama": ("q_proj", "v_proj"), "roberta": ("query", "value"), "bert": ("query", "value")}


def with_lora(backbone, kind=None, layers=LAYERS, targets=("q_proj", "v_proj"), rank=RANK):
    """Always asked for by LLaMA's names; an encoder's own are `MODELS`."""
    return SteeredModel(backbone, InLinears.of(backbone, kind or LoRA(ALPHA / rank), layers, rank, targets))


def pefts(backbone, state, dropout=0.0):
    """peft's model over a copy of the backbone, and its parameters under our names: {"q_proj.A": [one a layer]}.

    state: the numbers they are given; None leaves those that peft draws.
    """
    names = MODELS[backbone.model.config.model_type]
    config = peft.LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules=list(names), layers_to_transform=list(LAYERS), lora_dropout=dropout
    )
    model = peft.get_peft_model(copy.deepcopy(backbone.model), config).eval()
    found = {}
    for ours, theirs in zip(("q_proj", "v_proj"), names, strict=True):
        modules = [m for path, m in model.named_modules() if path.endswith(f".{theirs}") and hasattr(m, "lora_A")]
        assert len(modules) == len(LAYERS)
        found[f"{ours}.A"] = [module.lora_A["default"].weight for module in modules]
        found[f"{ours}.B"] = [module.lora_B["default"].weight for module in modules]
    with torch.no_grad():
        for name, tensors in (state or {}).items():
            for parameter, tensor in zip(found[name], tensors, strict=True):
                parameter.copy_(tensor)
    return model, found


def some_batch(model, seed=0):
    """Prompts with an answer, or bare texts for an encoder; of several lengths."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [(9, 2), (14, 3), (6, 2)]
    encoder = model.backbone.kind == "encoder"
    ids = [tuple(torch.randint(5, 250, (p + a,), generator=generator).tolist()) for p, a in sizes]
    sequences = [
        Tokens(each, len(each)) if encoder else Tokens(each, p, (a,)) for each, (p, a) in zip(ids, sizes, strict=True)
    ]
    return model.batch(sequences)


def last_hidden(model, batch):
    """peft's last hidden states, of the tokens alone."""
    base = model.base_model.model.base_model
    return base(input_ids=batch.ids, attention_mask=batch.mask).last_hidden_state[batch.mask.bool()]


@pefts_warning
@pytest.mark.parametrize("name", MODELS)
def test_outputs_and_gradients_are_pefts(name):
    model = with_lora(random_backbone(name))
    state, batch = model.start("random", 1), some_batch(model)
    theirs, parameters = pefts(model.backbone, state)
    ours = {n: tensor.clone().requires_grad_() for n, tensor in state.items()}
    found, expected = model.hidden_states(batch, ours)[batch.mask.bool()], last_hidden(theirs, batch)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    assert float((found.detach() - model.hidden_states(batch, None)[batch.mask.bool()]).abs().max()) > 0.05

    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2))
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    for n, tensor in ours.items():
        for gradient, parameter in zip(tensor.grad, parameters[n], strict=True):
            torch.testing.assert_close(gradient, parameter.grad, atol=2e-4, rtol=1e-3)
            assert float(gradient.abs().max()) > 1e-3


@pefts_warning
def test_dropout_falls_on_what_pefts_falls_on():
    model = with_lora(random_backbone("llama"))
    state = model.start("random", 1)
    batch = replace(some_batch(model), order=None)  # dropout is drawn for padding, too, as in peft
    theirs, _ = pefts(model.backbone, state, dropout=0.4)
    theirs.train()  # a random LLaMA has no other dropout
    torch.manual_seed(5)
    found = model.hidden_states(batch, state, dropout=0.4)[batch.mask.bool()]
    torch.manual_seed(5)
    torch.testing.assert_close(found, last_hidden(theirs, batch), atol=2e-5, rtol=1e-4)
    assert float((found - model.hidden_states(batch, state)[batch.mask.bool()]).abs().max()) > 0.01


@pefts_warning
def test_some_steps_of_training_are_pefts():
    model = with_lora(random_backbone("llama"))
    state = model.start("identity", 1)
    generator = torch.Generator().manual_seed(0)
    texts = [tuple(torch.randint(5, 250, (8 + i % 3,), generator=generator).tolist()) for i in range(10)]
    data = AnswerSet([Tokens(ids, len(ids) - 2, (2,)) for ids in texts], None)
    config = RunConfig(
        intervention="lora", lr=0.01, batch_size=4, warmup=0.0, schedule="constant", clip=0.3, decayed=["W"]
    )
    trained = train(model, state, data, config, steps=4, seed=3)

    theirs, parameters = pefts(model.backbone, state)
    moving = [parameter for each in parameters.values() for parameter in each]
    optimiser = torch.optim.AdamW(moving, lr=0.01, weight_decay=0.0)
    losses = []
    for indices in batches(10, 4, 4, seed=3):
        batch = model.batch([data.sequences[i] for i in indices])
        labels = torch.where(batch.branches >= 0, batch.ids, -100)
        loss = theirs(input_ids=batch.ids, attention_mask=batch.mask, labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(moving, 0.3)
        optimiser.step()
        losses.append(float(loss.detach()))
    assert trained.losses == pytest.approx(losses, abs=1e-4)
    for name, each in parameters.items():
        torch.testing.assert_close(trained.state[name], torch.stack([p.detach() for p in each]), atol=2e-4, rtol=1e-3)
        assert float((trained.state[name] - state[name]).abs().max()) > 0.01


@pefts_warning
def test_the_start_is_drawn_as_peft_draws_it():
    backbone = random_backbone("llama", d=256)
    state = with_lora(backbone).start("identity", 0)
    _, theirs = pefts(backbone, None)
    for name, drawn in theirs.items():
        ours, drawn = state[name], torch.stack(drawn).detach()
        assert ours.shape == drawn.shape
        assert float(ours.std()) == pytest.approx(float(drawn.std()), rel=0.1)
        assert float(ours.abs().max()) == pytest.approx(float(drawn.abs().max()), rel=0.02)  # a uniform's bound


def test_at_the_identity_start_the_backbone_is_untouched_to_the_bit_and_at_random_it_is_not():
    model = with_lora(load_backbone("tiny-llama"))
    batch = some_batch(model)
    bare = model.hidden_states(batch, None)
    assert torch.equal(model.hidden_states(batch, model.start("identity", 0)), bare)
    assert not torch.equal(model.hidden_states(batch, model.start("random", 0)), bare)


def test_a_state_has_the_published_number_of_parameters():
    model = with_lora(random_backbone("llama", d=32, layers=3))
    assert model.spec.size == 2 * 2 * RANK * (32 + 32)  # two layers, two targets, r (d_in + d_out)
    assert {name: shape for name, shape in model.spec.shapes} == {
        "q_proj.A": (2, RANK, 32), "q_proj.B": (2, 32, RANK), "v_proj.A": (2, RANK, 32), "v_proj.B": (2, 32, RANK),
    }  # fmt: skip


# ---- which modules a target stands for -----------------------------------------------------------------------------


def from_peft(model, targets, layers=LAYERS, **more):
    """peft's model, and its adapted modules by block and path within it."""
    config = peft.LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules=list(targets), layers_to_transform=list(layers), **more
    )
    wrapped = peft.get_peft_model(copy.deepcopy(model), config).eval()
    found = {}
    for path, module in wrapped.named_modules():
        if hasattr(module, "lora_A"):
            layer, own = re.search(r"\.(?:layers?|h)\.(\d+)\.(.*)", path).groups()
            found[int(layer), own] = module
    return wrapped, found


def filled(adapter, state, theirs):
    """peft's modules given the numbers of a state."""
    for name, place in adapter.linears.items():
        for layer, A, B in zip(place.layers, state[f"{name}.A"], state[f"{name}.B"], strict=True):
            with torch.no_grad():
                theirs[layer, place.path].lora_A["default"].weight.copy_(A)
                theirs[layer, place.path].lora_B["default"].weight.copy_(B)


@pefts_warning
@pytest.mark.parametrize(
    ("kind", "targets", "names"),
    [
        ("bert", ("dense",), ["attention.output.dense", "intermediate.dense", "output.dense"]),
        ("bert", ("output.dense", "query"), ["attention.output.dense", "output.dense", "query"]),
        ("bert", ("attention.output.dense",), ["attention.output.dense"]),
        ("bert", ("intermediate.dense", "dense", "self.query"), None),  # what two stand for is adapted once
        ("roberta", ("output.dense", "dense"), None),
        ("llama", ("gate_proj", "mlp.down_proj"), ["gate_proj", "mlp.down_proj"]),
    ],
)
def test_a_target_stands_for_what_peft_takes_it_for(kind, targets, names):
    model = with_lora(random_backbone(kind), targets=targets)
    wrapped, theirs = from_peft(model.backbone.model, targets)
    ours = {(layer, place.path) for place in model.adapter.linears.values() for layer in place.layers}
    assert ours == set(theirs)
    assert names is None or list(model.adapter.linears) == names
    assert model.spec.size == wrapped.get_nb_trainable_parameters()[0]
    state, batch = model.start("random", 1), some_batch(model)
    filled(model.adapter, state, theirs)
    found = model.hidden_states(batch, state)[batch.mask.bool()]
    torch.testing.assert_close(found, last_hidden(wrapped, batch), atol=2e-5, rtol=1e-4)


def plain(model, ids, adapter, state):
    """The logits of a model that is called as it is, with the additions."""
    batch = SimpleNamespace(packed=False, share=None, owners=None)
    with torch.no_grad(), adapter.attached(model.transformer.h, state, batch):
        return model(ids).logits


@pefts_warning
@pytest.mark.filterwarnings("ignore:fan_in_fan_out:UserWarning")
def test_gpt2s_modules_whose_weights_lie_the_other_way_round_are_adapted_as_pefts():
    torch.manual_seed(0)
    sizes = {"vocab_size": 60, "n_embd": 32, "n_layer": 3, "n_head": 4, "initializer_range": 0.2}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)).eval()
    linears = places({layer: model.transformer.h[layer] for layer in LAYERS}, ("c_attn", "c_proj"), "gpt2")
    adapter = InLinears(LoRA(ALPHA / RANK), LAYERS, RANK, linears, 32)
    assert {name: place.dims for name, place in linears.items()} == {
        "c_attn": (32, 96), "attn.c_proj": (32, 32), "mlp.c_proj": (128, 32)
    }  # fmt: skip
    wrapped, theirs = from_peft(model, ("c_attn", "c_proj"), fan_in_fan_out=True)
    assert {(layer, place.path) for place in linears.values() for layer in place.layers} == set(theirs)
    state, ids = adapter.start("random", torch.Generator().manual_seed(1)), torch.arange(20).view(2, 10)
    filled(adapter, state, theirs)
    with torch.no_grad():
        expected = wrapped(input_ids=ids).logits
    torch.testing.assert_close(plain(model, ids, adapter, state), expected, atol=2e-4, rtol=1e-4)
    assert float((model(ids).logits.detach() - expected).abs().max()) > 0.1


class Block(torch.nn.Module):
    """One of a model whose blocks differ: attention in some, experts in some."""

    def __init__(self, d=4, attends=True, experts=0, inner=8):
        super().__init__()
        self.up = torch.nn.Linear(d, inner)
        if attends:
            self.attn = torch.nn.ModuleDict({"q": torch.nn.Linear(d, d)})
        if experts:
            one = torch.nn.ModuleDict({"up": torch.nn.Linear(d, 3)})
            self.experts = torch.nn.ModuleList(copy.deepcopy(one) for _ in range(experts))
            self.packed = torch.nn.Parameter(torch.zeros(experts, d, d))


def in_blocks(targets, *blocks):
    return InLinears(LoRA(1.0), tuple(range(len(blocks))), 2, places(dict(enumerate(blocks)), targets, "none"), 4)


def test_of_blocks_that_differ_those_are_adapted_that_have_the_module_and_the_manifest_says_which():
    adapter = in_blocks(("q", "up"), Block(), Block(attends=False, experts=2), Block())
    assert adapter.adapted == ["attn.q in blocks 0, 2", "up", "experts.0.up in blocks 1", "experts.1.up in blocks 1"]
    assert {name: shape for name, shape in adapter.shapes.items() if name.endswith("A")} == {
        "q.A": (2, 2, 4), "up.A": (3, 2, 4), "experts.0.up.A": (1, 2, 4), "experts.1.up.A": (1, 2, 4)
    }  # fmt: skip


def test_what_cannot_be_adapted_is_one_sentence():
    with pytest.raises(ConfigError, match=r"'packed' is a tensor of shape \(2, 4, 4\) and no linear module"):
        in_blocks(("packed",), Block(experts=2))
    with pytest.raises(ConfigError, match=r"'up' has the shapes \[\(4, 6\), \(4, 8\)\] in these blocks"):
        in_blocks(("up",), Block(), Block(inner=6))
    one = Block()
    with pytest.raises(ConfigError, match="blocks of this model share one 'attn.q'"):
        in_blocks(("q",), one, one)
    with pytest.raises(ConfigError, match=r"no linear module 'attn.k', did you mean 'attn.q'"):
        in_blocks(("attn.k",), one)


def test_a_module_that_the_model_never_calls_is_refused_and_not_passed_over():
    block = Block()
    adapter = in_blocks(("q", "up"), block)
    state = adapter.start("random", torch.Generator())
    batch = SimpleNamespace(packed=False, share=None, owners=None)
    with (
        pytest.raises(FedReFTError, match="this model never calls 'attn.q'"),
        adapter.attached([block], state, batch),
    ):
        block.up(torch.ones(1, 2, 4))


@pytest.mark.parametrize("method", ["fedit", "flora", "fedalt", "feddpa", "fedsb"])
def test_every_method_federates_targets_of_several_modules(method):
    config = RunConfig(
        backbone="tiny-roberta", benchmark="glue", source="synthetic", tasks=("sst2",), setup="iid", clients=2, rank=2,
        layers="2-3", intervention="lora", targets=("dense", "output.dense"), method=method, rounds=2, train_size=8,
        held_out_size=4, test_size=4, batch_size=4, lr=0.01,
    )  # fmt: skip
    done = run(config, progress=False)
    assert done.manifest["adapted"] == ["attention.output.dense", "intermediate.dense", "output.dense"]
    assert not torch.equal(done.states[0], start(assemble(config), config)[0])
    assert kept(done) == {"fedalt": "route", "feddpa": "local.A, local.B"}.get(method, "nothing")


# ---- states with a small trained part -------------------------------------------------------------------------------


def test_small_lora_starts_at_the_backbone_with_frozen_factors_that_are_not_zero():
    model = with_lora(load_backbone("tiny-llama"), kind=SmallLoRA(2.0))
    batch = some_batch(model)
    for init in ("identity", "random"):
        state = model.start(init, 0)
        assert torch.equal(model.hidden_states(batch, state), model.hidden_states(batch, None))
        assert all(state[name].any() for name in state if name[-1] in "AB")
        assert not state["q_proj.S"].any() and state["q_proj.S"].shape == (2, RANK, RANK)


def test_small_loreft_starts_at_the_identity_in_an_orthonormal_subspace():
    generator = torch.Generator().manual_seed(0)
    state = SmallLoReFT().init(2, 3, 16, start="identity", generator=generator)
    torch.testing.assert_close(state["R"] @ state["R"].mT, torch.eye(3).expand(2, 3, 3), atol=1e-6, rtol=0)
    assert torch.equal(state["V"], state["R"]) and state["V"].data_ptr() != state["R"].data_ptr()
    h = torch.randn(2, 5, 16, generator=generator)
    torch.testing.assert_close(SmallLoReFT().edit(h, state), h, atol=1e-6, rtol=0)
    other = SmallLoReFT().init(2, 3, 16, start="random", generator=generator)
    assert float((SmallLoReFT().edit(h, other) - h).abs().max()) > 0.1


@pytest.mark.parametrize(("family", "targets"), [("opt", ("fc1", "fc2")), ("qwen2_moe", ("shared_expert_gate",))])
def test_clients_share_a_pass_also_through_modules_that_read_tokens_without_their_rows(family, targets):
    backbone = backbone_of(family, "causal")
    model = SteeredModel(backbone, InLinears.of(backbone, LoRA(1.0), (0, 1, 2, 3), 2, targets))
    states = [model.start("random", seed) for seed in (1, 2)]
    stacked = {name: torch.stack([state[name] for state in states]) for name in states[0]}
    sequences, owners = [Tokens(tuple(range(9 + n, 40)), 12 - n, (19,)) for n in range(3)], [0, 1, 0]
    found, _ = model.answer_logprobs(model.batch(sequences, owners=torch.tensor(owners)), stacked)
    alone = [model.answer_logprobs(model.batch([s]), states[k])[0] for s, k in zip(sequences, owners, strict=True)]
    torch.testing.assert_close(found, torch.cat(alone), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("target", ["down_proj", "gate_proj"])
def test_experts_that_are_one_tensor_are_not_left_out_without_a_word(target):
    """peft adapts them as parameters; here the shared expert and dense blocks alone would be adapted."""
    backbone = backbone_of("qwen2_moe", "causal")
    if not any(tensor.dim() > 2 for tensor in backbone.layers.parameters()):
        pytest.skip("this transformers has a module for each expert")
    with pytest.raises(ConfigError, match="is a tensor of shape .* and no linear module: lora cannot adapt it"):
        InLinears.of(backbone, LoRA(1.0), (0, 1, 2, 3), 2, (target,))
    shared = InLinears.of(backbone, LoRA(1.0), (0, 1, 2, 3), 2, (f"shared_expert.{target}",))
    assert shared.adapted == [f"mlp.shared_expert.{target}"]
