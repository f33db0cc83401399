"""A steered backbone computes what a plain Hugging Face model with edited hidden states computes, however it is run."""

import dataclasses

import pytest
import torch
import transformers

from fedreft_lib.core.interventions import INTERVENTIONS, LoReFT
from fedreft_lib.methods.lora import LoRA
from fedreft_lib.model.adapters import InLinears
from fedreft_lib.model.architectures import find_layers
from fedreft_lib.model.steered import SteeredModel
from fedreft_lib.model.tokens import Tokens
from tests.helpers.models import random_backbone, random_state, steered

CLOSE = {"atol": 2e-5, "rtol": 1e-4}


def some_sequences(lengths=((12, 3), (3, 2), (1, 4), (20, 1)), seed=0):
    """(prompt length, answer length) -> random sequences; some prompts are too short for all positions."""
    generator = torch.Generator().manual_seed(seed)

    def tokens(n):
        return tuple(torch.randint(5, 250, (n,), generator=generator).tolist())

    return [Tokens(tokens(p + a), p, (a,) if a else ()) for p, a in lengths]


def forked_sequences(seed=0):
    """Questions with several answers on one prompt."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(9, (2, 5, 1)), (15, (3, 3)), (2, (4, 1, 1, 2)), (6, (3,))]
    return [Tokens(tuple(torch.randint(5, 250, (p + sum(a),), generator=generator).tolist()), p, a) for p, a in shapes]


def apart(sequence):
    """A sequence of several answers as one sequence for each."""
    prompt, rest, parts = sequence.ids[: sequence.prompt_length], sequence.ids[sequence.prompt_length :], []
    for n in sequence.answer_lengths:
        parts.append(Tokens((*prompt, *rest[:n]), len(prompt), (n,)))
        rest = rest[n:]
    return parts


def reference_logits(model, ids, prompt_length, state):
    """Logits (T, V) of the plain model on one unpadded text whose prompt is edited position by position."""
    sites, n = model.adapter.sites, prompt_length
    p, s = (sites.prefix, sites.suffix)
    if n < p + s:
        p, s = min(p, n // 2), min(s, (n + 1) // 2)
    places = {"prefix": range(p), "suffix": range(n - s, n)}

    def edit(layer):
        def hook(module, args, output):
            h = (output[0] if isinstance(output, tuple) else output).clone()
            for group, positions in places.items():
                group = "tied" if sites.groups == ("tied",) else group
                for t in positions:
                    phi = {name: tensor[sites.index(layer, group)] for name, tensor in state.items()}
                    h[0, t] = h[0, t] + phi["R"].T @ (phi["W"] @ h[0, t] + phi["b"] - phi["R"] @ h[0, t])
            return (h, *output[1:]) if isinstance(output, tuple) else h

        return hook

    layers = sites.layers if state is not None else ()
    handles = [model.backbone.layers[layer].register_forward_hook(edit(layer)) for layer in layers]
    try:
        with torch.no_grad():
            return model.backbone.model(torch.tensor([ids]), use_cache=False).logits[0]
    finally:
        for handle in handles:
            handle.remove()


def reference_logprobs(model, sequences, state):
    found = []
    for s in sequences:
        for part in apart(s):
            logprobs = reference_logits(model, part.ids, part.prompt_length, state).log_softmax(-1)
            found += [logprobs[t - 1, part.ids[t]] for t in range(part.prompt_length, len(part.ids))]
    return torch.stack(found)


@pytest.fixture(scope="module")
def backbone():
    return random_backbone()


def settings(backbone):
    """Models with other sites, each with a state, and the bare backbone."""
    untied, tied = steered(backbone, LoReFT, prefix=2, suffix=3), steered(backbone, LoReFT, tied=True)
    prefix = steered(backbone, LoReFT, layers=(1,), prefix=4, suffix=0)
    return [(m, random_state(m)) for m in (untied, tied, prefix)] + [(untied, None)]


# ---- log-probabilities ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", range(4), ids=["untied", "tied", "prefix", "bare"])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("sequences", [some_sequences(), forked_sequences()], ids=["one answer", "several answers"])
def test_answer_logprobs_are_those_of_a_plain_model_with_all_logits(backbone, which, side, sequences):
    model, state = settings(backbone)[which]
    found, answer = model.answer_logprobs(model.batch(sequences, side=side), state)
    torch.testing.assert_close(found, reference_logprobs(model, sequences, state), **CLOSE)
    lengths = [n for s in sequences for n in s.answer_lengths]
    assert answer.bincount().tolist() == lengths


@pytest.mark.parametrize("sequences", [some_sequences(), forked_sequences()], ids=["one answer", "several answers"])
def test_a_batch_is_its_sequences_one_by_one(backbone, sequences):
    model = steered(backbone, LoReFT)
    state = random_state(model)
    together, _ = model.answer_logprobs(model.batch(sequences), state)
    alone = torch.cat([model.answer_logprobs(model.batch([s]), state)[0] for s in sequences])
    torch.testing.assert_close(together, alone, **CLOSE)


def test_an_answer_does_not_feel_the_answers_beside_it(backbone):
    model = steered(backbone, LoReFT)
    state, first = random_state(model), forked_sequences()[0]
    other = Tokens((*first.ids[:11], *(7 for _ in first.ids[11:])), first.prompt_length, first.answer_lengths)
    before, _ = model.answer_logprobs(model.batch([first]), state)
    after, _ = model.answer_logprobs(model.batch([other]), state)
    assert torch.equal(before[:2], after[:2]) and not torch.allclose(before[2:], after[2:])


def test_steering_acts(backbone):
    model = steered(backbone, LoReFT)
    batch = model.batch(some_sequences())
    difference = model.answer_logprobs(batch, random_state(model))[0] - model.answer_logprobs(batch, None)[0]
    assert float(difference.detach().abs().min()) > 1e-3


# ---- starting in the middle -----------------------------------------------------------------------------------------


def other_backbone(backbone, name, **more):
    """A random model of another family, on the tokenizer of `backbone`."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(
        vocab_size=len(backbone.tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, initializer_range=0.2, max_position_embeddings=128,
        pad_token_id=backbone.tokenizer.pad_token_id, **more,
    )  # fmt: skip
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval().requires_grad_(False)
    return dataclasses.replace(backbone, model=model, layers=find_layers(model))


