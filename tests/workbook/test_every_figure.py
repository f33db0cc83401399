"""Every figure, drawn from small tables, can be read: measured by matplotlib, at the size at which it is shown."""

import inspect
from collections.abc import Iterator
from functools import cache
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb, to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle
from matplotlib.text import Text

from fedreft_lib.data.partition import label_table
from fedreft_lib.federation.assembly import RunConfig
from fedreft_lib.federation.dealing import partition_of
from fedreft_lib.workbook import (
    ablation_figures,
    breakdown,
    canvas,
    figures,
    findings,
    forest,
    looks,
    paper_tables,
    statistics,
    study,
)
from fedreft_lib.workbook.ledger import ledger
from tests.workbook import test_ablation_figures, test_breakdown, test_figures, test_paper_tables, test_study
from tests.workbook.test_findings import on_map
from tests.workbook.test_ledger import results as glue
from tests.workbook.test_ledger import run

MODULES = (ablation_figures, breakdown, figures, findings, forest, paper_tables, study)
SMALLEST = 9  # points
NAMES = [f"client{k}-openbookqa" for k in range(1, 5)]
LONG = "Who listens to whom: instruction, distinct (04_instruction), in the last of all rounds"


def many() -> pd.DataFrame:
    """Every method, in two setups, one seed, with numbers of questions."""
    table = test_figures.results(seeds=(0,), setups=("distinct", "mixed")).assign(questions=20.0)
    more = [table]
    for i, method in enumerate(name for name in looks.NAMES if name not in ("local", "fedavg")):
        own = table[table["method"] == "fedavg"].assign(method=method)
        more.append(own.assign(value=own["value"] - 0.3 * i))
    return pd.concat(more, ignore_index=True)


def everything_on_glue() -> pd.DataFrame:
    runs = [
        run(method=name, aggregation="none", mixing="none", model="minilm-l6-v2", values=(50.0 + i,))
        for i, name in enumerate(looks.NAMES)
    ]
    return glue(*runs).assign(uplink_bytes=1_000_000, downlink_bytes=500_000)


@cache
def drawn() -> dict[str, list[Figure]]:
    """The figures of each public function."""
    small, two, pair = test_figures.results(), many(), torch.eye(4) * 0.6 + 0.1
    scores = study.with_best(test_study.table({}))
    scores = pd.concat([scores, scores.assign(n=16), scores.assign(n=256)])
    full = {name: f"FedReFT {name}" for name in ("mean, λ 0.1", "mean, λ 0.3", "median")}
    attacked = pd.concat(scores.assign(hostile=n, method=scores["method"].replace(full)) for n in (0, 2, 3))
    config = RunConfig(source="synthetic", setup="mixed", train_size=30)
    dealt = {setup: label_table(partition_of(config.but(setup=setup))) for setup in ("distinct", "mixed", "iid")}
    map_found, calm = study.contrasts(scores), test_breakdown.scores()
    one = calm.query("seed == 0").assign(questions=40.0)
    levels = test_ablation_figures.rows()
    over = {end: on_map().xs(end, level="against", drop_level=False) for end in (study.LOCAL, study.FEDAVG)}
    return {
        "accuracy_by_method": [figures.accuracy_by_method(small), figures.accuracy_by_method(two)],
        "accuracy_by_client": [figures.accuracy_by_client(small), figures.accuracy_by_client(two)],
        "learning_curves": [figures.learning_curves(small), figures.learning_curves(two, "accuracy", "test")],
        "lam_sweep": [figures.lam_sweep(small), figures.lam_sweep(two[two["setup"] == "mixed"])],
        "lam_by_round": [figures.lam_by_round(small)],
        "mixing_heatmap": [
            figures.mixing_heatmap(pair, ["1", "2", "3", "4"], LONG),
            figures.mixing_heatmap([(f"FedReFT median, adaptive λ, round {t}", pair) for t in range(4)], NAMES, LONG),
        ],
        "partition_table": [figures.partition_table(dealt), figures.partition_table(dealt["iid"])],
        "toy_plane": [figures.toy_plane(torch.tensor([[0.0, 0.0], [1.0, 0.2], [0.3, 1.0], [7.0, 4.0]]))],
        "change_by_token": [figures.change_by_token(torch.rand(30, 4), ["<|im_end|>", "a", "b", "c"], LONG)],
        "gain_map": [study.gain_map(scores, map_found, study.BEST)],
        "lam_curves": list(study.lam_curves(scores, 4).values()),
        "by_number": [
            study.by_number(attacked, "hostile", "hostile clients of seven"),
            study.by_number(attacked.query("seed == 0").assign(questions=40.0), "hostile", "hostile clients of seven"),
        ],
        "forest": [forest.forest({f"over {end}": found for end, found in over.items()}, "Real tasks")],
        "cost_picture": [findings.cost_picture(18_448, 134_515_008)],
        "breakdown": [breakdown.breakdown(calm, 7, 50.0), breakdown.breakdown(one, 7, 50.0)],
        "by_level": [ablation_figures.by_level(levels)],
        "against_column": [ablation_figures.against_column(levels, "rank")],
        "draw_figure_3": [paper_tables.draw_figure_3(ledger(glue(run(model="minilm-l6-v2"))))],
        "accuracy_against_cost": [
            paper_tables.accuracy_against_cost(test_paper_tables.example(), "glue"),
            paper_tables.accuracy_against_cost(everything_on_glue(), "glue"),
        ],
    }


