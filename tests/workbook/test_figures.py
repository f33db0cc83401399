"""The pictures show the numbers of the tables that they are given."""

import matplotlib.image
import pandas as pd
import pytest
import torch
from scipy.optimize import minimize

from fedreft_lib.data.partition import label_table
from fedreft_lib.errors import DataError
from fedreft_lib.federation.assembly import RunConfig
from fedreft_lib.federation.dealing import partition_of
from fedreft_lib.runs.results import RESULTS
from fedreft_lib.workbook import figures


def results(seeds=(0, 1), lams=(0.0, 0.5), setups=("distinct",)) -> pd.DataFrame:
    """Rows as runs leave them; accuracies are made up so that means are easy to check by hand."""
    methods = [("local", "none", "none"), ("fedavg", "none", "none"), ("fedreft", "geometric_median", "adaptive")]
    methods += [("fedreft", "geometric_median", f"fixed {lam}") for lam in lams]
    rows = []
    for setup in setups:
        for i, (method, aggregation, mixing) in enumerate(methods):
            for seed in seeds:
                run = {"setup": setup, "method": method, "aggregation": aggregation, "mixing": mixing, "seed": seed}
                run |= {"rounds": 2, "clients": 2, "intervention": "loreft"}
                for k, client in enumerate(("client1", "client2")):
                    row = {**run, "client": client}
                    rows.append({**row, "round": 0, "split": "test", "metric": "accuracy", "value": 40.0 + k})
                    after = 50.0 + 10 * k + i + 2 * seed
                    rows.append({**row, "round": 2, "split": "test", "metric": "accuracy", "value": after})
                    for t in (1, 2):
                        rows.append({**row, "round": t, "split": "train", "metric": "loss", "value": 3.0 - t})
                        rows.append({**row, "round": t, "split": "held_out", "metric": "lam", "value": 0.25 * t})
    return pd.DataFrame(rows, columns=list(RESULTS))


def texts(fig) -> list[str]:
    found = [text.get_text() for ax in fig.axes for text in ax.texts]
    found += [text.get_text() for ax in fig.axes if ax.get_legend() for text in ax.get_legend().get_texts()]
    return found + [fig.get_suptitle().strip(), *(text.get_text() for text in fig.texts)]


def test_accuracy_by_method_shows_the_mean_over_clients_then_seeds_and_their_deviation():
    fig = figures.accuracy_by_method(results())
    assert texts(fig)[:5] == ["56.0", "57.0", "58.0", "59.0", "60.0"]  # 55 + i, + 2 for seed 1: mean + 1
    line = fig.axes[0].lines[0]
    assert list(line.get_xdata()) == [40.5, 40.5] and line.get_label() == "untrained backbone"
    (bar,) = fig.axes[0].containers[0].lines[2][0].get_segments()
    assert bar[:, 0] == pytest.approx([56 - 2**0.5, 56 + 2**0.5])  # standard deviation of 55 and 57


def test_pictures_of_one_seed_say_so_and_draw_no_spread():
    fig = figures.accuracy_by_method(results(seeds=(0,)))
    assert any("1 seed" in text for text in texts(fig))
    assert all(container.lines[2] == () for container in fig.axes[0].containers)
    assert not figures.lam_sweep(results(seeds=(0,))).axes[0].collections


def test_no_picture_has_bars_over_seeds_and_bars_of_chance():
    table = results().assign(questions=20.0)
    table = table[(table["method"] != "fedavg") | (table["seed"] == 0)]
    bars = figures.accuracy_by_method(table).axes[0].containers
    assert [len(bar.lines[2]) for bar in bars] == [1, 0, 1, 1, 1]  # FedAvg has one seed, and no bar here
    assert [len(bar.lines[2]) for bar in figures.accuracy_by_method(table.query("seed == 0")).axes[0].containers] == [
        1
    ] * 5


def test_each_setup_has_its_panel():
    both = results(setups=("distinct", "mixed"))
    for picture in (figures.accuracy_by_method, figures.accuracy_by_client, figures.learning_curves):
        assert [ax.get_title() for ax in picture(both).axes] == ["setup: distinct", "setup: mixed"]


def test_accuracy_by_client_runs_from_untrained_to_trained():
    ax = figures.accuracy_by_client(results()).axes[0]
    before, after = ax.lines[0], ax.lines[1]
    assert list(before.get_xdata()) == [40.0, 41.0] and list(after.get_xdata()) == [51.0, 61.0]


