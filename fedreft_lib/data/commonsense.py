"""Prompts of the eight commonsense tasks, in two formats.

`llm_adapters`: the paper's. The instruction equals that of LLM-Adapters (Hu et al. 2023, arXiv 2304.01933; its files
`dataset/NAME/test.json` and `commonsense_170k.json`) in every character:

    Please choose the correct answer to the question: {context} {question}

    Answer1: {choice} Answer2: {choice} Answer3: {choice}

    Answer format: answer1/answer2/answer3

The answer is "the correct answer is answer2". The text around the instruction follows ReFT, since FedReFT uses pyreft
(`examples/loreft/task_config.py`: `task_prompt_template` "%s\\n", `trigger_tokens` "the correct answer is "): only a
line break, not the Alpaca text that LLM-Adapters' own `generate_prompt` adds.

HellaSwag's template was checked only on examples in public files; the other seven on whole test files.

`plain`: for small models. The options are the answers' own words, scored by their likelihood after one shared prompt.

Any other task name gets ARC's form in both formats, with the context before the question.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import ConfigError, DataError
from .items import Example, Question

TASKS = ("boolq", "piqa", "siqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa")
PROMPT_FORMATS = ("llm_adapters", "plain")


def render(question: Question, prompt_format: str) -> Example:
    """The question as a model sees it. Raises ConfigError for a format that does not exist."""
    if prompt_format == "plain":
        prompt, options = _plain(question)
        return Example(question.task, question.uid, prompt, options, question.gold, label="")
    if prompt_format == "llm_adapters":
        words = _answer_words(question)
        prompt = llm_adapters_instruction(question) + "\n"
        options = tuple(_TRIGGER + word for word in words)
        return Example(question.task, question.uid, prompt, options, question.gold, label=words[question.gold])
    raise ConfigError(f"prompt_format must be one of {', '.join(PROMPT_FORMATS)}, got {prompt_format!r}.")


# ---- LLM-Adapters -----------------------------------------------------------------------------------------------

_TRIGGER = "the correct answer is "
_BOOLQ_INTRO = "Please answer the following question with true or false, question: "
_BOOLQ_END = "?\n\nAnswer format: true/false"


@dataclass(frozen=True)
class _Template:
    """The parts of an instruction that differ between tasks, in order:

    {intro}{context}{joint}{question}, two line breaks, {Word}1: ...{between}{Word}2: ...{ending}Answer format: ...
    """

    intro: str
    word: str
    joint: str = " "
    between: str = " "
    ending: str = "\n\n"


_GENERIC = _Template("Please choose the correct answer to the question: ", "answer")
_TEMPLATES = {
    "piqa": _Template("Please choose the correct solution to the question: ", "solution", between="\n\n"),
    # Only WinoGrande has no line break before "Answer format".
    "winogrande": _Template(
        "Please choose the correct answer to fill in the blank to complete the given sentence: ", "option", ending=" "
    ),
    "hellaswag": _Template("Please choose the correct ending to complete the given sentence: ", "ending", joint=": "),
}


def llm_adapters_instruction(question: Question) -> str:
    """The `instruction` field of LLM-Adapters' files. It does not include BoolQ's passage, as there."""
    if question.task == "boolq":
        return _BOOLQ_INTRO + question.question + _BOOLQ_END
    template = _TEMPLATES.get(question.task, _GENERIC)
    words = _answer_words(question)
    asked = question.context + template.joint + question.question if question.context else question.question
    listed = template.between.join(
        f"{word.capitalize()}: {choice}" for word, choice in zip(words, question.choices, strict=True)
    )
    return f"{template.intro}{asked}\n\n{listed}{template.ending}Answer format: {'/'.join(words)}"


def llm_adapters_output(question: Question) -> str:
    """The `output` field of LLM-Adapters' files: the training text."""
    return _TRIGGER + _answer_words(question)[question.gold]