@pytest.mark.parametrize("family", ["Llama", "Mistral", "Qwen2", "Qwen3"])
@pytest.mark.parametrize("layers", [(1, 3), (2,), (3,)], ids=str)
@pytest.mark.parametrize("sequences", [some_sequences(), forked_sequences()], ids=["one answer", "several answers"])
def test_starting_from_cached_hidden_states_is_the_whole_model(backbone, family, layers, sequences):
    if not hasattr(transformers, f"{family}Config"):
        pytest.skip(f"transformers {transformers.__version__} has no {family}")
    more = {"head_dim": 8} if family == "Qwen3" else {}
    model = steered(other_backbone(backbone, family, **more), LoReFT, layers=layers)
    assert model.can_start_in_the_middle
    blocks = list(model.backbone.layers)
    for state in (random_state(model), None):
        whole, _ = model.answer_logprobs(model.batch(sequences), state)
        hidden = model.hidden_below(sequences, batch_size=3)
        assert [tuple(h.shape) for h in hidden] == [(len(s.ids), 32) for s in sequences]
        part, _ = model.answer_logprobs(model.batch(sequences, hidden=hidden), state)
        torch.testing.assert_close(part, whole, atol=1e-5, rtol=1e-5)
    assert list(find_layers(model.backbone.model)) == blocks  # the model has its own blocks again
    assert all(not block._forward_hooks for block in blocks)


def test_cached_hidden_states_are_right_also_where_layers_attend_differently(backbone):
    mixed = other_backbone(backbone, "Qwen2", use_sliding_window=True, sliding_window=4, max_window_layers=2)
    model = steered(mixed, LoReFT, layers=(1, 3))
    sequences, state = some_sequences(), random_state(model)
    whole, _ = model.answer_logprobs(model.batch(sequences), state)
    hidden = model.hidden_below(sequences) if model.can_start_in_the_middle else None
    part, _ = model.answer_logprobs(model.batch(sequences, hidden=hidden), state)
    torch.testing.assert_close(part, whole, atol=1e-5, rtol=1e-5)


def test_gradients_through_cached_hidden_states_are_those_of_the_whole_model(backbone):
    model = steered(backbone, LoReFT, layers=(1, 2))
    sequences = some_sequences()
    grads = []
    for hidden in (None, model.hidden_below(sequences)):
        state = {name: tensor.requires_grad_() for name, tensor in random_state(model).items()}
        model.answer_logprobs(model.batch(sequences, hidden=hidden), state)[0].sum().backward()
        grads.append([tensor.grad for tensor in state.values()])
    torch.testing.assert_close(*grads, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("kind", "layers"), [("llama", (0, 2)), ("bert", (1, 2)), ("roberta", (1,))])
def test_nothing_is_cached_below_the_first_block_nor_in_encoders(kind, layers):
    assert not steered(random_backbone(kind), LoReFT, layers=layers).can_start_in_the_middle


def test_the_model_is_whole_again_after_an_error_in_the_middle(backbone):
    model = steered(backbone, LoReFT, layers=(1, 2))
    blocks = list(backbone.layers)
    with pytest.raises(IndexError):
        model.hidden_below([Tokens((10**6,), 1)])  # no such token
    assert list(find_layers(backbone.model)) == blocks and all(not block._forward_hooks for block in blocks)


# ---- generation -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def talkative():
    """A model that ends some texts early: its end token has twice the weight."""
    backbone = random_backbone()
    backbone.model.get_output_embeddings().weight[backbone.tokenizer.eos_token_id] *= 2
    return backbone


PROMPTS = some_sequences(((14, 0), (3, 0), (1, 0), (9, 0), (6, 0)))