FUNCTIONS = sorted(
    name
    for module in MODULES
    for name, function in inspect.getmembers(module, inspect.isfunction)
    if function.__module__ == module.__name__ and not name.startswith("_")
    if "Figure" in str(inspect.signature(function).return_annotation)
)


def test_every_public_figure_is_measured_here():
    assert sorted(drawn()) == FUNCTIONS


@cache
def laid_out(name: str) -> list[Figure]:
    for fig in drawn()[name]:
        fig.draw_without_rendering()
    return drawn()[name]


@pytest.fixture(params=FUNCTIONS)
def several(request) -> list[Figure]:
    return laid_out(request.param)


def texts(fig: Figure) -> Iterator[Text]:
    """All texts that are seen."""
    found = [*fig.texts]
    for ax in fig.axes:
        found += [ax.title, ax.xaxis.label, ax.yaxis.label, *ax.texts]
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            found += [tick.label1 for tick in axis.get_major_ticks() if low - 1e-9 <= tick.get_loc() <= high + 1e-9]
        if ax.get_legend():
            found += [*ax.get_legend().get_texts(), ax.get_legend().get_title()]
    yield from (text for text in found if text.get_text().strip() and text.get_visible())


def test_no_text_is_cut_off_or_too_small(several):
    for fig in several:
        assert fig.get_figwidth() <= canvas.WIDEST
        for text in texts(fig):
            box = text.get_window_extent()
            inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= fig.bbox.x1 + 1 and box.y1 <= fig.bbox.y1 + 1
            assert inside, (text.get_text(), box.bounds, fig.bbox.bounds)
            assert text.get_fontsize() >= SMALLEST and "$" not in text.get_text(), text.get_text()


def test_titles_labels_and_keys_do_not_overlap(several):
    for fig in several:
        heads = [*fig.texts]
        for ax in fig.axes:
            heads += [ax.title, ax.xaxis.label, ax.yaxis.label]
            heads += ax.get_legend().get_texts() if ax.get_legend() else []
        boxes = [(text.get_text(), text.get_window_extent().padded(-1)) for text in heads if text.get_text().strip()]
        assert fig.get_suptitle() and len(fig.texts) == 2
        for (one, a), (other, b) in combinations(boxes, 2):
            assert not a.overlaps(b), (one, other)


