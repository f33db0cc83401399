"""A model computes what transformers says it computes, in whatever way it is read here, or it is refused."""

import inspect

import pytest
import torch

from fedreft_lib.errors import DataError, FedReFTError
from fedreft_lib.model import agreement
from fedreft_lib.model.agreement import size_of, windows
from fedreft_lib.model.backbone import load_backbone
from fedreft_lib.model.fast.packed_attention import GIVEN, NAME
from fedreft_lib.model.generation import left_out
from fedreft_lib.model.heads import Head
from fedreft_lib.model.steered import SteeredModel
from fedreft_lib.model.tokens import Tokens
from fedreft_lib.model.ways import Ways
from tests.helpers.families import DECODERS, ENCODERS, backbone_of, can_be_built, steered, tiny_config
from tests.helpers.pairs import pairwise

NEAR = 1e-4  # of log-probabilities


# ---- the reference: the model's own forward pass over one text, its blocks' outputs edited by hand -------------------


def edited(backbone, prompt_length, state, sites):
    """Hooks that put R^T (W h + b - R h) onto the first and last tokens of the prompt, each once."""

    def hook_for(layer):
        seen = []

        def hook(module, args, output):
            if seen:
                return output
            seen.append(True)
            h = (output[0] if isinstance(output, tuple) else output).clone()
            groups = {"prefix": range(sites.prefix), "suffix": range(prompt_length - sites.suffix, prompt_length)}
            for group, places in groups.items():
                R, W, b = (state[name][sites.index(layer, group)] for name in "RWb")
                for at in places:
                    h[0, at] += R.mT @ (W @ h[0, at] + b - R @ h[0, at])
            return (h, *output[1:]) if isinstance(output, tuple) else h

        return hook

    return [backbone.layers[layer].register_forward_hook(hook_for(layer)) for layer in sites.layers]


@torch.no_grad()
def own(backbone, ids, prompt_length, state, sites, **more):
    """The model's own outputs for one text, which is neither padded nor masked."""
    hooks = edited(backbone, prompt_length, state, sites) if state else []
    try:
        return backbone.model(input_ids=torch.tensor([ids]), **more)
    finally:
        for hook in hooks:
            hook.remove()


def own_logprobs(backbone, sequences, state, sites):
    found = []
    for s in sequences:
        first = s.prompt_length
        for n in s.answer_lengths:
            ids = [*s.ids[: s.prompt_length], *s.ids[first : first + n]]
            logits = own(backbone, ids, s.prompt_length, state, sites).logits[0].float()
            answer = torch.tensor(ids[s.prompt_length :])
            found.append(logits[s.prompt_length - 1 : -1].log_softmax(-1).gather(1, answer[:, None])[:, 0])
            first += n
    return torch.cat(found)


def own_continuation(backbone, prompt, steps, state, sites):
    """Greedy, the whole text read again for each token; and how far the two best tokens were apart, at the closest."""
    ids, margins = list(prompt.ids), []
    for _ in range(steps):
        best = own(backbone, ids, prompt.prompt_length, state, sites).logits[0, -1].float().log_softmax(-1).topk(2)
        margins.append(float(best.values[0] - best.values[1]))
        if int(best.indices[0]) in backbone.end_ids:
            break
        ids.append(int(best.indices[0]))
    return backbone.tokenizer.decode(ids[prompt.prompt_length :], skip_special_tokens=True), min(margins)


def texts(lengths, seed=0):
    """Sequences of random bytes: (prompt, answers...) lengths each."""
    generator = torch.Generator().manual_seed(seed)
    return [
        Tokens(tuple(torch.randint(10, 250, (prompt + sum(answers),), generator=generator).tolist()), prompt, answers)
        for prompt, *answers in [(each[0], *each[1:]) for each in lengths]
        for answers in [tuple(answers)]
    ]


SHORT, LONG = ((9, 3, 2, 4), (6, 5), (10, 1, 1)), ((60, 5, 3, 9), (12, 6, 2), (33, 4))  # windows are 16


def differences(family, kind):
    """How far the family is from the reference in each thing that is asked of it; {} where it is refused."""
    try:
        backbone = backbone_of(family, kind)
        model = steered(backbone)
        model.ways(80)
    except FedReFTError as error:
        assert str(error).count("\n") == 0
        return {}
    return (of_decoder if kind == "causal" else of_encoder)(model)