def slow_generation(model, prompt, state, most):
    """Without a cache: the whole text is read again for every token, edited at the prompt's positions alone."""
    ids, end = list(prompt.ids), model.backbone.tokenizer.eos_token_id
    for _ in range(most):
        token = int(reference_logits(model, ids, prompt.prompt_length, state)[-1].argmax())
        if token == end:
            break
        ids.append(token)
    return ids[prompt.prompt_length :]


@pytest.mark.parametrize("which", range(4), ids=["untied", "tied", "prefix", "bare"])
def test_generation_with_a_cache_is_reading_the_whole_text_again_for_every_token(talkative, which):
    model, state = settings(talkative)[which]
    expected = [slow_generation(model, prompt, state, 12) for prompt in PROMPTS]
    decode = talkative.tokenizer.decode
    assert model.generate(PROMPTS, state, 12) == [decode(ids, skip_special_tokens=True) for ids in expected]
    assert {len(ids) < 12 for ids in expected} == {True, False}  # some end early and some do not


def test_unsteered_generation_is_hugging_faces(talkative):
    model = steered(talkative, LoReFT)
    batch, tokenizer = model.batch(PROMPTS, side="left"), talkative.tokenizer
    theirs = talkative.model.generate(
        input_ids=batch.ids, attention_mask=batch.mask, do_sample=False, max_new_tokens=12,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    expected = tokenizer.batch_decode(theirs[:, batch.ids.shape[1] :], skip_special_tokens=True)
    assert model.generate(PROMPTS, None, 12) == expected


def low_rank(backbone):
    return SteeredModel(backbone, InLinears.of(backbone, LoRA(3.0), (0, 2), 2, ("q_proj", "down_proj")))


@pytest.mark.parametrize("build", [lambda backbone: steered(backbone, LoReFT), low_rank], ids=["sites", "linears"])
def test_rows_of_several_states_are_generated_as_each_state_generates_them(talkative, build):
    model = build(talkative)
    states, owners = [random_state(model, seed) for seed in (1, 2, 3)], [2, 0, 2, 2, 0, 1]
    prompts = [*PROMPTS, PROMPTS[0]]
    stacked = {name: torch.stack([state[name] for state in states]) for name in states[0]}
    found = model.generate(prompts, stacked, 12, owners=torch.tensor(owners))
    assert found == [model.generate([p], states[k], 12)[0] for p, k in zip(prompts, owners, strict=True)]
    assert found[0] != found[-1]


def test_texts_that_have_ended_are_read_no_further(talkative, monkeypatch):
    model = low_rank(talkative)
    state, rows = random_state(model), []
    alone = [model.generate([prompt], state, 12)[0] for prompt in PROMPTS]
    handle = talkative.layers[0].register_forward_hook(lambda module, args, output: rows.append(len(args[0])))
    try:
        assert model.generate(PROMPTS, state, 12) == alone
    finally:
        handle.remove()
    assert rows[0] == len(PROMPTS) and rows == sorted(rows, reverse=True) and rows[-1] < rows[0]


def test_generation_is_steered_and_stops_at_the_given_length(talkative):
    model = steered(talkative, LoReFT)
    assert model.generate(PROMPTS, random_state(model), 6) != model.generate(PROMPTS, None, 6)
    one = model.generate(PROMPTS, None, 1)
    assert all(text.startswith(first) for text, first in zip(model.generate(PROMPTS, None, 6), one, strict=True))


# ---- gradients ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", INTERVENTIONS)
def test_gradients_reach_every_number_of_the_state_and_none_of_the_backbone(backbone, name):
    # In the last block a prefix cannot be felt: nothing attends to it any more.
    model = steered(backbone, INTERVENTIONS[name], layers=(0, 1))
    state = {n: tensor.requires_grad_() for n, tensor in random_state(model).items()}
    model.answer_logprobs(model.batch(some_sequences()), state)[0].sum().backward()
    for tensor in state.values():
        assert bool(tensor.grad.isfinite().all()) and bool((tensor.grad != 0).all())
    for parameter in backbone.model.parameters():
        assert parameter.grad is None and not parameter.requires_grad


# ---- encoders -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_the_same_code_steers_encoders(kind):
    model = steered(random_backbone(kind), LoReFT, prefix=2, suffix=1)
    state = random_state(model)
    prompts = some_sequences(((12, 0), (3, 0), (1, 0), (20, 0)))
    batch = model.batch(prompts)
    together = model.hidden_states(batch, state)
    for row, prompt in enumerate(prompts):
        alone = model.hidden_states(model.batch([prompt]), state)[0]
        torch.testing.assert_close(together[row, : len(prompt.ids)], alone, **CLOSE)
    plain = model.backbone.model(batch.ids, attention_mask=batch.mask).last_hidden_state
    kept = batch.mask.bool()
    torch.testing.assert_close(model.hidden_states(batch, None)[kept], plain[kept], **CLOSE)
    assert not torch.allclose(together[kept], plain[kept], atol=0.1)
