"""The prompts are LLM-Adapters' to the character, and every option continues one shared prompt.

The rows are our own words in the form of LLM-Adapters' files; none is a benchmark question.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedreft_lib.data import TASKS, Question, render
from fedreft_lib.data.commonsense import llm_adapters_instruction, llm_adapters_output, parse_llm_adapters
from fedreft_lib.errors import ConfigError, DataError

ROWS = [
    (
        Question("boolq", "Bridges are built over rivers.", "do boats sink in rain", ("true", "false"), 1),
        "Please answer the following question with true or false, question: do boats sink in rain?\n\n"
        "Answer format: true/false",
        "the correct answer is false",
    ),
    (
        Question("piqa", "", "dry a wet book", ("stand it up open ", "keep it  shut"), 0),  # spaces are kept
        "Please choose the correct solution to the question: dry a wet book\n\nSolution1: stand it up open \n\n"
        "Solution2: keep it  shut\n\nAnswer format: solution1/solution2",
        "the correct answer is solution1",
    ),
    (
        Question("siqa", "Kim lent Lee a pen.", "How would Lee feel?", ("thankful", "angry", "asleep"), 0),
        "Please choose the correct answer to the question: Kim lent Lee a pen. How would Lee feel?\n\n"
        "Answer1: thankful Answer2: angry Answer3: asleep\n\nAnswer format: answer1/answer2/answer3",
        "the correct answer is answer1",
    ),
    (
        Question(
            "hellaswag", "Juggling", "A girl holds four balls. she", ("throws one.", "eats.", "swims.", "sings."), 0
        ),
        "Please choose the correct ending to complete the given sentence: Juggling: A girl holds four balls. she\n\n"
        "Ending1: throws one. Ending2: eats. Ending3: swims. Ending4: sings.\n\n"
        "Answer format: ending1/ending2/ending3/ending4",
        "the correct answer is ending1",
    ),
    (
        Question("winogrande", "", "The cup fell off the shelf since the _ was slanted.", ("cup", "shelf"), 1),
        "Please choose the correct answer to fill in the blank to complete the given sentence: The cup fell off the "
        "shelf since the _ was slanted.\n\nOption1: cup Option2: shelf Answer format: option1/option2",
        "the correct answer is option2",
    ),
    (
        Question("arc_easy", "", "Which of these is warm?", ("ice", "fire", "snow"), 1),  # a few have 3 or 5 choices
        "Please choose the correct answer to the question: Which of these is warm?\n\n"
        "Answer1: ice Answer2: fire Answer3: snow\n\nAnswer format: answer1/answer2/answer3",
        "the correct answer is answer2",
    ),
    (
        Question("arc_challenge", "", "What melts first?", ("wax", "iron", "gold", "lead", "tin"), 0),
        "Please choose the correct answer to the question: What melts first?\n\nAnswer1: wax Answer2: iron "
        "Answer3: gold Answer4: lead Answer5: tin\n\nAnswer format: answer1/answer2/answer3/answer4/answer5",
        "the correct answer is answer1",
    ),
    (
        Question("openbookqa", "", "A hungry owl would rather have", ("a stone", "a mouse", "a leaf", "a lamp"), 1),
        "Please choose the correct answer to the question: A hungry owl would rather have\n\nAnswer1: a stone "
        "Answer2: a mouse Answer3: a leaf Answer4: a lamp\n\nAnswer format: answer1/answer2/answer3/answer4",
        "the correct answer is answer2",
    ),
]
by_task = pytest.mark.parametrize("question, instruction, output", ROWS, ids=[row[0].task for row in ROWS])


def test_every_task_has_a_row():
    assert tuple(row[0].task for row in ROWS) == TASKS


@by_task
def test_instruction_and_output_are_llm_adapters_to_the_character(question, instruction, output):
    assert llm_adapters_instruction(question) == instruction
    assert llm_adapters_output(question) == output


@by_task
def test_what_is_parsed_back_renders_to_the_same_text(question, instruction, output):
    parsed = parse_llm_adapters(question.task, instruction, output.removeprefix("the correct answer is "))
    assert llm_adapters_instruction(parsed) == instruction
    assert llm_adapters_output(parsed) == output
    assert parsed.choices == question.choices
    if question.task != "boolq":  # LLM-Adapters leaves the passage out
        assert parsed.uid == question.uid


@by_task
def test_the_model_sees_reft_s_frame(question, instruction, output):
    example = render(question, "llm_adapters")
    assert example.prompt == instruction + "\n"  # pyreft: task_prompt_template "%s\n"
    assert example.options[example.gold] == output  # pyreft: trigger_tokens + answer
    assert output == f"the correct answer is {example.label}"
    assert len(set(example.options)) == len(question.choices)


@given(
    task=st.sampled_from([task for task in TASKS if task != "boolq"]),
    texts=st.lists(
        st.text(st.characters(exclude_characters=":")).map(lambda s: s + "x"), min_size=3, max_size=6, unique=True
    ),
    data=st.data(),
)
def test_any_text_survives_the_round_trip(task, texts, data):
    asked, *choices = texts
    gold = data.draw(st.integers(0, len(choices) - 1))
    question = Question(task, "", asked, tuple(choices), gold)
    answer = llm_adapters_output(question).rsplit(" ", 1)[1]
    assert parse_llm_adapters(task, llm_adapters_instruction(question), answer) == question


@pytest.mark.parametrize(
    "instruction, answer, said",
    [
        ("What is warm?", "answer1", "template of arc_easy"),
        (ROWS[5][1].replace("Answer2", "Answer 2"), "answer1", "template of arc_easy"),
        (ROWS[5][1] + " ", "answer1", "template of arc_easy"),
        (ROWS[5][1].replace("Please choose", "Choose"), "answer1", "template of arc_easy"),
        (ROWS[5][1], "answer4", "answer1/answer2/answer3"),
        (ROWS[5][1], None, "answer1/answer2/answer3"),
    ],
)
def test_text_that_does_not_follow_the_template_is_refused(instruction, answer, said):
    with pytest.raises(DataError, match=said):
        parse_llm_adapters("arc_easy", instruction, answer)


PLAIN = {
    "boolq": ("Bridges are built over rivers.\nQuestion: do boats sink in rain?\nAnswer:", (" yes", " no")),
    "piqa": ("Goal: dry a wet book\nAnswer:", (" stand it up open", " keep it  shut")),
    "siqa": ("Question: Kim lent Lee a pen. How would Lee feel?\nAnswer:", (" thankful", " angry", " asleep")),
    "hellaswag": ("Juggling: A girl holds four balls. She", (" throws one.", " eats.", " swims.", " sings.")),
    "winogrande": (
        "Sentence: The cup fell off the shelf since the _ was slanted.\nQuestion: What does the _ stand for?\nAnswer:",
        (" cup", " shelf"),
    ),
    "arc_easy": ("Question: Which of these is warm?\nAnswer:", (" ice", " fire", " snow")),
    "arc_challenge": ("Question: What melts first?\nAnswer:", (" wax", " iron", " gold", " lead", " tin")),
    "openbookqa": (
        "Question: A hungry owl would rather have\nAnswer:",
        (" a stone", " a mouse", " a leaf", " a lamp"),
    ),
}


@by_task
def test_plain_prompts(question, instruction, output):
    example = render(question, "plain")
    assert (example.prompt, example.options) == PLAIN[question.task]
    assert (example.gold, example.label, example.uid) == (question.gold, "", question.uid)


def test_plain_hellaswag_has_no_wikihow_markers():
    beginning = "[header] How to knot a rope [title] Lay it flat. [step] Use a table."
    question = Question("hellaswag", "Crafts", beginning, ("[step] Pull both ends. [title] Rest.", "Eat it."), 0)
    example = render(question, "plain")
    assert example.prompt == "Crafts: How to knot a rope. Lay it flat. Use a table."
    assert example.options == (" Pull both ends. Rest.", " Eat it.")
    assert "[header] How to knot a rope [title]" in render(question, "llm_adapters").prompt


def test_a_task_of_your_own_gets_the_generic_forms():
    question = Question("riddles", "It has keys.", "What is it?", ("a piano", "a fish"), 0)
    assert render(question, "plain").prompt == "Question: It has keys. What is it?\nAnswer:"
    assert llm_adapters_instruction(question) == (
        "Please choose the correct answer to the question: It has keys. What is it?\n\n"
        "Answer1: a piano Answer2: a fish\n\nAnswer format: answer1/answer2"
    )


def test_an_unknown_prompt_format_is_refused_with_the_ones_there_are():
    with pytest.raises(ConfigError, match="llm_adapters, plain, got 'alpaca'"):
        render(ROWS[0][0], "alpaca")


def test_the_uid_finds_repeats_and_nothing_else():
    question = Question("arc_easy", "", "Which is  WARM?", ("ice", "fire"), 1)
    for repeat in (
        Question("arc_challenge", "", "which is warm?", ("Fire", "ice "), 0),
        Question("arc_easy", "Which is", "warm?", ("ice", "fire"), 0),
    ):
        assert repeat.uid == question.uid
    accents = [Question("t", "", f"A {cafe}?", ("here", "there"), 0) for cafe in ("café", "CAFE\u0301", "cafe")]
    assert accents[0].uid == accents[1].uid != accents[2].uid
    for other in (
        Question("arc_easy", "", "Which is cold?", ("ice", "fire"), 1),
        Question("arc_easy", "", "Which is warm?", ("ice", "fire", "tea"), 1),
    ):
        assert other.uid != question.uid


@pytest.mark.parametrize(
    "fields, said",
    [
        (("", "q", ("a",), 0), "at least 2 choices"),
        (("", "q", ("a", "b"), 2), "from 0 to 1, got 2"),
        (("", "q", ("a", "b"), -1), "got -1"),
        (("", "q", ("a", "b"), True), "got True"),
        (("", "q", ("a", "b"), "0"), "got '0'"),
        (("", " ", ("a", "b"), 0), "empty"),
        (("", "q", ("a", 1), 0), "must be text"),
        ((None, "q", ("a", "b"), 0), "must be text"),
    ],
)
def test_a_malformed_question_is_refused(fields, said):
    with pytest.raises(DataError, match=said):
        Question("arc_easy", *fields)
