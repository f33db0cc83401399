"""The benchmark families: the paper's four and one with a known optimum, with one interface."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from . import agreement, arithmetic, commonsense, glue, instruction
from .commonsense_sources import load_questions
from .items import Item


@dataclass(frozen=True)
class Family:
    """A family of tasks.

    load(task, split, source=, data_dir=, seed=): the items of a split, "train", "dev" or "test"; "dev" is empty where
    held-out items come from the training set. Those of "agreement" are texts without labels yet.
    prompt(exchange, prompt_format): the text before a generated response.
    """

    tasks: tuple[str, ...]
    default_tasks: tuple[str, ...]
    load: Callable[..., list[Item]]
    backbone: Literal["causal", "encoder"] = "causal"
    default_backbone: str = "smollm2-135m-instruct"
    prompt: Callable[..., str] | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)  # of other parameters of a run


SHORT = ("arc_easy", "openbookqa", "piqa", "siqa")  # the four with the shortest questions

FAMILIES = {
    # Local files may have free text under any name; it uses the prompt of the instruction family.
    "commonsense": Family(commonsense.TASKS, SHORT, load_questions, prompt=instruction.prompt),
    "arithmetic": Family(arithmetic.TASKS, arithmetic.PACKAGED, arithmetic.load, prompt=arithmetic.prompt),
    "instruction": Family(instruction.TASKS, instruction.PACKAGED, instruction.load, prompt=instruction.prompt),
    "glue": Family(glue.TASKS, ("sst2",), glue.load, backbone="encoder", default_backbone="minilm-l6-v2"),
    "agreement": Family(
        commonsense.TASKS,
        SHORT,
        agreement.load,
        defaults={"setup": "iid", "positions": "l1", "objective": "choice", "scoring": "likelihood"},
    ),
}
