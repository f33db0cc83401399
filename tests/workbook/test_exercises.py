"""A check of an exercise says one sentence, whatever a student has written, and `require` counts only what is right."""

import contextlib
import io
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays, scalar_dtypes

from fedreft_lib.workbook import exercises
from fedreft_lib.workbook.exercises import RIGHT, UNDONE

MATRIX = torch.tensor([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]])


class Hostile(list):
    """Every question about it fails."""

    def __getattribute__(self, name):
        raise ValueError(name)

    __len__ = __iter__ = __repr__ = __eq__ = __bool__ = __hash__ = property(lambda self: 1 / 0)


class Nameless(Exception):
    def __str__(self):
        raise self


class Endless:
    def __getitem__(self, i):
        return i

    def __len__(self):
        return sys.maxsize


def nested():
    inside = []
    inside.append(inside)
    return inside


def recursive(n=0):
    return recursive(n + 1)


def printing():
    while True:
        print("again")


def raising(error):
    def answer():
        raise error

    return answer


ODD = {
    "hostile": Hostile, "its class": lambda: Hostile, "endless": Endless, "nested": nested, "missing": lambda: pd.NA,
    "meta": lambda: MATRIX.to("meta"), "leaf": lambda: MATRIX.clone().requires_grad_(), "sparse": MATRIX.to_sparse,
    "series": lambda: pd.Series([1, 2]), "huge": lambda: 10**400, "function": lambda: print,
    "inside": lambda: [Hostile()],
    "recursive": recursive, "printing": printing, "no function": None, "no function at all": 3,
}  # fmt: skip
ERRORS = (
    ValueError("x" * 9999), NameError("name 'A' is not defined"), Nameless(), SystemExit(1), KeyboardInterrupt(),
    GeneratorExit(), StopIteration(3), MemoryError(), NotImplementedError(), ValueError("\ud800"),
)  # fmt: skip
values = st.one_of(
    st.none(), st.just(...), st.booleans(), st.integers(), st.floats(), st.complex_numbers(), st.text(), st.binary(),
    arrays(scalar_dtypes(), array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)),
    arrays(np.float32, array_shapes(min_dims=0, max_side=3)).map(lambda x: torch.as_tensor(x.copy())),
    st.sampled_from(["endless", "meta", "leaf", "sparse", "series", "huge"]).map(lambda name: ODD[name]()),
)  # fmt: skip
answers = st.recursive(values, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner))
codes = st.one_of(
    answers.map(lambda value: lambda: value),
    st.sampled_from(ERRORS).map(raising),
    st.sampled_from(sorted(ODD)).map(ODD.get),
)
EXPECTED = (MATRIX, 3, 0.5, True, "above", None, [1.0, None], ["a", True], [MATRIX, 2])
expected = st.sampled_from(EXPECTED)


def printed(answer, wanted, hint="the hint"):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exercises.check(answer, wanted, hint)
    return out.getvalue().strip().splitlines()[-1]


@given(codes, expected)
def test_a_check_says_one_sentence_whatever_a_student_writes(code, wanted):
    sentence = printed(code, lambda: wanted)
    assert sentence in (RIGHT, UNDONE) or sentence.startswith("not right yet: ")
    assert len(sentence) < 400


@given(expected)
def test_the_right_answer_is_right_and_counts(wanted):
    assert printed(lambda: wanted, lambda: wanted) == RIGHT
    exercises.require(lambda: wanted, lambda: wanted)


@given(codes)
def test_a_check_whose_own_names_were_changed_says_so(code):
    assert printed(lambda: 1, raising(NameError("X"))).startswith("not checked: ")


@pytest.mark.parametrize("given, wanted, sentence", [
    (..., 1.0, UNDONE), ([1.0, ...], [1.0, 2.0], UNDONE), (None, 1.0, "None"), ("3", 3, "type str"),
    (MATRIX.T, MATRIX, "(3, 2), and (2, 3) is expected (transposed?)"), (MATRIX[0], MATRIX, "(3,)"),
    (MATRIX[:, :2].T, MATRIX[:, :2], "it is transposed"), (-MATRIX, MATRIX, "sign"), (0.5, 50.0, "100 times too small"),
    (50.0, 0.5, "100 times too large"), (float("nan"), 1.0, "NaN"), (float("inf"), 1.0, "infinite"),
    ([[1, 2], [3]], torch.zeros(2, 2), "differ in length"), (True, 1, "True and False"), (1, True, "True or False"),
    (1j, 1, "complex"), ([1.0], [1.0, 2.0], "(1,)"), ([None], ["a", "b"], "2 entries"),
    ([1.0, 2.0], [1.0, None], "entry [1]: None is expected"), (1.1, 1, "the hint"), ("below", "above", "the hint"),
])  # fmt: skip
def test_a_wrong_answer_is_told_what_is_wrong_and_does_not_count(given, wanted, sentence):
    assert sentence in printed(lambda: given, lambda: wanted)
    with pytest.raises(AssertionError):
        exercises.require(lambda: given, lambda: wanted)


@pytest.mark.parametrize("same", [MATRIX.double(), MATRIX.numpy(), MATRIX.tolist(), MATRIX + 1e-6,
                                  pd.DataFrame(MATRIX.tolist()), tuple(MATRIX)])  # fmt: skip
def test_a_right_answer_may_have_any_form(same):
    assert printed(lambda: same, lambda: MATRIX) == RIGHT


def test_code_without_an_end_is_given_up(monkeypatch):
    def busy():
        while True:
            pass

    monkeypatch.setattr(exercises, "SECONDS", 0.1)
    assert "loop" in printed(busy, lambda: 1)
    assert "prints without end" in printed(printing, lambda: 1)
    assert "calls itself without end" in printed(recursive, lambda: 1)


def test_what_the_answer_prints_is_shown(capsys):
    exercises.check(lambda: print("seen"), lambda: 1, "hint")
    assert capsys.readouterr().out.splitlines()[0] == "seen"
