"""Fewer cases than the whole product of several dimensions, among which every two values still meet."""

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
