"""Batches without padding give what padded ones give."""

import itertools
import subprocess
import sys
from dataclasses import replace
from functools import cache
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from fedreft_lib import AtSites, LoReFT, Sites, load_backbone
from fedreft_lib.methods.branches import Blend
from fedreft_lib.methods.lora import LoRA
from fedreft_lib.model.adapters import InLinears
from fedreft_lib.model.fast import packed_attention
from fedreft_lib.model.fast.packed_attention import EXPLICIT, GIVEN, NAME, install
from fedreft_lib.model.fast.textbook_attention import TextbookAttention
from fedreft_lib.model.steered import SteeredModel
from fedreft_lib.model.tokens import Tokens
from tests.helpers.models import random_backbone
from tests.helpers.pairs import pairwise
from tests.model.fast.test_textbook_attention import ULP, error
from tests.model.test_steered import forked_sequences, other_backbone, reference_logprobs, some_sequences, steered

packing = pytest.mark.skipif(not GIVEN, reason="this transformers takes no attention from outside: all is padded")


@pytest.fixture(autouse=True)
def grids_of_like_sequences(monkeypatch):
    """Sequences as short as these would otherwise share one grid."""
    monkeypatch.setattr(packed_attention, "GRID", 0)


# ---- packed and padded ----------------------------------------------------------------------------------------------


@cache
def both(kind, dtype=torch.float32):
    """A backbone twice, made once for all tests, which only read: one model reads packed batches, the other pads."""
    backbone, padding = build(kind, dtype), build(kind, dtype)
    padding.model.set_attn_implementation("sdpa")
    return backbone, padding


def build(kind, dtype=torch.float32):
    if kind.startswith("tiny"):
        backbone = load_backbone(kind)
    elif kind in ("llama", "bert", "roberta"):
        backbone = random_backbone(kind)
    else:
        more = {"head_dim": 8} if kind == "Qwen3" else {}
        backbone = other_backbone(random_backbone(), kind, **more)
        install(backbone.model)
    backbone.model.to(dtype)
    return backbone


DECODERS = ["tiny-llama", "llama", "Qwen2", "Qwen3", "Mistral"]
ENCODERS = ["tiny-roberta", "roberta", "bert"]


