"""Every method has a name, a colour and a marker of its own."""

import pandas as pd
import pytest

from fedreft_lib.core.aggregation import AGGREGATIONS
from fedreft_lib.methods import METHODS
from fedreft_lib.workbook import looks


def labels() -> list[str]:
    kinds = [(method, "none", "none") for method in METHODS if method not in ("fedreft", "placebo")]
    kinds += [("fedreft", rule, "fixed 0.3") for rule in AGGREGATIONS]
    kinds += [("fedreft", rule, "adaptive") for rule in ("mean", "geometric_median")]
    kinds += [("placebo", "none", "fixed 0.3")]
    table = pd.DataFrame(kinds, columns=["method", "aggregation", "mixing"]).assign(intervention="loreft")
    return looks.method_labels(table).tolist()


def test_no_two_methods_look_alike_and_none_depends_on_the_others():
    together = looks.looks(labels())
    assert len(together) == len(METHODS) + len(AGGREGATIONS) + 1
    assert len({tuple(look.values()) for look in together.values()}) == len(together)
    assert together == {label: looks.looks([label])[label] for label in together}


def test_two_shares_of_one_method_have_its_colour_and_two_markers():
    one, other = looks.looks(["FedReFT mean, λ 0.1", "FedReFT mean, λ 0.3"]).values()
    assert one["color"] == other["color"] == looks.colour_of("FedReFT mean") and one["marker"] != other["marker"]


@pytest.mark.parametrize(
    ("label", "same"),
    [
        ("FedAvg (lora)", "FedAvg"),
        ("FedAvg, clipped", "FedAvg"),
        ("FedReFT median, λ 0.3 (lora rank 4)", "FedReFT median"),
    ],
)
def test_what_is_trained_and_how_much_changes_no_colour(label, same):
    assert looks.looks([label])[label] == looks.looks([same])[same]


def test_a_method_without_a_name_here_is_grey_under_its_own():
    rows = pd.DataFrame([{"method": "rfa", "aggregation": "none", "mixing": "none", "intervention": "loreft"}])
    assert looks.method_labels(rows).tolist() == ["rfa"] and looks.colour_of("rfa") == looks.GREY
