"""What every program gets: one folder with the model, each client's examples as token ids, and the settings.

The examples are encoded once, by us, so no program trains on another text, and none has to encode it. It needs nothing
but torch and the standard library here, since pyreft's own versions have a Python environment to themselves.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

IGNORED = -100  # the label of a token that is no part of an answer


@dataclass(frozen=True)
class Task:
    """The federation. config: of our own run, the same federation; what the others need of it stands beside it."""

    config: dict
    dtype: str
    threads: int
    clients: int
    rounds: int
    steps: int  # of a client in a round
    batch_size: int
    lr: float
    clip: float
    rank: int
    alpha: float  # of LoRA
    targets: list[str]  # of LoRA
    positions: str  # of LoReFT
    pad: int
    folder: str = ""

    def model(self, argument: str) -> torch.nn.Module:
        """The frozen model. argument: what transformers calls the dtype."""
        from transformers import AutoModelForCausalLM

        dtype = {argument: getattr(torch, self.dtype)}
        return AutoModelForCausalLM.from_pretrained(f"{self.folder}/model", **dtype).requires_grad_(False)

    def examples(self, client: int) -> list[dict]:
        """Of a client (from 0): input_ids, labels, and how many tokens its prompt has."""
        rows = json.loads((Path(self.folder) / f"client{client}.json").read_text())
        return [
            {
                "input_ids": row["ids"],
                "labels": [IGNORED] * row["prompt"] + row["ids"][row["prompt"] :],
                "prompt": row["prompt"],
            }
            for row in rows
        ]


def written(task: Task, examples: list[list[tuple[list[int], int]]], save: Callable[[str], object]) -> None:
    """examples: for each client its texts, as ids and the tokens of the prompt. save: writes the model to a folder."""
    folder = Path(task.folder)
    save(str(folder / "model"))
    for k, own in enumerate(examples):
        rows = [{"ids": ids, "prompt": prompt} for ids, prompt in own]
        (folder / f"client{k}.json").write_text(json.dumps(rows))
    (folder / "task.json").write_text(json.dumps(asdict(task)))


def read(folder: str) -> Task:
    task = Task(**json.loads((Path(folder) / "task.json").read_text()))
    torch.set_num_threads(task.threads)
    return task


def padded(task: Task, rows: list[dict]) -> dict[str, torch.Tensor]:
    """A batch as transformers' own collators make it, of what Trainer leaves of the rows."""

    def block(name: str, fill: int) -> torch.Tensor:
        lists = [torch.as_tensor(row[name]) for row in rows]
        return torch.nn.utils.rnn.pad_sequence(lists, batch_first=True, padding_value=fill)

    ids = block("input_ids", task.pad)
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    return {"input_ids": ids, "labels": block("labels", IGNORED), "attention_mask": mask}


def trainer_arguments(task: Task, folder: str, seed: int) -> dict:
    """Of transformers' Trainer: it trains, and does nothing else."""
    return {
        "output_dir": folder,
        "per_device_train_batch_size": task.batch_size,
        "max_steps": task.steps,
        "learning_rate": task.lr,
        "lr_scheduler_type": "constant",
        "max_grad_norm": task.clip,
        "seed": seed,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "remove_unused_columns": False,
    }


def said(began: float, losses: list[float], steps: int, sent: int) -> None:
    """Prints the outcome, last. began: time.time() after the imports; losses: of each round, the mean over its steps;
    steps: of all clients in all rounds; sent: bytes of one client in one round, down and up."""
    print(json.dumps({"began": began, "losses": losses, "steps": steps, "sent": sent}))