def of_decoder(model):
    backbone, sites, found = model.backbone, model.adapter.sites, {}
    for name, state in (("untouched", None), ("steered", model.start("random", 3))):
        for length, lengths in (("short", SHORT), ("long", LONG)):
            several = texts(lengths)
            right = own_logprobs(backbone, several, state, sites)
            found[f"{name} {length}"] = worst(model.answer_logprobs(model.batch(several), state)[0], right)
            one = [
                Tokens(s.ids[: s.prompt_length + s.answer_lengths[0]], s.prompt_length, s.answer_lengths[:1])
                for s in several
            ]
            right = own_logprobs(backbone, one, state, sites)
            found[f"{name} {length}, one answer"] = worst(model.answer_logprobs(model.batch(one), state)[0], right)
        prompts = [Tokens(s.ids[: s.prompt_length], s.prompt_length) for s in several]
        expected = [own_continuation(backbone, prompt, 5, state, sites) for prompt in prompts]
        written = model.generate(prompts, state, 5)
        told = [a == b or margin < NEAR for a, (b, margin) in zip(written, expected, strict=True)]
        found[f"{name} generation"] = 0.0 if all(told) else float("inf")
    return found


def of_encoder(model):
    backbone, sites, found = model.backbone, model.adapter.sites, {}
    with_head = SteeredModel(backbone, model.adapter, Head(backbone.hidden_size, 3))
    for name, state in (("untouched", None), ("steered", with_head.start("random", 3))):
        pairs = [
            Tokens(s.ids, len(s.ids), segments=tuple(int(i > 7) for i in range(len(s.ids))))
            for s in texts(((60,), (11,), (33,)))
        ]
        hidden = [
            own(backbone, s.ids, len(s.ids), state, sites, **told(backbone, s)).last_hidden_state[0] for s in pairs
        ]
        batch = with_head.batch(pairs)
        given = with_head.hidden_states(batch, state)
        found[f"{name} hidden states"] = max(worst(given[i, : len(h)], h) for i, h in enumerate(hidden))
        if state:
            right = torch.stack([head_by_hand(h[0].float(), state) for h in hidden])
            found["classes"] = worst(with_head.class_logits(batch, state), right)
    return found


def told(backbone, text):
    tells = (getattr(backbone.model.config, "type_vocab_size", None) or 1) > 1
    known = "token_type_ids" in inspect.signature(backbone.model.forward).parameters
    return {"token_type_ids": torch.tensor([text.segments])} if tells and known else {}


def head_by_hand(h, state):
    return state["head.C"] @ torch.tanh(state["head.D"] @ h + state["head.e"]) + state["head.f"]


def worst(found, right):
    return float((found.float() - right).abs().max() / max(1.0, float(right.abs().max()) / 10))


# ---- every family ----------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")  # models warn of settings of their own
@pytest.mark.parametrize(
    ("kind", "families", "least"),
    [
        ("causal", ["llama", "granite", "gemma2", "lfm2"], 3),  # each of which is read in another way
        ("encoder", ["roberta", "convbert"], 2),
        *(pytest.param("causal", DECODERS[i::4], 9, marks=pytest.mark.slow) for i in range(4)),
        pytest.param("encoder", ENCODERS, 15, marks=pytest.mark.slow),
    ],
    ids=["some decoders", "some encoders", *(f"all decoders, part {i + 1}" for i in range(4)), "all encoders"],
)
def test_every_family_is_right_or_refused(kind, families, least):
    built = [family for family in families if family in DECODERS + ENCODERS and can_be_built(family, kind)]
    found = {family: differences(family, kind) for family in built}
    wrong = {
        (family, what): apart for family, each in found.items() for what, apart in each.items() if not apart <= NEAR
    }
    assert not wrong
    assert sum(map(bool, found.values())) >= least


