"""Fewer cases than there could be: of a product the pairs, of a long list those that a short run needs."""

import itertools
from collections.abc import Iterable

import pytest


def pairwise(**dimensions: Iterable) -> pytest.MarkDecorator:
    """`parametrize` over named dimensions, each a mapping of names to values or a list of values that name themselves.

    Any value of one dimension comes with any value of another in some case: what breaks where two things come together
    is found, and of six times six times two cases half are left.
    """
    names = list(dimensions)
    values = [dict(each) if isinstance(each, dict) else {str(v): v for v in each} for each in dimensions.values()]
    unmet = {
        pair
        for one, other in itertools.combinations(range(len(names)), 2)
        for pair in itertools.product([(one, v) for v in values[one]], [(other, v) for v in values[other]])
    }
    cases = []
    while unmet:
        case = max(itertools.product(*values), key=lambda each: len(unmet & met(each)))
        unmet -= met(case)
        cases.append(case)
    params = [[v[name] for v, name in zip(values, case, strict=True)] for case in cases]
    asked = [pytest.param(*each, id=" ".join(case)) for each, case in zip(params, cases, strict=True)]
    return pytest.mark.parametrize(names, asked)


def met(case: tuple[str, ...]) -> set:
    """The pairs of values that meet in a case."""
    return set(itertools.combinations(enumerate(case), 2))


def few(cases: Iterable, *chosen) -> list:
    """All cases for `parametrize`, of which those that are not chosen are slow."""
    cases = list(cases)
    assert set(chosen) <= set(cases)
    tuples = {case: case if isinstance(case, tuple) else (case,) for case in cases}
    return [case if case in chosen else pytest.param(*tuples[case], marks=pytest.mark.slow) for case in cases]