def parse_llm_adapters(task: str, instruction: str, answer: str) -> Question:
    """The inverse of `llm_adapters_instruction`. Raises DataError where the text does not follow the template.

    SIQA's context and question become one text in `question`, since the file does not separate them.
    """
    try:
        context, asked, choices, words = _take_apart(task, instruction)
    except ValueError:
        raise DataError(f"the instruction does not follow the LLM-Adapters template of {task}") from None
    if answer not in words:
        raise DataError(f"the answer must be one of {'/'.join(words)}, got {answer!r}")
    question = Question(task, context, asked, choices, words.index(answer))
    if llm_adapters_instruction(question) != instruction:
        raise DataError(f"the instruction does not follow the LLM-Adapters template of {task}")
    return question


def _take_apart(task: str, instruction: str) -> tuple[str, str, tuple[str, ...], list[str]]:
    if task == "boolq":
        asked = instruction.removeprefix(_BOOLQ_INTRO).removesuffix(_BOOLQ_END)
        return "", asked, ("true", "false"), ["true", "false"]
    template = _TEMPLATES.get(task, _GENERIC)
    body, format_line = instruction.rsplit(f"{template.ending}Answer format: ", 1)
    words = format_line.split("/")
    asked, rest = body.removeprefix(template.intro).split(f"\n\n{words[0].capitalize()}: ", 1)
    choices = []
    for word in words[1:]:
        choice, rest = rest.split(f"{template.between}{word.capitalize()}: ", 1)
        choices.append(choice)
    context = ""
    if task == "hellaswag" and template.joint in asked:
        context, asked = asked.split(template.joint, 1)
    return context, asked, (*choices, rest), words


def _answer_words(question: Question) -> list[str]:
    if question.task == "boolq":
        return ["true", "false"]
    word = _TEMPLATES.get(question.task, _GENERIC).word
    return [f"{word}{i}" for i in range(1, len(question.choices) + 1)]


# ---- plain ------------------------------------------------------------------------------------------------------


def _plain(question: Question) -> tuple[str, tuple[str, ...]]:
    return _PLAIN.get(question.task, _plain_generic)(question)


def _plain_generic(q: Question) -> tuple[str, tuple[str, ...]]:
    return f"Question: {f'{q.context} {q.question}'.strip()}\nAnswer:", _spaced(q.choices)


def _plain_boolq(q: Question) -> tuple[str, tuple[str, ...]]:
    return f"{q.context}\nQuestion: {q.question}?\nAnswer:".lstrip(), (" yes", " no")


def _plain_piqa(q: Question) -> tuple[str, tuple[str, ...]]:
    return f"Goal: {q.question.strip()}\nAnswer:", _spaced(q.choices)


def _plain_winogrande(q: Question) -> tuple[str, tuple[str, ...]]:
    # The usual likelihood score puts the option into the prompt and scores the rest of the sentence. Here interventions
    # edit the prompt, which is cached, and training uses the options. So all options need the same prompt: it asks
    # about the blank after the whole sentence.
    return f"Sentence: {q.question.strip()}\nQuestion: What does the _ stand for?\nAnswer:", _spaced(q.choices)


def _plain_hellaswag(q: Question) -> tuple[str, tuple[str, ...]]:
    beginning = _sentence_case(_without_markers(f"{q.context}: {q.question}" if q.context else q.question))
    return beginning, _spaced(tuple(map(_without_markers, q.choices)))


_PLAIN: dict[str, Callable[[Question], tuple[str, tuple[str, ...]]]] = {
    "boolq": _plain_boolq,
    "piqa": _plain_piqa,
    "winogrande": _plain_winogrande,
    "hellaswag": _plain_hellaswag,
}


def _spaced(choices: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(" " + choice.strip() for choice in choices)


def _without_markers(text: str) -> str:
    """HellaSwag without WikiHow's [header], [title], [step]: the cleaning of lm-evaluation-harness and ai2-olmo."""
    text = re.sub(r"\.? \[title\]", ". ", text.strip())
    text = re.sub(r"\[.*?\]", "", text)
    return text.replace("  ", " ").strip()


def _sentence_case(text: str) -> str:
    """Adds a capital after the last full stop, where HellaSwag's half-sentence begins ("... on a roof. he")."""
    return re.sub(r"([.!?:] +)([a-z])(?=[^.!?]*$)", lambda m: m[1] + m[2].upper(), text)
