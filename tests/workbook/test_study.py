"""The study of notebook 06: its cells, its best share, its family and its pictures."""

import numpy as np
import pandas as pd
import pytest

from fedreft_lib import RunConfig, method_of, run
from fedreft_lib.workbook import statistics, study

LAMS = {"local only": 0.0, "FedAvg": 0.75, "mean, λ 0.1": 0.1, "mean, λ 0.3": 0.3, "median": np.nan}
TINY = {
    "benchmark": "agreement", "backbone": "tiny-llama", "source": "synthetic", "layers": "2-3", "train_size": 8,
    "held_out_size": 2, "test_size": 3, "rounds": 1, "local_steps": 1, "batch_size": 4,
}  # fmt: skip


def table(gains, seeds=8, agreements=(1.0, 0.5), noise=1.0):
    """Scores of made-up runs: `gains` in points by (method, agreement), noise of this size that is the seed's own."""
    rng, rows = np.random.default_rng(0), []
    for a in agreements:
        for seed in range(seeds):
            for method, lam in LAMS.items():
                for client in range(2):
                    value = 60 + gains.get((method, a), 0.0) + noise * rng.standard_normal()
                    rows.append((a, 64, 4, 0, seed, method, lam, f"client{client}", value))
    return pd.DataFrame(
        rows, columns=["agreement", "n", "clients", "hostile", "seed", "method", "lam", "client", "value"]
    )


def test_cells_are_every_combination_and_methods_of_a_cell_stand_together():
    methods = [
        method_of(words) for words in ("local", "fedavg", "fedreft mean 0.05", "fedreft geometric_median adaptive")
    ]
    assert methods[2] == {"method": "fedreft", "aggregation": "mean", "mixing": 0.05}
    found = study.cells(RunConfig(**TINY), [1.0, 0.7], [8, 16], methods, [3, 4])
    assert len(found) == len(set(found)) == 2 * 2 * 2 * 4
    assert len({(c.agreement, c.train_size, c.seed) for c in found[:4]}) == 1
    assert {c.mixing for c in found} == {0.3, 0.05, "adaptive"}


def test_scores_are_those_of_honest_clients_with_their_place_on_the_curve():
    config = RunConfig(**TINY, clients=5, hostile=2, aggregation="mean", mixing=0.25)
    done = run(config, progress=False)
    found = study.scores([done])
    assert found["value"].tolist() == done.accuracy().tolist()[:3]
    assert set(found["lam"]) == {0.25} and set(found["method"]) == {"FedReFT mean, λ 0.25"}
    places = [study.end_of_curve(config.but(method=m, hostile=0)) for m in ("local", "fedavg")]
    assert places == [0.0, 0.8]
    assert np.isnan(study.end_of_curve(config.but(aggregation="geometric_median")))


def test_the_best_share_is_chosen_on_other_seeds():
    scores = table({}, seeds=3, agreements=(1.0,), noise=0.0)
    # On seed 0 the large share looks best by far; on the others the small one is better.
    scores.loc[(scores["seed"] == 0) & (scores["lam"] == 0.3), "value"] += 9
    scores.loc[(scores["seed"] > 0) & (scores["lam"] == 0.1), "value"] += 6
    best = study.with_best(scores)
    best = best[best["method"] == study.BEST].groupby("seed")["value"].mean()
    # Seed 0 takes the share of seeds 1 and 2; for seed 1, seeds 0 and 2 give means of 4.5 and 3.
    assert best.to_dict() == {0: 60.0, 1: 60.0, 2: 60.0}
    assert study.with_best(scores[scores["seed"] == 0])["method"].ne(study.BEST).all()


def test_the_family_has_each_claim_once_and_finds_what_is_there():
    gains = {("FedAvg", 1.0): 10.0, ("mean, λ 0.1", 1.0): 4.0, ("FedAvg", 0.5): -10.0, ("mean, λ 0.1", 0.5): 4.0}
    found = study.contrasts(study.with_best(table(gains)))
    # In each of two cells: FedAvg, median, best against local; median, best against FedAvg.
    assert len(found) == 10 and set(found["family"]) == {10}
    assert found.loc[("a = 0.5, n = 64", "local only", study.BEST), "verdict"] == "above"
    assert found.loc[("a = 0.5, n = 64", "FedAvg", study.BEST), "verdict"] == "above"
    assert found.loc[("a = 1, n = 64", "FedAvg", study.BEST), "verdict"] == "below"
    ends = [found.xs(end, level="against", drop_level=False) for end in (study.LOCAL, study.FEDAVG)]
    both = statistics.above_both(*ends)["above both ends"]
    assert both[both].index.tolist() == [("a = 0.5, n = 64", study.BEST)]


def test_pictures_have_a_panel_for_each_size_and_a_frame_for_each_agreement():
    scores = study.with_best(table({}))
    two = pd.concat([scores, scores.assign(n=16)])
    assert [ax.get_title()[:2] for ax in study.gain_map(two, study.contrasts(two), study.BEST).axes] == ["16", "64"]
    frames = study.lam_curves(two, 4)
    assert list(frames) == ["1", "0.5"]
    drawn = frames["1"].axes[0].lines[-1].get_xdata()
    assert drawn.tolist() == [0.0, 0.1, 0.3, 0.75]


def test_what_is_kept_gives_the_same_comparisons(tmp_path):
    scores = study.with_best(table({("mean, λ 0.1", 0.5): 2.0}))
    study.keep(scores, tmp_path / "study" / "map.csv")
    again = pd.read_csv(tmp_path / "study" / "map.csv")
    assert len(again) == len(scores) / 2 and "client" not in again
    one, other = study.contrasts(scores), study.contrasts(again)
    numbers = ["difference", "low", "high", "p (Holm)"]
    pd.testing.assert_frame_equal(one[numbers], other[numbers], atol=1e-3)
    assert one["verdict"].str[:9].tolist() == other["verdict"].str[:9].tolist()


@pytest.mark.parametrize(("lam", "clients"), [(0.3, 4), (0.05, 8), (1.0, 2)])
def test_memory_is_the_inverse_of_the_share_that_a_round_takes_away(lam, clients):
    assert 1 / study.memory(lam, clients) == pytest.approx(lam * clients / (clients - 1))


def test_what_adaptive_mixing_chose_is_read_from_the_history():
    done = run(RunConfig(**{**TINY, "rounds": 2}, mixing="adaptive", aggregation="mean"), progress=False)
    lams = done.history[done.history["metric"] == "lam"].groupby("round")["value"].mean()
    assert study.chosen_lams([done]).loc[("loss", 8, 0.7)].tolist() == pytest.approx(lams.tolist())
    assert study.chosen_lams([]).empty