def contrast(colour, paper="white") -> float:
    """WCAG 2.2, of a colour that lies on the paper with its own opacity."""
    on = np.array(to_rgb(paper))
    shown = to_rgba(colour)[3] * np.array(to_rgba(colour)[:3]) + (1 - to_rgba(colour)[3]) * on

    def luminance(rgb):
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        return linear @ [0.2126, 0.7152, 0.0722]

    high, low = sorted((luminance(shown), luminance(on)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def marks(ax: Axes) -> Iterator[tuple[str, list]]:
    """What is drawn, with the colours of which one has to be seen. Bands lie around lines and may be faint."""
    for line in ax.lines:
        if line.get_linestyle() not in ("None", "none", ""):
            yield "line", [_faded(line.get_color(), line)]
        if line.get_marker() not in ("None", "none", "", None):
            yield "marker", [_faded(line.get_markerfacecolor(), line), _faded(line.get_markeredgecolor(), line)]
    for each in ax.collections:
        if isinstance(each, LineCollection):
            yield from (("bar", [_faded(colour, each)]) for colour in each.get_colors())
    for patch in ax.patches:
        if isinstance(patch, Rectangle | FancyArrowPatch):
            yield "patch", [_faded(patch.get_facecolor(), patch), _faded(patch.get_edgecolor(), patch)]
    for text in ax.texts:
        if getattr(text, "arrow_patch", None):
            yield "arrow", [text.arrow_patch.get_edgecolor()]


def _faded(colour, artist):
    """The colour with the artist's opacity; "none" is the paper."""
    red, green, blue, alpha = to_rgba("white" if str(colour) == "none" else colour)
    return red, green, blue, alpha if artist.get_alpha() is None else artist.get_alpha()


def test_everything_stands_out_from_the_paper(several):
    for fig in several:
        for ax in fig.axes:
            for kind, colours in marks(ax):
                assert max(map(contrast, colours)) >= 3, (kind, colours, ax.get_title())
        for text in texts(fig):
            cells = text.axes.images if text.axes else []
            inside = cells and text in text.axes.texts
            column, row = map(int, text.get_position()) if inside else (0, 0)
            paper = cells[0].to_rgba(cells[0].get_array())[row, column][:3] if inside else "white"
            assert contrast(text.get_color(), paper) >= 4.4, text.get_text()


def test_a_method_has_one_colour_in_all_figures():
    found: dict[str, set[str]] = {}
    rules = {rule: f"FedReFT {rule}" for rule in looks.AGGREGATES.values()}
    rules |= {
        f"{each} of the others": f"FedReFT {rule}" for each, rule in (("mean", "mean"), ("geometric median", "median"))
    }
    for fig in (fig for several in drawn().values() for fig in several):
        for ax in fig.axes:
            for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
                name = rules.get(label, label)
                if any(name.startswith(known) for known in looks.LOOKS):
                    line = handle[0] if isinstance(handle, tuple) else handle
                    found.setdefault(name, set()).add(line.get_color())
    assert {"FedAvg", "local only", "FedReFT median", "FedReFT mean"} <= set(found)
    assert found == {name: {looks.colour_of(name)} for name in found}


def test_no_two_methods_of_a_picture_look_alike():
    for fig in (fig for several in drawn().values() for fig in several):
        for ax in fig.axes:
            lines = [handle[0] if isinstance(handle, tuple) else handle for handle in ax.get_legend_handles_labels()[0]]
            seen = [
                (to_rgb(line.get_color()), line.get_marker(), line.get_linestyle(), line.get_fillstyle())
                for line in lines
                if hasattr(line, "get_marker")
            ]
            assert len(seen) == len(set(seen))


def test_contrast_is_wcags():
    assert contrast("black") == 21 and contrast("#767676") == pytest.approx(4.54, abs=0.005)
    assert contrast("#F0E442") < 1.4 and contrast((0, 0, 0, 0.0)) == 1


def test_a_comparison_of_one_seed_says_that_it_has_no_interval():
    found = {
        "over FedAvg": statistics.against(
            test_study.table({}, seeds=1).rename(columns={"agreement": "a"}), "FedAvg", "a"
        )
    }
    assert "one seed, so no interval" in forest.forest(found, "One").texts[-1].get_text()
