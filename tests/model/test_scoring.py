"""Which answers are right: against brute force with a plain Hugging Face model."""

import json
import math
import random
import re
from collections import Counter

import numpy as np
import pytest
import torch

from fedreft_lib import RunConfig
from fedreft_lib.data import render
from fedreft_lib.data.grading.calibration import calibrated_nll
from fedreft_lib.errors import DataError
from fedreft_lib.federation.assembly import assemble
from fedreft_lib.model import scoring
from fedreft_lib.model.encoding import AnswerSet, ChoiceSet
from fedreft_lib.model.scoring import extract_label
from fedreft_lib.model.tokens import Tokens
from fedreft_lib.model.ways import Ways

SMALL = dict(
    backbone="tiny-llama", source="synthetic", setup="iid", clients=2, method="local", tasks=("piqa", "boolq", "siqa"),
    layers="0-1", rank=3, train_size=6, held_out_size=4, test_size=12, batch_size=4,
)  # fmt: skip


def brute_force(model, question, prompt_format):
    """For each option the summed log-probability of its tokens after the prompt, one forward pass each."""
    backbone, example = model.backbone, render(question, prompt_format)
    sums = []
    for option in example.options:
        prompt = backbone.tokenizer(example.prompt).input_ids
        answer = backbone.tokenizer(option, add_special_tokens=False).input_ids
        if prompt_format == "llm_adapters":
            answer = [*answer, backbone.tokenizer.eos_token_id]
        with torch.no_grad():
            logprobs = backbone.model(torch.tensor([prompt + answer])).logits[0].double().log_softmax(-1)
        sums.append(sum(float(logprobs[len(prompt) - 1 + i, token]) for i, token in enumerate(answer)))
    return sums, [len(option.strip()) for option in example.options]


@pytest.mark.parametrize("prompt_format", ["plain", "llm_adapters"])
def test_choices_are_those_of_brute_force_and_counted_per_character_where_asked(prompt_format):
    base = RunConfig(**SMALL, prompt_format=prompt_format, max_length=512)
    chosen, expected = {}, {}
    for way in ("likelihood", "likelihood_per_character"):
        config = base.but(scoring=way)
        federation = assemble(config)
        for client, questions in zip(federation.clients, federation.questions, strict=True):
            scores = [brute_force(federation.model, q, prompt_format) for q in questions.test]
            per_character = way == "likelihood_per_character"
            scores = [np.divide(sums, lengths) if per_character else np.array(sums) for sums, lengths in scores]
            best = [int(each.argmax()) for each in scores]
            right, options = scoring.correct(federation.model, None, client.test[0], config)
            found = [int(each.argmax()) for each in options]
            assert found == best
            chosen.setdefault(way, []).extend(found)
            expected[client.name] = [q.gold for q in questions.test]
            assert right.tolist() == [a == b for a, b in zip(best, expected[client.name], strict=True)]
            nll = calibrated_nll(scores, expected[client.name])
            noted = scoring.scores(client.test[0], federation.model, None, config)
            assert noted[2:] == [
                ("mixed", "calibrated_nll", pytest.approx(each, rel=1e-3)) for each in (nll.mean(), nll)
            ]
    assert len(set(chosen["likelihood"])) > 1  # the model has preferences
    if prompt_format == "plain":  # options of different lengths: the two ways of scoring differ
        assert chosen["likelihood"] != chosen["likelihood_per_character"]


def test_the_loss_is_the_mean_over_all_answer_tokens_whatever_the_batches():
    config = RunConfig(**SMALL)
    federation = assemble(config)
    client, questions = federation.clients[0], federation.questions[0].held_out
    total = tokens = 0
    for question in questions:
        sums, _ = brute_force(federation.model, question, "plain")
        option = render(question, "plain").options[question.gold]
        total, tokens = total - sums[question.gold], tokens + len(option.encode())  # a byte is a token
    for batch_size in (1, 3, 100):
        assert scoring.loss(federation.model, None, client.held_out, batch_size) == pytest.approx(
            total / tokens, abs=1e-5
        )


@pytest.mark.parametrize("prompt_format", ["plain", "llm_adapters"])
@pytest.mark.parametrize("layout", [None, "together", "apart", "alone"])
def test_the_loss_of_a_choice_is_that_of_the_options_summed_log_probabilities(prompt_format, layout):
    """Two, three and two options, of several bytes each."""
    config = RunConfig(**SMALL, prompt_format=prompt_format, max_length=512, objective="choice")
    federation = assemble(config)
    model = federation.model.read_by(Ways(layout)) if layout else federation.model
    for data, items in ((c.train, q.train) for c, q in zip(federation.clients, federation.questions, strict=True)):
        sums = [brute_force(federation.model, question, prompt_format)[0] for question in items]
        assert len({len(each) for each in sums}) == 2
        wanted = [-float(torch.tensor(s).log_softmax(0)[q.gold]) for s, q in zip(sums, items, strict=True)]
        found = data.losses(model, range(len(items)), None)
        assert found.dtype == torch.float32 and found.tolist() == pytest.approx(wanted, abs=2e-4)
        assert data.losses(model, [4, 1], None).tolist() == pytest.approx([wanted[4], wanted[1]], abs=2e-4)
        assert [data.losses_in(i) for i in range(len(items))] == [1] * len(items)
        scores = data.option_scores(model, range(len(items)), None)
        for row, own in zip(scores, sums, strict=True):
            assert row[: len(own)].tolist() == pytest.approx(own, abs=2e-4)
            assert bool(row[len(own) :].eq(-math.inf).all())


