"""Heads alone on frozen features: the limit is the one solution of the sum, and only the dual leads there."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from fedreft_lib import RunConfig
from fedreft_lib.workbook import head_alone

BASE = RunConfig(
    benchmark="agreement", backbone="tiny-llama", source="synthetic", layers="2-3", clients=4, agreement=0.7,
    train_size=24, held_out_size=4, test_size=4, method="fedvra",
)  # fmt: skip


def test_the_solution_is_sklearns():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 13, generator=generator).double()
    y = torch.where(torch.rand(60, generator=generator) < torch.sigmoid(2 * x[:, 0]), 1.0, -1.0).double()
    clients = list(zip(x.split(20), y.split(20), strict=True))
    theirs = LogisticRegression(C=1 / (60 * head_alone.RIDGE), fit_intercept=False, tol=1e-10, max_iter=1000)
    theirs.fit(x.numpy(), y.numpy())
    np.testing.assert_allclose(head_alone.solution(clients).numpy(), theirs.coef_[0], atol=1e-6)


def test_features_are_white_and_labels_are_those_of_the_clients():
    x, y = (torch.cat(each) for each in zip(*head_alone.features(BASE), strict=True))
    np.testing.assert_allclose((x.T @ x / len(x)).numpy(), np.eye(13), atol=1e-9)
    assert len(x) == 4 * 24 and set(y.tolist()) == {-1.0, 1.0}


@pytest.mark.parametrize("sampled", [None, 2])
def test_with_the_dual_the_common_head_is_the_solution_in_the_end_and_without_it_is_not(sampled):
    dual = head_alone.distances(BASE.but(vra_a=1.0, sampled=sampled), 120)
    prox = head_alone.distances(BASE.but(vra_a=0.0, sampled=sampled), 120)
    assert dual[0] == prox[0] == 100
    assert dual.iloc[-1] < 0.1 and prox.iloc[-1] > 3
