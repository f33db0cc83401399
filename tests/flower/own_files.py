"""Three clients with files of their own, below a folder as setup="own" reads them."""

import json
from pathlib import Path

from fedreft_lib import RunConfig

TASKS = {"birds": 2, "rivers": 3, "towns": 4}  # and how many answers there are


def written(folder: Path, sizes: tuple[int, int, int] = (30, 30, 30)) -> Path:
    """The folder, with their files: client 2 has two tasks, the others one each. sizes: training rows of a file."""
    for k, tasks in enumerate((["birds"], ["rivers", "birds"], ["towns"]), 1):
        (folder / "data" / f"client{k}").mkdir(parents=True)
        for task in tasks:
            for split, numbers in (("train", range(sizes[k - 1])), ("test", range(200, 220))):
                rows = [
                    {
                        "question": f"{task} {k}.{i}?",
                        "choices": [f"{task} {c}" for c in range(TASKS[task])],
                        "gold": i % 2,
                    }
                    for i in numbers
                ]
                path = folder / "data" / f"client{k}" / f"{task}_{split}.json"
                path.write_text(json.dumps(rows), encoding="utf-8")
    return folder


def own(folder, **changes) -> RunConfig:
    fields = dict(
        backbone="tiny-llama", source="local", data_dir=str(folder / "data"), setup="own", tasks=tuple(TASKS),
        clients=3, layers="2-3", rank=2, train_size=8, held_out_size=4, test_size=6, batch_size=4, rounds=2, lr=0.01,
    )  # fmt: skip
    return RunConfig(**{**fields, **changes})
