"""A whole federation as a user would have it: ours, Flower's recipe for language models, a loop around pyreft.

Four clients, two rounds: the same model file, examples, optimiser steps, rank, layers, learning rate, dtype and threads
for all (frameworks/task.py). Everybody averages (FedAvg). Nobody logs, saves or tests, but ours tests one question of
each client twice. Each program runs in a process of its own (frameworks), and all take turns. In the first turn each
runs once more, watched with all processes that it starts (spent.py): memory and processor seconds are of that run.

"seconds" are those from the start of the process to its end, imports counted for everyone; "without imports" they begin
when the program has imported what it needs (what Ray's workers import counts there too). Ours finds what an earlier run
on this machine has left, as a user's second run does: questions that are parsed, and how the model reads texts.
"""

import functools
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec

import torch

from fedreft_lib import RunConfig, load_backbone
from fedreft_lib.data.file_hashes import SETTLED
from fedreft_lib.federation.assembly import assemble
from fedreft_lib.model.backbone import Backbone
from tests.benchmarks import spent
from tests.benchmarks.contest import Contest, Rival, Side, Skipped
from tests.benchmarks.frameworks import task as tasks
from tests.benchmarks.frameworks.task import Task
from tests.benchmarks.sizes import Size

PINNED = spent.ROOT / ".venv-pyreft" / "bin" / "python"  # make setup-pyreft
FLOWER, PYREFT = "peft and Trainer over Flower", "a loop around pyreft's trainer"
ONE, ALONE, SIMULATED = "one process and its workers", "one process alone", "Flower simulation"
OURS = {
    ("LoRA", ONE): ("fedit", "lora", "one"),
    ("LoRA", SIMULATED): ("fedit", "lora", "simulated"),
    ("LoReFT", ONE): ("fedavg", "loreft", "one"),
    ("LoReFT", ALONE): ("fedavg", "loreft", "alone"),
    ("LoReFT", SIMULATED): ("fedavg", "loreft", "simulated"),
}


@dataclass(frozen=True)
class Figures:
    seconds: float
    without_imports: float
    processor: float
    gigabytes: float
    megabytes: float  # that a client sends and receives in a round
    losses: tuple[float, ...]  # of each round


def contests(size: Size) -> Iterator[Contest | Skipped]:
    name = "2 rounds of 4 clients"
    if find_spec("flwr") is None or not spent.ROLLUP.exists():
        yield Skipped(name, "it needs flwr, and a system that tells the memory of processes as Linux does")
        return
    theirs = {FLOWER: 3, PYREFT: 4}  # how many times as fast we mean to be
    if not PINNED.exists():
        del theirs[PYREFT]
        yield Skipped(f"{name}, against {PYREFT}", "it needs .venv-pyreft: make setup-pyreft")
    with tempfile.TemporaryDirectory() as folder:
        turns = Turns(prepared(size, folder), [*OURS, *theirs])
        for unit, measure, title in (
            ("s", lambda each: each.seconds, ""),
            ("s", lambda each: each.without_imports, " without imports"),
            ("GB", lambda each: each.gigabytes, " peak memory"),
        ):
            for adapter, way in OURS:
                others = [other for other in theirs if adapter == "LoReFT" or other == FLOWER]
                yield Contest(
                    f"{name}{title}, {adapter}, {way}",
                    turns.side((adapter, way), measure),
                    tuple(
                        Rival(other, turns.side(other, measure), 1 / (theirs[other] if unit == "s" else 2))
                        for other in others
                    ),
                    functools.partial(turns.told, (adapter, way), others),
                    unit=unit,
                    most=3,
                )


def prepared(size: Size, folder: str) -> Task:
    """The task, written to the folder."""
    steps, dtype = size.local_steps[-1], size.dtypes[0]
    config = RunConfig(
        backbone=size.backbone, source=size.source, dtype=dtype, device="cpu", clients=4, rounds=2, local_steps=steps,
        train_size=8 * steps, batch_size=8, held_out_size=1, test_size=1, lr=size.lr, warmup=0.0, schedule="constant",
        positions="f7+l7",
    )  # fmt: skip
    backbone = load_backbone(config.backbone, dtype, "cpu")
    task = Task(
        config.but(backbone=f"{folder}/model").model_dump(mode="json"), dtype, torch.get_num_threads(), config.clients,
        config.rounds, steps, config.batch_size, config.lr, config.clip, config.rank, config.lora_alpha,
        list(config.targets), config.positions, backbone.tokenizer.pad_token_id, folder,
    )  # fmt: skip
    texts = [[(list(s.ids), s.prompt_length) for s in client.train.sequences] for client in assemble(config).clients]
    tasks.written(task, texts, lambda place: save(backbone, place))
    time.sleep(SETTLED)  # so that the hash of the weights' file is remembered
    assemble(RunConfig(**task.config))  # the trial of the folder's model, which is kept for the next processes
    return task


def save(backbone: Backbone, folder: str) -> None:
    settings = backbone.model.config
    if rope := getattr(settings, "rope_parameters", None):
        settings.rope_theta = rope["rope_theta"]  # where the transformers that pyreft pins looks for it
    backbone.model.save_pretrained(folder)
    backbone.tokenizer.save_pretrained(folder)


class Turns:
    """All programs, one after another, again for each turn that somebody asks for; the figures of each."""

    def __init__(self, task: Task, programs: list):
        self.task, self.programs, self.done = task, programs, []
        self.watched: dict[object, spent.Watched] = {}

    def turn(self, i: int) -> dict[object, Figures]:
        if i == len(self.done):
            self.done.append({each: self.run(each) for each in self.programs})
        return self.done[i]

    def side(self, program: object, measure: Callable[[Figures], float]) -> Side:
        turn = itertools.count()
        return lambda: measure(self.turn(next(turn))[program])

    def told(self, program: object, others: list) -> str:
        """What else there is to say about a program and those that it is compared with: of the first turn."""
        ours, *theirs = (self.turn(0)[each] for each in (program, *others))
        return "; ".join(
            f"{what} {measure(ours):.3g}, theirs {' and '.join(f'{measure(each):.3g}' for each in theirs)}"
            for what, measure in (
                ("processor seconds", lambda each: each.processor),
                ("MB a client and round", lambda each: each.megabytes),
                ("loss of round 1", lambda each: each.losses[0]),
                ("of round 2", lambda each: each.losses[-1]),
            )
        )

    def run(self, program: object) -> Figures:
        package = "tests.benchmarks.frameworks"
        if program == FLOWER:
            command = spent.of_module(f"{package}.flower_peft", self.task.folder)
        elif program == PYREFT:
            command = spent.of_module(f"{package}.pyreft_loop", self.task.folder, python=PINNED)
        else:
            command = spent.of_module(f"{package}.ours", self.task.folder, *OURS[program])
        ran = spent.ran(command)
        if program not in self.watched:
            self.watched[program] = spent.watched(command)
        return self.checked(program, ran, self.watched[program])

    def checked(self, program: object, ran: spent.Ran, watched: spent.Watched) -> Figures:
        """Whoever trains less than the others, or does not learn, is not compared."""
        said, task = json.loads(ran.said), self.task
        steps, (first, *_, last) = task.rounds * task.clients * task.steps, said["losses"]
        assert said["steps"] == steps, f"{program} took {said['steps']} steps of {steps}"
        assert last < first, f"{program} does not learn: its losses are {said['losses']}"
        return Figures(
            ran.seconds, ran.ended - said["began"], watched.processor, watched.memory / 1e9, said["sent"] / 1e6,
            tuple(said["losses"]),
        )  # fmt: skip