def test_learning_curves_show_the_loss_of_each_round():
    ax = figures.learning_curves(results()).axes[0]
    assert list(ax.lines[0].get_xdata()) == [1, 2] and list(ax.lines[0].get_ydata()) == [2.0, 1.0]


def test_lam_sweep_has_a_line_for_each_client_the_mean_and_adaptive_mixing():
    fig = figures.lam_sweep(results())
    one, two, mean, adaptive = fig.axes[0].lines
    assert list(mean.get_xdata()) == [0.0, 0.5]
    assert list(mean.get_ydata()) == [(a + b) / 2 for a, b in zip(one.get_ydata(), two.get_ydata(), strict=True)]
    assert list(adaptive.get_ydata()) == [58.0, 58.0]


def test_lam_by_round_shows_what_adaptive_clients_chose():
    lines = figures.lam_by_round(results()).axes[0].lines
    assert [list(line.get_ydata()) for line in lines] == [[0.25, 0.5]] * 6  # two clients: mean and two seeds each


def test_results_without_the_rows_of_a_picture_are_refused_in_a_sentence():
    with pytest.raises(DataError, match="no run with a fixed λ"):
        figures.lam_sweep(results(lams=()))
    with pytest.raises(DataError, match="no rows with metric 'loss'"):
        figures.learning_curves(results().query("metric != 'loss'"))


def test_heatmap_writes_every_weight():
    M = torch.tensor([[0.7, 0.3], [0.1, 0.9]])
    fig = figures.mixing_heatmap([("one", M), ("two", M.T)], ["a", "b"], "Who listens to whom")
    assert [text.get_text() for text in fig.axes[0].texts] == ["0.70", "0.30", "0.10", "0.90"]
    assert [ax.get_title() for ax in fig.axes[:2]] == ["one", "two"]


def test_partition_bars_are_the_counts_of_the_table():
    table = label_table(partition_of(RunConfig(source="synthetic", setup="mixed", train_size=30)))
    ax = figures.partition_table(table).axes[0]
    widths = [[bar.get_width() for bar in bars] for bars in ax.containers]  # tasks by clients
    assert widths == table.loc["train"].T.to_numpy().tolist()


def test_toy_plane_puts_the_median_where_an_optimiser_finds_it():
    X = torch.tensor([[0.0, 0.0], [1.0, 0.2], [0.3, 1.0], [1.5, 1.6], [7.0, 4.0]])
    ax = figures.toy_plane(X, client=2, lam=0.5).axes[0]
    median = next(line for line in ax.lines if line.get_label() == "geometric median of the others")
    others = X[[0, 1, 3, 4]].double()
    found = minimize(
        lambda z: float((others - torch.tensor(z)).norm(dim=1).sum()), [1, 1], method="Nelder-Mead", tol=1e-9
    )
    assert [median.get_xdata()[0], median.get_ydata()[0]] == pytest.approx(found.x.tolist(), abs=1e-4)


def test_a_shown_figure_keeps_its_alternative_text(monkeypatch, tmp_path):
    shown = []
    monkeypatch.setattr(figures, "display", lambda bundle, raw: shown.append(bundle))
    figures.show(figures.lam_by_round(results()), 'lam "rises" & stays', tmp_path / "new" / "lam.png")
    assert 'alt="lam &quot;rises&quot; &amp; stays"' in shown[0]["text/html"]
    assert shown[0]["text/plain"] == 'lam "rises" & stays'
    assert matplotlib.image.imread(tmp_path / "new" / "lam.png").ndim == 3


def test_methods_in_one_picture_have_different_names():
    labels = figures.method_labels(results())
    assert set(labels) == {
        "local only", "FedAvg", "FedReFT median, adaptive λ", "FedReFT median, λ 0.0", "FedReFT median, λ 0.5",
    }  # fmt: skip


def test_what_is_trained_is_named_where_the_method_leaves_a_choice():
    rows = results().iloc[:2].assign(intervention="lora", method=["fedit", "ffa"])
    assert figures.method_labels(rows).tolist() == ["FedIT", "FFA (lora)"]


def test_change_map_has_a_row_for_each_layer_and_a_column_for_each_token():
    change = torch.tensor([[0.0, 0.0], [0.0, 0.5], [0.1, 0.4]])
    ax = figures.change_by_token(change, ["a", "b"], "where it acts").axes[0]
    assert ax.images[0].get_array().tolist() == change.tolist()
    assert [label.get_text() for label in ax.get_xticklabels()] == ["a", "b"]
