"""A stretched update: what client 1 becomes is what the formulas say, and what a reader sees is safe and small."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from scipy.optimize import minimize

from fedreft_lib import RunConfig, assemble, federated_round, start
from fedreft_lib.errors import ConfigError
from fedreft_lib.workbook import outlier
from fedreft_lib.workbook.remix import RULES

CONFIG = RunConfig(
    backbone="tiny-llama", source="synthetic", benchmark="instruction", tasks=["card"], setup="iid", layers=[2], rank=2,
    positions="l1", clients=5, train_size=4, held_out_size=2, test_size=2, local_steps=2, batch_size=4,
    max_new_tokens=4, mixing=0.5, norm_limit=1000, retraction="raw",
)  # fmt: skip


@pytest.fixture(scope="module")
def shouting():
    return outlier.Outlier(assemble(CONFIG), CONFIG)


@pytest.fixture(scope="module")
def trained(shouting):
    """The start (P,), and the states (5, P) after local training."""
    alone = CONFIG.but(method="local")
    begin = start(shouting.federation, alone)
    return begin[0], federated_round(shouting.federation, alone, begin, t=1)[0]


def state(shouting, rule, factor):
    return shouting.model.spec.row(shouting.after(rule, factor)[0])


def test_factor_1_is_the_plain_round():
    config = CONFIG.but(retraction="polar", norm_limit=30.0)
    plain = outlier.Outlier(assemble(config), config)
    for rule, changes in {
        "fedavg": {"method": "fedavg"},
        "mean": {"aggregation": "mean"},
        "geometric_median": {},
    }.items():
        X, report = federated_round(plain.federation, config.but(**changes), plain.begin, t=1)
        assert torch.equal(state(plain, rule, 1), X[0])
        assert plain.after(rule, 1)[1] == float(report.M[0, 4])


@pytest.mark.parametrize("factor", [1, 10, 100])
def test_client_1_goes_where_the_formulas_say(shouting, trained, factor):
    begin, X = trained
    sent = torch.cat([X[:4], (begin + factor * (X[4] - begin))[None]]).double()
    assert torch.allclose(state(shouting, "fedavg", factor).double(), sent.mean(0), atol=1e-5)
    assert torch.allclose(state(shouting, "mean", factor).double(), (sent[0] + sent[1:].mean(0)) / 2, atol=1e-5)

    others = sent[1:]

    def distances(a):
        return float((others - torch.tensor([*a, 1 - a.sum()]) @ others).norm(dim=1).sum())

    exact = {"xatol": 1e-9, "fatol": 1e-12, "maxiter": 4000}
    found = minimize(distances, [0.25] * 3, method="Nelder-Mead", options=exact)
    median = torch.tensor([*found.x, 1 - found.x.sum()]) @ others
    assert torch.allclose(state(shouting, "geometric_median", factor).double(), (sent[0] + median) / 2, atol=1e-4)


def test_the_mean_goes_away_in_proportion_and_the_median_stays_within_reach_of_the_honest(shouting, trained):
    begin, X = trained
    moved = {rule: state(shouting, rule, 100) - state(shouting, rule, 1) for rule in RULES}
    update = float((X[4] - begin).norm())
    assert float(moved["fedavg"].norm()) == pytest.approx(99 * update / 5, rel=1e-4)
    assert float(moved["mean"].norm()) == pytest.approx(99 * update / 8, rel=1e-4)
    honest = X[1:4]
    radius = float((honest - honest.mean(0)).norm(dim=1).max())
    median = 2 * state(shouting, "geometric_median", 100) - X[0]
    # One of four points anywhere: within 2 (1 - 1/4) / (1 - 2/4) = 3 radii of the others' centre (Minsker 2015).
    assert float((median - honest.mean(0)).norm()) <= 3 * radius < 99 * update / 8


def test_the_server_refuses_a_hundredfold_update_unless_the_limit_is_lifted():
    config = CONFIG.but(norm_limit=30.0)
    refusing = outlier.Outlier(assemble(config), config)
    assert refusing.after("mean", 25)[1] == 0.125
    assert refusing.after("mean", 100)[1] == 0.0


def test_an_outlier_among_two_others_is_refused():
    with pytest.raises(ConfigError, match="at least 4 clients, got 3"):
        outlier.Outlier(None, CONFIG.but(clients=3))


def test_what_the_model_writes_is_text_and_the_slider_is_small(shouting):
    key = ("fedavg", 100, shouting.questions[0])
    shouting.write(outlier.FACTORS, shouting.questions[:2])
    alone = shouting.model.generate([shouting.read(key[2])], shouting.after(*key[:2])[0], CONFIG.max_new_tokens)
    assert [shouting.texts[key]] == alone  # in one pass with many states
    shouting.texts[key] = "</script><img src=x onerror=alert(1)>"
    page = shouting.slider().data
    assert "</script><img" not in page and "&lt;/script&gt;&lt;img" in page
    assert page.count("data-frame=") == len(outlier.FACTORS) and 'data-frame="×100"' in page
    assert len(page.encode()) < 100_000


def test_the_sentences_say_what_the_losses_say(shouting):
    other = outlier.Outlier(shouting.federation, CONFIG)
    untrained = other.held_out(None)
    other.losses = {(rule, factor): untrained + 0.5 * (rule == "mean" and factor == 100) for rule in RULES
                    for factor in (1, 100)}  # fmt: skip
    *_, last = other.said((1, 100))
    assert last == f"At ×100 client 1 is worse off than untrained ({untrained:.2f}) under mean of the others."
    other.losses["mean", 100] = untrained
    assert other.said((1, 100))[-1].endswith("under none of the rules.")


def test_without_a_kernel_there_is_one_sentence(shouting, monkeypatch):
    shown = []
    monkeypatch.setattr(outlier, "display", shown.append)

    async def cell():
        shouting.live()

    with ThreadPoolExecutor(1) as kernel:  # browser tests, in the same process, leave a loop in this thread
        kernel.submit(asyncio.run, cell()).result()
    box, asleep = shown
    assert outlier.ALIVE in box._dom_classes and shouting.questions[0] in box.children[-1].value
    assert "It needs a running kernel" in asleep.data