def test_the_reference_tells_wrong_ways_from_right_ones():
    """Without this the test above could not fail."""
    for family, wrong in (("lfm2", Ways()), ("mistral", Ways()), ("granite", Ways("apart"))):
        if family not in DECODERS:
            continue
        model = steered(backbone_of(family, "causal"))
        right = own_logprobs(model.backbone, texts(LONG), None, model.adapter.sites)
        trial = model.read_by(wrong)
        assert worst(trial.answer_logprobs(trial.batch(texts(LONG)), None)[0], right) > 100 * NEAR
    convbert = steered(backbone_of("convbert", "encoder")).read_by(Ways())
    pairs = [Tokens(s.ids, len(s.ids)) for s in texts(((60,), (11,)))]
    alone = own(convbert.backbone, pairs[1].ids, 11, None, None).last_hidden_state[0]
    assert worst(convbert.hidden_states(convbert.batch(pairs), None)[1, :11], alone) > 100 * NEAR


@pytest.mark.parametrize("family", ["granite", "minicpm3"])
@pytest.mark.parametrize("tokens", [8, 16])
def test_a_row_as_long_as_what_is_read_of_it_is_read_once(family, tokens):
    """Where logits are picked in the model's own forward pass, m of them may look like all T."""
    if family not in DECODERS:
        pytest.skip(f"this transformers has no {family}")
    model = steered(backbone_of(family, "causal"))
    for prompt in range(1, tokens):
        one = texts([(prompt, tokens - prompt)])
        found, _ = model.answer_logprobs(model.batch(one), None)
        assert worst(found, own_logprobs(model.backbone, one, None, None)) < NEAR


# ---- which ways are taken --------------------------------------------------------------------------------------------


@pairwise(
    reading={
        "llama": ("llama", 100, {"whole": True, "bare": True, "cached": True}),
        "granite": ("granite", 100, {"whole": True, "bare": False, "cached": True}),  # logits are divided by 8
        "gemma2 16": ("gemma2", 16, {"whole": True, "bare": False, "cached": True}),  # and capped; a window of 16
        "gemma2 17": ("gemma2", 17, {"whole": False, "bare": False, "cached": True}),
        "mistral 16": ("mistral", 16, {"whole": True, "bare": True, "cached": True}),
        "mistral 17": ("mistral", 17, {"whole": False, "bare": True, "cached": True}),
        "lfm2": ("lfm2", 16, {"whole": False, "bare": True, "cached": False}),  # convolutions
        "mamba": ("mamba", 16, {"whole": False, "cached": False}),  # recurrent
    },
    dtype={"float32": torch.float32, "bfloat16": torch.bfloat16},
    scale=[1, 2],
)
def test_the_fast_ways_are_taken_where_they_are_right(reading, dtype, scale):
    family, longest, ways = reading
    if family not in DECODERS or (family == "gemma2" and not GIVEN):
        pytest.skip(f"this transformers has no {family}, or one with a cache of its own")
    backbone = backbone_of(family, "causal", scale=scale)
    backbone.model.to(dtype)
    found = steered(backbone).ways(longest, writes=True)
    assert {name: getattr(found, name) for name in ways} == ways
    assert (str(found) == "fast") == all(ways.values())


def test_a_trial_is_as_long_as_the_texts_or_a_window_or_the_positions():
    llama, mistral = (tiny_config(family, max_position_embeddings=2048) for family in ("llama", "mistral"))
    mistral.sliding_window = 100
    sizes = {1: 64, 64: 64, 65: 128, 129: 256, 256: 256, 257: 512, 1025: 2048, 2048: 2048, 2049: 4096}
    assert {n: size_of(n, llama) for n in sizes} == sizes
    assert [size_of(n, mistral) for n in (1, 64, 65, 100, 101, 300)] == [64, 64, 100, 100, 128, 512]
    assert [size_of(n, llama, most=512) for n in (65, 300, 512)] == [128, 512, 512]
    assert windows(mistral) == [100] and windows(llama) == []


def test_a_limit_on_length_by_any_name_is_no_refusal_of_what_is_shorter():
    model = steered(backbone_of("mpt", "causal", max_seq_len=120))  # so no trial of 128 tokens
    assert model.ways(100) == model.ways(60)
    with pytest.raises(FedReFTError, match="mpt cannot read a text of 200 tokens .* smaller max_length"):
        model.ways(200)