def test_the_loss_of_a_choice_has_the_gradient_of_the_summed_log_probabilities():
    config = RunConfig(**SMALL, objective="choice", scoring="likelihood_per_character")
    federation = assemble(config)
    data, model = federation.clients[0].train, federation.model
    state = {name: tensor.requires_grad_() for name, tensor in model.start("random", 1).items()}
    found = torch.autograd.grad(data.losses(model, range(len(data)), state).mean(), list(state.values()))
    total = 0.0
    for sequence, gold in zip(data.sequences, data.gold, strict=True):
        sums, prompt = [], sequence.ids[: sequence.prompt_length]
        for answer in sequence.answers:  # each option is read by itself
            alone = Tokens((*prompt, *answer), len(prompt), (len(answer),))
            sums.append(model.answer_logprobs(model.batch([alone]), state)[0].sum())
        total = total - torch.stack(sums).log_softmax(0)[gold] / len(data)
    for mine, theirs in zip(found, torch.autograd.grad(total, list(state.values())), strict=True):
        assert float(theirs.abs().max()) > 1e-5
        torch.testing.assert_close(mine, theirs, atol=2e-5, rtol=1e-3)


def test_training_on_choices_does_not_change_what_is_tested():
    for way in ("likelihood", "likelihood_per_character"):
        configs = [RunConfig(**SMALL, objective=each, scoring=way) for each in ("answer", "choice")]
        one, other = map(assemble, configs)
        state = one.model.start("random", 1)
        for a, b in zip(one.clients, other.clients, strict=True):
            assert isinstance(a.train, AnswerSet) and isinstance(b.train, ChoiceSet)
            tests = zip((one, other), (a, b), configs, strict=True)
            found = [scoring.correct(each.model, state, c.test[0], config)[0] for each, c, config in tests]
            assert torch.equal(*found)


def test_free_answers_are_not_trained_on_as_choices(tmp_path):
    rows = [{"prompt": f"Go on, {i}", "response": f"so {i}"} for i in range(20)]
    for split in ("train", "test"):
        own = [{**row, "prompt": f"{split} {row['prompt']}"} for row in rows]
        (tmp_path / f"story_{split}.json").write_text(json.dumps(own))
    local = {**SMALL, "source": "local", "data_dir": str(tmp_path), "tasks": ("story",), "benchmark": "instruction"}
    config = RunConfig(**{**local, "test_size": 4}, objective="choice")
    with pytest.raises(DataError, match='story: objective="choice" needs questions with choices, here is a free'):
        assemble(config)


def test_the_order_of_options_and_questions_does_not_decide():
    config = RunConfig(**SMALL)
    federation = assemble(config)
    (test,) = federation.clients[0].test
    model, state = federation.model, federation.model.start("random", 1)

    def chosen(test, config):
        return torch.stack([each.argmax() for each in scoring.option_scores(model, state, test, config)])

    found = chosen(test, config)
    order = torch.randperm(len(test), generator=torch.Generator().manual_seed(0)).tolist()
    assert torch.equal(chosen(test.subset(order), config), found[order])
    assert torch.equal(chosen(test, config.but(batch_size=1)), found)


# ---- generation -----------------------------------------------------------------------------------------------------


TWELVE = tuple(f"answer{i}" for i in range(1, 13))
BOOLQ = ("true", "false")


