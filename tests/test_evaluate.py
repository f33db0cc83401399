"""Which answers are right: against brute force with a plain Hugging Face model."""

import pytest
import torch

from fedreft_lib import RunConfig, evaluate
from fedreft_lib.evaluate import extract_label
from fedreft_lib.tasks import render
from fedreft_lib.worlds import open_world

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


def argmax(values):
    return max(range(len(values)), key=values.__getitem__)


@pytest.mark.parametrize("prompt_format", ["plain", "llm_adapters"])
def test_choices_are_those_of_brute_force_and_counted_per_character_where_asked(prompt_format):
    base = RunConfig(**SMALL, prompt_format=prompt_format, max_length=512)
    chosen, expected = {}, {}
    for scoring in ("likelihood", "likelihood_per_character"):
        config = base.but(scoring=scoring)
        world = open_world(config)
        for client, questions in zip(world.clients, world.questions, strict=True):
            scores = [brute_force(world.model, q, prompt_format) for q in questions.test]
            per_character = scoring == "likelihood_per_character"
            best = [
                argmax([s / n if per_character else s for s, n in zip(sums, lengths, strict=True)])
                for sums, lengths in scores
            ]
            found = evaluate.chosen(world.model, None, client.test[0], config)
            assert found.tolist() == best
            chosen.setdefault(scoring, []).extend(found.tolist())
            expected[client.name] = [q.gold for q in questions.test]
            right = evaluate.correct(world.model, None, client.test[0], config)
            assert right.tolist() == [a == b for a, b in zip(best, expected[client.name], strict=True)]
    assert len(set(chosen["likelihood"])) > 1  # the model has preferences
    if prompt_format == "plain":  # options of different lengths: the two ways of scoring differ
        assert chosen["likelihood"] != chosen["likelihood_per_character"]


def test_the_loss_is_the_mean_over_all_answer_tokens_whatever_the_batches():
    config = RunConfig(**SMALL)
    world = open_world(config)
    client, questions = world.clients[0], world.questions[0].held_out
    total = tokens = 0
    for question in questions:
        sums, _ = brute_force(world.model, question, "plain")
        option = render(question, "plain").options[question.gold]
        total, tokens = total - sums[question.gold], tokens + len(option.encode())  # a byte is a token
    for batch_size in (1, 3, 100):
        assert evaluate.loss(world.model, None, client.held_out, batch_size) == pytest.approx(total / tokens, abs=1e-5)


def test_the_order_of_options_and_questions_does_not_decide():
    config = RunConfig(**SMALL)
    world = open_world(config)
    (test,) = world.clients[0].test
    model, state = world.model, world.model.start("random", 1)
    found = evaluate.chosen(model, state, test, config)
    order = torch.randperm(len(test), generator=torch.Generator().manual_seed(0)).tolist()
    assert torch.equal(evaluate.chosen(model, state, test.subset(order), config), found[order])
    assert torch.equal(evaluate.chosen(model, state, test, config.but(batch_size=1)), found)


# ---- generation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "labels", "expected"),
    [
        ("the correct answer is answer2", ("answer1", "answer2"), "answer2"),
        ("answer2, not answer1", ("answer1", "answer2"), "answer2"),  # the first that is said
        ("the correct answer is Answer2", ("answer1", "answer2"), None),  # as LLM-Adapters: the case counts
        ("", ("true", "false"), None),
        ("I do not know", ("true", "false"), None),
        ("falsetrue", ("true", "false"), "false"),
        ("untrue", ("true", "false"), "true"),  # words are not looked at, as there
        ("the solution1solution2", ("solution1", "solution2"), "solution1"),
        ("answer3", ("answer1", "answer2"), None),
        ("a.b", ("a+b", "a.b"), "a.b"),
        ("axb", ("a+b", "a.b"), None),  # labels are words, not patterns
    ],
)
def test_the_label_is_the_first_answer_word_in_what_was_written(text, labels, expected):
    assert extract_label(text, labels) == expected


def test_generation_is_scored_by_the_label_each_text_gives(monkeypatch):
    config = RunConfig(**SMALL, scoring="generation", prompt_format="llm_adapters", max_length=512)
    world = open_world(config)
    client, questions = world.clients[0], world.questions[0].test
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
        return [texts[world.model.backbone.tokenizer.decode(prompt.ids)] for prompt in prompts]

    monkeypatch.setattr(world.model, "generate", generate)
    assert evaluate.correct(world.model, None, client.test[0], config).tolist() == expected


def test_generation_is_really_written_by_the_steered_model():
    config = RunConfig(**SMALL, scoring="generation", prompt_format="llm_adapters", max_length=512)
    world = open_world(config)
    model, test = world.model, world.clients[1].test[0]
    state = model.start("random", 1)
    written = evaluate.generated(model, state, test, config)
    assert written == [model.generate([prompt], state, 32)[0] for prompt in test.sequences]