@pytest.mark.parametrize(
    ("family", "kind", "sentence"),
    [
        (
            "bert",
            "causal",
            "bert cannot be used as a decoder: what it makes of a token depends on the tokens after it.",
        ),
        ("albert", "encoder", "No list of 4 transformer blocks was found in AlbertModel"),
        ("longformer", "encoder", "longformer cannot be steered: its 4 blocks are not passed once each, in order"),
    ],
)
def test_what_cannot_be_used_is_refused_in_a_sentence(family, kind, sentence):
    with pytest.raises(FedReFTError, match=f"^{sentence}"):
        steered(backbone_of(family, kind)).ways(20)


@pytest.mark.skipif(not GIVEN, reason="settings of rotary positions had another form")
def test_positions_that_depend_on_what_was_read_are_no_silent_difference():
    """Dynamic scaling stretches positions for a long text, and keeps them stretched; longrope does so for a batch."""
    dynamic = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
    model = steered(backbone_of("llama", "causal", max_position_embeddings=64, rope_parameters=dynamic))
    assert str(model.ways(60)) == "fast"
    with pytest.raises(FedReFTError, match="depends on the texts that it has read before"):
        model.ways(300)
    factors = {"short_factor": [1.0] * 8, "long_factor": [3.0] * 8, "original_max_position_embeddings": 64}
    longrope = {"rope_type": "longrope", "rope_theta": 1e4, **factors}
    model = steered(backbone_of("llama", "causal", max_position_embeddings=512, rope_parameters=longrope))
    together = texts([(290, 10), (25, 5), (90, 10)])
    right = own_logprobs(model.backbone, together, None, None)
    assert worst(model.answer_logprobs(model.batch(together), None)[0], right) < NEAR


def test_a_model_that_changes_its_settings_as_it_reads_is_refused():
    sparse = {
        "attention_type": "block_sparse",
        "block_size": 16,
        "num_random_blocks": 1,
        "max_position_embeddings": 1024,
    }
    with pytest.raises(FedReFTError, match="for texts that it has read before .attention_type became 'original_full'"):
        steered(backbone_of("big_bird", "encoder", **sparse)).ways(60)


def test_numbers_that_say_which_blocks_have_a_window_are_none():
    config = tiny_config("qwen2", use_sliding_window=False, max_window_layers=28)
    assert windows(config) == []


def test_what_a_generation_config_asks_for_and_greedy_texts_leave_out_is_known():
    model = load_backbone("tiny-llama").model
    assert left_out(model) == ""
    model.generation_config.update(repetition_penalty=1.8, suppress_tokens=[5], do_sample=True, eos_token_id=[1, 7])
    assert left_out(model) == "repetition_penalty=1.8, suppress_tokens=[5]"


def test_a_text_without_a_prompt_is_refused():
    model = steered(backbone_of("llama", "causal"))
    with pytest.raises(DataError, match="without a prompt has nothing that predicts its first token"):
        model.batch([Tokens((30, 31, 32), 2, (1,)), Tokens((20, 21), 0, (2,))])


def test_a_model_that_agrees_with_itself_in_no_way_is_refused():
    backbone = backbone_of("llama", "causal")
    torch.manual_seed(0)
    norm = backbone.model.model.norm
    norm.register_forward_hook(lambda module, args, output: output + torch.randn_like(output))
    with pytest.raises(FedReFTError, match="cannot be used"):
        steered(backbone).ways(20)


@pytest.mark.skipif(not GIVEN, reason="this transformers has no way to set it")
def test_another_attention_is_tried_anew():
    model = steered(backbone_of("llama", "causal"))
    before = model.ways(20)
    model.backbone.model.set_attn_implementation("eager")
    assert before.layout in ("packed", "together") and model.ways(20).layout == "together"


@pytest.mark.skipif(not GIVEN, reason="this transformers reads no packed batches")
def test_longer_texts_trial_serves_shorter_ones_where_nothing_is_faster(monkeypatch):
    model, tried = steered(backbone_of("llama", "causal")), []
    found = agreement.found
    monkeypatch.setattr(
        agreement, "found", lambda model, size, writes: tried.append(size) or found(model, size, writes)
    )
    assert model.ways(100) == Ways("packed") == model.ways(20) and len(tried) == 1
    model.ways(20, writes=True)  # a cache is tried by itself
    assert len(tried) == 2
    slower = steered(backbone_of("llama", "causal"))
    slower.backbone.tried[size_of(100, slower.backbone.model.config), False, NAME] = Ways("together")
    assert slower.ways(20) == Ways("packed") and len(tried) == 3
