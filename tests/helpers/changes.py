"""A run's data and its backbone in files of its own, and one single change each: what may make an old result stale."""

import json
import os
from pathlib import Path

from safetensors.torch import load_file, save_file

from fedreft_lib import RunConfig
from fedreft_lib.data import file_hashes
from fedreft_lib.federation import assembly, dealing
from fedreft_lib.model import shared
from tests.helpers.federations import finish

ROWS = {  # of a kind of item, all of them different
    "questions": lambda n: {"question": f"birds {n}?", "choices": [f"red {n}", f"blue {n}", "green"], "gold": n % 3},
    "exchanges": lambda n: {"instruction": f"Say {n}.", "output": f"well {n}"},
    "labelled": lambda n: {"text_a": f"birds {n}", "label": n % 2},
}
FIELDS = {
    "questions": {},
    "exchanges": {"benchmark": "instruction", "max_new_tokens": 2},
    "labelled": {"benchmark": "glue", "backbone": "tiny-roberta", "positions": "f2"},
}


def forget() -> None:
    """As a new process: nothing is remembered but what is on the disk."""
    shared._shared.clear()
    dealing._remembered.clear()
    assembly._build.cache_clear()
    file_hashes._remembered.clear()


def config_of(home: Path, kind: str, **changes) -> RunConfig:
    """Three clients with files of their own, all rows of which are used."""
    for k in (1, 2, 3):
        for split, numbers in (("train", range(8)), ("test", range(8, 12))):
            path = home / "data" / f"client{k}" / f"birds_{split}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps([ROWS[kind](100 * k + n) for n in numbers]))
    fields = dict(
        backbone=str(home / "model"), source="local", data_dir=str(home / "data"), setup="own", tasks=("birds",),
        clients=3, layers="2-3", rank=1, train_size=6, held_out_size=2, test_size=4, batch_size=6, max_length=48,
        rounds=1, lr=0.01, positions="l1",
    )  # fmt: skip
    return RunConfig(**{**fields, **FIELDS[kind], **changes})


def fresh(config: RunConfig, folder: Path):
    """The run of a process that knows nothing of what was before."""
    forget()
    return finish(config, folder)


# ---- the changes ----------------------------------------------------------------------------------------------------


def rows_of(home: Path, split: str) -> list[dict]:
    return json.loads((home / f"data/client1/birds_{split}.json").read_text())


def write_rows(home: Path, split: str, rows: list[dict]) -> None:
    (home / f"data/client1/birds_{split}.json").write_text(json.dumps(rows))


def in_row(split: str, column: str, change):
    def changes(home: Path) -> None:
        rows = rows_of(home, split)
        rows[1][column] = change(rows[1][column])
        write_rows(home, split, rows)

    return changes


def row_to_test(home: Path) -> None:
    train, test = rows_of(home, "train"), rows_of(home, "test")
    train[0], test[0] = test[0], train[0]
    write_rows(home, "train", train)
    write_rows(home, "test", test)


def weights(home: Path) -> None:
    """One weight, in place; the file keeps its size and gets its old time back."""
    path = home / "model/model.safetensors"
    before = path.stat()
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    tensors["model.layers.0.mlp.up_proj.weight"][3, 7] += 1.0
    save_file(tensors, home / "changed.safetensors", {"format": "pt"})
    with path.open("rb+") as file:
        file.write((home / "changed.safetensors").read_bytes())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (before.st_size, before.st_mtime_ns, before.st_ino)


def in_json(file: str, change):
    def changes(home: Path) -> None:
        path = home / "model" / file
        found = json.loads(path.read_text())
        change(found)
        path.write_text(json.dumps(found))

    return changes


def other_bytes(tokenizer: dict) -> None:
    """Two bytes have each other's token."""
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["e"], vocabulary["Q"] = vocabulary["Q"], vocabulary["e"]


DATA = {
    "gold": ("questions", in_row("train", "gold", lambda gold: (gold + 1) % 3)),
    "gold of a test question": ("questions", in_row("test", "gold", lambda gold: (gold + 1) % 3)),
    "choice": ("questions", in_row("train", "choices", lambda choices: ["pink", *choices[1:]])),
    "order of choices": ("questions", in_row("test", "choices", lambda choices: choices[::-1])),
    "question": ("questions", in_row("test", "question", lambda text: text.upper())),  # the uid stays
    "train and test": ("questions", row_to_test),
    "response": ("exchanges", in_row("train", "output", lambda text: f"{text}!")),
    "reference": ("exchanges", in_row("test", "output", lambda text: f"{text}!")),
    "label": ("labelled", in_row("train", "label", lambda label: 1 - label)),
}
BACKBONE = {
    "weights": ("questions", weights),
    "tokenizer": ("questions", in_json("tokenizer.json", other_bytes)),
    "chat template": ("questions", lambda home: (home / "model/chat_template.jinja").write_text("{{ messages }}")),
    "another template": (
        "questions", lambda home: (home / "model/additional_chat_templates/tool.jinja").write_text("{{ tool }}"),
    ),
    "generation config": ("questions", in_json("generation_config.json", lambda now: now.update(min_length=3))),
    "norm": ("questions", in_json("config.json", lambda found: found.update(rms_norm_eps=0.1))),
}  # fmt: skip
CHANGES = {**DATA, **BACKBONE}


def what(name: str) -> str:
    return "data" if name in DATA else "backbone"