@pytest.mark.parametrize(
    ("text", "labels", "expected"),
    [
        ("the correct answer is answer2", ("answer1", "answer2"), "answer2"),
        ("answer2, not answer1", ("answer1", "answer2"), "answer2"),  # the first that is said
        ("the correct answer is Answer2", ("answer1", "answer2"), None),  # as LLM-Adapters: the case counts
        ("", BOOLQ, None),
        ("I do not know", BOOLQ, None),
        ("falsetrue", BOOLQ, "false"),
        ("truetruetrue.", BOOLQ, "true"),
        ("the solution1solution2", ("solution1", "solution2"), "solution1"),
        ("the correct answer isanswer2The", ("answer1", "answer2"), "answer2"),
        ("answer3", ("answer1", "answer2"), None),
        ("a.b", ("a+b", "a.b"), "a.b"),
        ("axb", ("a+b", "a.b"), None),  # labels are words, not patterns
        # a label that begins with another, or is a piece of a longer word or number
        ("the correct answer is answer10", TWELVE, "answer10"),
        ("answer12answer1", TWELVE, "answer12"),
        ("answer13", TWELVE, None),
        ("option12", ("option1", "option2"), None),
        ("That is untrue.", BOOLQ, None),
        ("untrue, so false", BOOLQ, "false"),
        ("truly, truest", BOOLQ, None),
        ("Apples. Answer: A", ("A", "B"), "A"),
        ("(B).", ("A", "B"), "B"),
        ("New York City", ("New York", "New York City"), "New York City"),
        ("New York Citadel", ("New York", "New York City"), "New York"),
        ("it is not good", ("good", "not good"), "not good"),
        ("10", ("1", "0", "10"), "10"),
        ("is 2.5", ("2", "5", "2.5"), "2.5"),
        ("is 2.5", ("2", "5"), None),
        ("is 1,000", ("1", "1,000"), "1,000"),
        ("is -5", ("5", "-5"), "-5"),
        ("is -5", ("5", "4"), None),
        ("9-5 = 4, so 4.", ("4", "5"), "5"),  # no sign: the first number that is a label
        ("答案是北京。", ("北京", "上海"), "北京"),  # no blanks set words apart there
        ("\u0939\u093e\u0901", ("\u0939\u093e", "x"), None),  # a mark goes on with the word
        ("x", ("", "x"), "x"),
    ],
)
def test_the_label_is_the_first_answer_word_in_what_was_written(text, labels, expected):
    assert extract_label(text, labels) == expected


def test_the_paper_s_labels_are_read_as_the_pattern_of_llm_adapters_reads_them():
    """Its evaluate.py: the first match of solution1|solution2 and so on, where no longer number or word is meant."""
    rng, found = random.Random(0), Counter()
    for labels in (BOOLQ, TWELVE[:5], ("ending1", "ending2", "ending3", "ending4")):
        pieces = [*labels, " ", "\n", ". ", "The answer is ", ": ", "(", ")", "/", "-", "Answer", "#"]
        for _ in range(500):
            text = "".join(rng.choices(pieces, k=6))
            if labels is BOOLQ:  # a word that goes on with a letter is another word
                text = text.replace("Answer", "").replace("The", "")
            first = re.search("|".join(labels), text)
            found[first is None] += 1
            assert extract_label(text, labels) == (first and first[0]), text
    assert min(found.values()) > 100


def test_generation_is_scored_by_the_label_each_text_gives(monkeypatch):
    config = RunConfig(**SMALL, scoring="generation", prompt_format="llm_adapters", max_length=512)
    federation = assemble(config)
    client, questions = federation.clients[0], federation.questions[0].test
    examples = [render(question, "llm_adapters") for question in questions]
    kinds = ["right", "wrong", "silent", "late"]
    texts, expected = {}, []
    for i, example in enumerate(examples):
        kind = kinds[i % 4]
        wrong = next(o for j, o in enumerate(example.options) if j != example.gold)
        right = example.options[example.gold]
        texts[example.prompt] = {"right": right, "wrong": wrong, "silent": "hm", "late": f"{wrong} {right}"}[kind]
        expected.append(kind == "right")

    def generate(prompts, state, max_new_tokens, share):
        assert max_new_tokens == 32 and len(prompts) <= 2 * config.batch_size
        return [texts[federation.model.backbone.tokenizer.decode(prompt.ids)] for prompt in prompts]

    monkeypatch.setattr(federation.model, "generate", generate)
    assert scoring.scores(client.test[0], federation.model, None, config) == [
        ("mixed", "accuracy", pytest.approx(100 * sum(expected) / len(expected))),
        ("mixed", "accuracy", [100.0 * each for each in expected]),
    ]


def test_a_plain_prompt_is_graded_by_the_choices_own_words(monkeypatch, tmp_path):
    rows = [{"question": f"Good, {i}?", "choices": ["very good", "not good"], "gold": 1} for i in range(40)]
    for split, own in (("train", rows[:30]), ("test", rows[30:])):
        (tmp_path / f"taste_{split}.json").write_text(json.dumps(own))
    config = RunConfig(
        backbone="tiny-llama", benchmark="instruction", source="local", data_dir=str(tmp_path), tasks=("taste",),
        setup="iid", clients=2, method="local", layers="0-1", rank=3, train_size=6, held_out_size=4, test_size=4,
        batch_size=4, scoring="generation", prompt_format="plain",
    )  # fmt: skip
    federation = assemble(config)
    said = iter([" not good", " very good", " good", " It is not good."])
    monkeypatch.setattr(federation.model, "generate", lambda prompts, *args, **more: [next(said) for _ in prompts])
    assert sum(scoring.correct(federation.model, None, federation.clients[0].test[0], config)[0].tolist()) == 2


def test_generation_is_really_written_by_the_steered_model():
    config = RunConfig(**SMALL, scoring="generation", prompt_format="llm_adapters", max_length=512)
    federation = assemble(config)
    model, test = federation.model, federation.clients[1].test[0]
    state = model.start("random", 1)
    written = scoring.generated(model, state, test, config)
    assert written == [model.generate([prompt], state, 32)[0] for prompt in test.sequences]
