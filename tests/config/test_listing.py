"""The list of parameters says of each what it may be, and names what the code knows and nothing else."""

from typing import get_args

import pytest

from fedreft_lib import RunConfig
from fedreft_lib.config import fields
from fedreft_lib.config.checks import LEAST_HELD_OUT, WITHOUT_IDENTITY
from fedreft_lib.config.listing import listing, range_of
from fedreft_lib.core.aggregation import AGGREGATIONS
from fedreft_lib.core.interventions import INTERVENTIONS
from fedreft_lib.core.rotation import RETRACTIONS
from fedreft_lib.data.grading import calibration
from fedreft_lib.errors import ConfigError
from fedreft_lib.federation import attacks
from fedreft_lib.methods import METHODS

RANGES = {
    "rank": "a whole number >= 1 and <= 512",
    "dtype": "one of 'auto', 'float32', 'bfloat16'",
    "lr": "a number > 0 and <= 1",
    "local_steps": "a whole number >= 1 or null",
    "norm_clip": "a number > 0 or null",
    "mixing": "a number >= 0 and <= 1 or one of 'scheduled', 'adaptive'",
    "mixing_range": "a list, each a number >= 0 and <= 1",
    "tasks": "a list, each a text",
    "joins": "pairs, each a [client, round]",
    "tied": "true or false",
    "layers": "a text or a list, each a whole number",
}


@pytest.mark.parametrize("name", RANGES)
def test_a_parameters_range_is_what_its_type_and_its_bounds_say(name):
    assert range_of(name) == RANGES[name]


def test_the_list_has_every_parameter_once_with_its_range_and_its_reason():
    lines = listing().split("\n")
    named = [line for line in lines if line.startswith("  ") and not line.startswith("   ")]
    assert sorted(line.split(" = ")[0].strip() for line in named) == sorted(RunConfig.model_fields)
    for name, field in RunConfig.model_fields.items():
        place = next(i for i, line in enumerate(lines) if line.startswith(f"  {name} = "))
        assert [line.strip() for line in lines[place + 1 : place + 3]] == [range_of(name), field.description]


def test_the_names_that_a_config_may_have_are_those_that_the_code_knows():
    assert set(get_args(RunConfig.model_fields["method"].annotation)) == set(METHODS)
    assert tuple(INTERVENTIONS) == fields.INTERVENTIONS and fields.AGGREGATIONS == AGGREGATIONS
    assert get_args(RunConfig.model_fields["retraction"].annotation) == RETRACTIONS
    assert set(fields.ATTACKS) == {*attacks.ATTACKS, "label_flip", *attacks.BAD_UPDATES}
    assert set(WITHOUT_IDENTITY) == {name for name, kind in INTERVENTIONS.items() if not kind.has_identity}
    assert LEAST_HELD_OUT == calibration.LEAST


BEYOND = {"rank": (0, 513), "lr": (0.0, 1.001), "mixing": (-0.001, 1.001), "warmup": (-0.1, 1.0), "seed": (-1, 2**32)}


@pytest.mark.parametrize("name", BEYOND)
def test_what_is_beyond_a_listed_bound_is_refused_and_what_is_within_is_taken(name):
    low, high = BEYOND[name]
    for beyond in (low, high):
        with pytest.raises(ConfigError, match=name):
            RunConfig(**{name: beyond})
    within = (low + high) // 2 if isinstance(low, int) else (low + high) / 2
    assert getattr(RunConfig(**{name: within}), name) == within


def test_bounds_are_listed_in_full():
    assert range_of("seed") == "a whole number >= 0 and < 4294967296"