def pairs(lengths=(12, 3, 1, 20), seed=0):
    """Two texts in one sequence, as encoders read them."""
    drawn = some_sequences([(n, 0) for n in lengths], seed)
    return [replace(s, segments=tuple(int(i > n // 2) for i in range(n))) for s, n in zip(drawn, lengths, strict=True)]


SEQUENCES = {
    "ragged": some_sequences(((30, 4), (12, 3), (3, 2), (1, 4), (1, 1), (20, 1))),
    "several answers": forked_sequences(),
    "equal lengths": some_sequences(((9, 3), (9, 3), (9, 3))),
    "one": some_sequences(((11, 2),)),
    "one with several answers": forked_sequences()[:1],
    "one token each": some_sequences(((1, 0), (1, 0))),
}
PAIRS = {"ragged": pairs(), "equal lengths": pairs((7, 7, 7)), "one": pairs((9,)), "one token each": pairs((1, 1, 1))}
ADDED = LoRA(2.0)
FIRST_AND_LAST = {"layers": (0, 1), "prefix": 7, "suffix": 7}  # more positions than most prompts here have tokens


def at_sites(kind=LoReFT, **more):
    return lambda backbone: steered(backbone, kind, **{**FIRST_AND_LAST, **more})


def in_linears(kind=ADDED, layers=(0, 2)):
    return lambda backbone: SteeredModel(backbone, InLinears.of(backbone, kind, layers, 2, ("q_proj", "v_proj")))


OWNED = {"one state": False, "owners": True}
READ = {name: SEQUENCES[name] for name in ("ragged", "several answers")}
MODELS = {
    "sites": at_sites(), "tied sites": at_sites(tied=True), "prefix": at_sites(suffix=0),
    "linears": in_linears(), "blend at sites": at_sites(Blend(LoReFT)), "blend in linears": in_linears(Blend(ADDED)),
}  # fmt: skip


def random_states(model, count):
    """Stacked, (K, ...), with leaves for gradients."""
    states = [model.start("random", seed) for seed in range(count)]
    return {name: torch.stack([state[name] for state in states]).requires_grad_() for name in states[0]}


def rows(model, sequences, owned):
    """What the rows of a batch have besides their tokens: owners where there are several states, shares in a blend."""
    n = len(sequences)
    shares = torch.linspace(0, 1, n) if isinstance(model.adapter.kind, Blend) else None
    return {"share": shares, "owners": torch.arange(2, 2 + n) * 2 % 3 if owned else None}


def batch_with(model, sequences, *, share, owners, hidden=None):
    return replace(model.batch(sequences, hidden=hidden, owners=owners), share=share)


def reading(model, sequences, owned=False, cached=False):
    """Hidden states at the tokens, log-probabilities, and the gradients of a random sum of both."""
    state = random_states(model, 3)
    given = state if owned else {name: tensor[0] for name, tensor in state.items()}
    hidden = model.hidden_below(sequences) if cached else None
    batch = batch_with(model, sequences, hidden=hidden, **rows(model, sequences, owned))
    found = [model.hidden_states(batch, given)[batch.mask.bool()]]
    if len(batch.targets):
        found.append(model.answer_logprobs(batch, given)[0])
    generator = torch.Generator().manual_seed(0)
    total = sum((each.float() * torch.randn(each.shape, generator=generator)).sum() for each in found)
    gradients = torch.autograd.grad(total, list(state.values()))
    return [each.detach() for each in found], gradients


def assert_same(ours, theirs, bound):
    for found, wanted in zip(ours, theirs, strict=True):
        assert len(found) == len(wanted)
        for a, b in zip(found, wanted, strict=True):
            assert a.shape == b.shape
            assert error(a, b) < bound or float(torch.stack([a, b]).abs().max()) < 1e-5  # a zero, but for rounding


def assert_packed_is_padded(kind, model, sequences, **more):
    packed, padded = (model(backbone) for backbone in both(kind))
    assert packed.batch(sequences).packed and not padded.batch(sequences).packed
    assert_same(reading(packed, sequences, **more), reading(padded, sequences, **more), 5e-6)


@packing
@pairwise(owned=OWNED, model=MODELS, sequences=SEQUENCES)
def test_a_packed_batch_of_a_decoder_is_the_padded_one(model, sequences, owned):
    assert_packed_is_padded("tiny-llama", model, sequences, owned=owned)


@packing
@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("sequences", ["ragged", "several answers"])
def test_a_packed_batch_of_any_decoder_is_the_padded_one(kind, sequences):
    assert_packed_is_padded(kind, MODELS["sites"], SEQUENCES[sequences])


@packing
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 5e-6), (torch.bfloat16, 8 * ULP)], ids=str)
@pytest.mark.parametrize("sequences", ["ragged", "several answers", "one with several answers"])
def test_packed_answers_are_read_as_a_plain_model_reads_each_alone(dtype, bound, sequences):
    model = steered(build("tiny-llama", dtype), LoReFT)
    batch = model.batch(SEQUENCES[sequences])
    found, _ = model.answer_logprobs(batch, None)
    assert batch.packed and error(found, reference_logprobs(model, SEQUENCES[sequences], None)) < bound


@packing
@pairwise(owned=OWNED, model=MODELS, kind=ENCODERS, sequences=PAIRS)
def test_a_packed_batch_of_an_encoder_is_the_padded_one(kind, model, sequences, owned):
    assert_packed_is_padded(kind, model, sequences, owned=owned)


@packing
@pytest.mark.parametrize("kind", ENCODERS)
def test_an_encoder_numbers_positions_as_it_does_alone(kind):
    """Also past a pad token in the text, which RoBERTa does not count."""
    backbone = build(kind)
    pad = backbone.tokenizer.pad_token_id
    sequences = [*pairs(), Tokens((7, 8, pad, 9, 10), 5), Tokens((7, 8), 2)]
    model = steered(backbone, LoReFT)
    batch = model.batch(sequences)
    assert batch.packed
    together = model.hidden_states(batch, None)
    types = backbone.model.config.type_vocab_size > 1
    for row, s in enumerate(sequences):
        more = {"token_type_ids": torch.tensor([s.segments])} if types and s.segments else {}
        alone = backbone.model(torch.tensor([s.ids]), **more).last_hidden_state[0]
        assert error(together[row, : len(s.ids)], alone) < 5e-6
        assert not together[row, len(s.ids) :].any()  # padding is zero in the grid


@packing
@pairwise(
    model={
        "sites": at_sites(layers=(1, 2)), "linears": in_linears(layers=(1, 2)),
        "blend at sites": at_sites(Blend(LoReFT), layers=(1, 2)),
    },
    sequences={name: SEQUENCES[name] for name in ("ragged", "several answers", "one")},
    owned=OWNED,
)  # fmt: skip
def test_cached_hidden_states_are_packed_and_padded_alike(model, sequences, owned):
    packed, padded = (model(backbone) for backbone in both("tiny-llama"))
    assert_same([packed.hidden_below(sequences)], [padded.hidden_below(sequences)], 5e-6)
    ours = reading(packed, sequences, owned, cached=True)
    assert_same(ours, reading(padded, sequences, owned, cached=True), 5e-6)
    assert_same(ours, reading(packed, sequences, owned), 5e-6)


@packing
@pairwise(
    read={
        "ragged": ("tiny-llama", SEQUENCES["ragged"]), "several answers": ("tiny-llama", SEQUENCES["several answers"]),
        "bert": ("bert", PAIRS["ragged"]), "roberta": ("tiny-roberta", PAIRS["ragged"]),
    },
    model={"sites": MODELS["sites"], "linears": MODELS["linears"]},
    longest={"textbook": EXPLICIT, "fused": 0},
)  # fmt: skip
def test_in_bfloat16_packed_batches_are_as_exact_as_padded_ones(read, model, longest, monkeypatch):
    monkeypatch.setattr(packed_attention, "EXPLICIT", longest)
    kind, sequences = read
    wanted = reading(model(both(kind)[0]), sequences)
    packed, padded = (model(backbone) for backbone in both(kind, torch.bfloat16))
    ours, theirs = reading(packed, sequences), reading(padded, sequences)
    for found, other, value in zip(ours, theirs, wanted, strict=True):
        for a, b, exact in zip(found, other, value, strict=True):
            assert error(a, exact) < min(2.5 * error(b, exact), 30 * ULP)  # a single draw of rounding errors


@packing
@pytest.mark.parametrize(("dtype", "longest"), [("bfloat16", 16), ("bfloat16", 15), ("float32", 16)])
def test_short_texts_go_to_the_textbook_attention(dtype, longest, monkeypatch):
    model = steered(build("tiny-llama", getattr(torch, dtype)), LoReFT)
    batch = model.batch(some_sequences(((16, 0), (3, 0))))
    monkeypatch.setattr(packed_attention, "EXPLICIT", longest)
    calls, original = [], TextbookAttention.apply
    monkeypatch.setattr(TextbookAttention, "apply", lambda *args: calls.append(args) or original(*args))
    model.hidden_states(batch, None)
    longest_each = [len(call[0]) for call in calls]  # two grids of one text in each of four blocks
    assert longest_each == 4 * [T for T in (16, 3) if longest >= T]


@given(st.lists(st.integers(1, 300), min_size=1, max_size=7), st.sampled_from([0, 100, 2**13]))
def test_lengths_are_split_into_grids_at_the_least_cost(lengths, cost):
    lengths = sorted(lengths, reverse=True)

    def total(runs):
        return sum((stop - start) * lengths[start] ** 2 + cost for start, stop in runs)

    with mock.patch.object(packed_attention, "GRID", cost):
        runs = packed_attention.split(lengths)
    inner = range(1, len(lengths))
    every = [[0, *cuts, len(lengths)] for n in range(len(lengths)) for cuts in itertools.combinations(inner, n)]
    assert [i for start, stop in runs for i in range(start, stop)] == list(range(len(lengths)))
    assert total(runs) == min(total(itertools.pairwise(bounds)) for bounds in every)


# ---- a row and its companions ---------------------------------------------------------------------------------------


@packing
@pairwise(
    dtype={"float32": torch.float32, "bfloat16": torch.bfloat16},
    model={"sites": MODELS["sites"], "blend in linears": MODELS["blend in linears"]},
    sequences=READ,
)
def test_a_row_does_not_depend_on_its_companions(dtype, model, sequences):
    model, bound = model(both("tiny-llama", dtype)[0]), 5e-6 if dtype == torch.float32 else 8 * ULP
    state, more = random_states(model, 3), rows(model, sequences, owned=True)
    with torch.no_grad():
        together = model.hidden_states(batch_with(model, sequences, **more), state)
        for row, s in enumerate(sequences):
            own = {name: each[[row]] if each is not None else None for name, each in more.items()}
            alone = model.hidden_states(replace(model.batch([s]), **own), state)[0]
            assert error(together[row, : len(s.ids)], alone) < bound


@packing
@pairwise(dtype={"float32": torch.float32, "bfloat16": torch.bfloat16}, sequences=READ, model=MODELS)
def test_what_is_not_a_number_in_a_state_stays_in_the_rows_of_that_state(dtype, sequences, model):
    model = model(both("tiny-llama", dtype)[0])
    state, more = random_states(model, 3), rows(model, sequences, owned=True)
    with torch.no_grad():
        for tensor in state.values():
            tensor[1] = torch.nan
    batch = batch_with(model, sequences, **more)
    hidden = model.hidden_states(batch, state)
    broken = (more["owners"] == 1)[:, None].expand(batch.mask.shape)
    assert bool(hidden[broken & batch.mask.bool()].isnan().any()) and bool(hidden[~broken].isfinite().all())
    for grad in torch.autograd.grad(hidden.float().sum(), list(state.values())):
        assert bool(grad[[0, 2]].isfinite().all())


@packing
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sequences", ["ragged", "several answers"])
def test_what_is_not_a_number_in_a_text_stays_in_its_row(dtype, sequences):
    model, sequences = at_sites(layers=(1, 2))(both("tiny-llama", dtype)[0]), SEQUENCES[sequences]
    state, hidden = random_states(model, 1), model.hidden_below(sequences)
    given = {name: tensor[0] for name, tensor in state.items()}
    clean = model.hidden_states(model.batch(sequences, hidden=hidden), given)
    hidden[2] = torch.full_like(hidden[2], torch.nan)
    found = model.hidden_states(model.batch(sequences, hidden=hidden), given)
    others = [i for i in range(len(sequences)) if i != 2]
    assert bool(found[2, : len(sequences[2].ids)].isnan().all()) and torch.equal(found[others], clean[others])


# ---- what is not packed ---------------------------------------------------------------------------------------------


@packing
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_generation_and_padded_batches_have_the_same_bits_as_without_the_attention(dtype):
    prompts = some_sequences(((14, 0), (3, 0), (1, 0), (9, 0)))
    ours, theirs = (MODELS["sites"](backbone) for backbone in both("tiny-llama", dtype))
    batch, state = ours.batch(prompts, side="left"), ours.start("random", 0)
    assert not batch.packed
    assert torch.equal(ours.hidden_states(batch, state), theirs.hidden_states(batch, state))
    assert ours.generate(prompts, state, 12) == theirs.generate(prompts, state, 12)


def test_a_model_that_cannot_pack_is_padded():
    backbone = other_backbone(random_backbone(), "Olmo")
    before = backbone.model.config._attn_implementation
    install(backbone.model)
    assert backbone.model.config._attn_implementation == before
    model, sequences = steered(backbone, LoReFT), SEQUENCES["ragged"]
    batch = model.batch(sequences)
    assert not batch.packed
    found, _ = model.answer_logprobs(batch, None)
    torch.testing.assert_close(found, reference_logprobs(model, sequences, None), atol=2e-5, rtol=1e-4)


@packing
def test_texts_longer_than_a_sliding_window_are_padded():
    backbone = other_backbone(random_backbone(), "Mistral", sliding_window=12)
    install(backbone.model)
    model = steered(backbone, LoReFT)
    for longest, packed in ((12, True), (13, False)):
        sequences = some_sequences(((longest - 2, 2), (3, 1)))
        batch, state = model.batch(sequences), model.start("random", 0)
        assert batch.packed == packed
        found, _ = model.answer_logprobs(batch, state)
        torch.testing.assert_close(found, reference_logprobs(model, sequences, state), atol=2e-5, rtol=1e-4)


@packing
def test_a_model_that_attends_in_its_own_way_keeps_it():
    backbone = random_backbone()
    backbone.model.set_attn_implementation("eager")
    install(backbone.model)
    assert backbone.model.config._attn_implementation == "eager"
    assert not steered(backbone, LoReFT).batch(SEQUENCES["ragged"]).packed


def test_before_transformers_5_nothing_changes(monkeypatch):
    monkeypatch.setattr(packed_attention, "GIVEN", False)
    backbone = other_backbone(random_backbone(), "Mistral")
    install(backbone.model)
    assert backbone.model.config._attn_implementation == "sdpa"


def test_a_saved_model_loads_without_this_library(tmp_path):
    backbone = load_backbone("tiny-llama")
    backbone.model.save_pretrained(tmp_path)
    assert NAME not in (tmp_path / "config.json").read_text()
    ids = torch.tensor([[5, 6, 7]])
    code = (
        "import sys, torch\nfrom transformers import AutoModelForCausalLM\n"
        f"model = AutoModelForCausalLM.from_pretrained({str(tmp_path)!r})\n"
        "assert model.config._attn_implementation == 'sdpa' and 'fedreft_lib' not in sys.modules\n"
        "print(model(torch.tensor([[5, 6, 7]])).logits.double().sum().item())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        wanted = float(backbone.model(ids).logits.double().sum())
        again = AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits
    assert float(done.stdout) == pytest.approx(wanted, abs=1e-3)
    assert float(again.double().sum()) == pytest.approx(wanted, abs=1e-3)


@packing
def test_both_packed_and_padded_follow_the_models_setting():
    """A user who sets another attention gets it."""
    model = AtSites(LoReFT, Sites((1,), 2, 2), 2, 64)
    steering = SteeredModel(load_backbone("tiny-llama"), model)
    sequences, state = SEQUENCES["ragged"], steering.start("random", 0)
    found = {}
    for name in (NAME, "sdpa", "eager"):
        steering.backbone.model.set_attn_implementation(name)
        batch = steering.batch(sequences)
        assert batch.packed == (name == NAME)
        found[name] = steering.answer_logprobs(batch, state)[0]
    assert error(found[NAME], found["sdpa"]) < 5e-6 and error(found["eager"], found["sdpa"]) < 5e-6
