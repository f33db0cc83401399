"""Measures of notebook 11 that are no accuracies, each beside another computation of it."""

import numpy as np
import pytest
import torch
from scipy.stats import entropy, multivariate_normal
from sklearn.metrics import roc_auc_score

from fedreft_lib import assemble
from fedreft_lib.federation.local_clients import start
from fedreft_lib.methods.additions import beyond
from fedreft_lib.model import scoring
from fedreft_lib.workbook import controls, measures
from tests.helpers.federations import finish, small


@pytest.mark.parametrize("fields", [{}, {"clients": 6, "setup": "mixed", "sampled": 3}], ids=["all", "drawn"])
def test_the_common_state_of_each_round_ends_at_the_runs(fields):
    config = small(method="fedvra", **fields)
    done, states = finish(config), [state for _, state, _ in measures.rounds_of(config)]
    assert len(states) == config.rounds + 1
    begun = done.spec.named(start(assemble(config), config)[0])
    common = [name for name in begun if not name.startswith("kept.")]
    held = {name.removeprefix("for all."): tensor for name, tensor in done.memory.items()}
    for name in common:
        assert torch.equal(states[0][name], begun[name])
        assert torch.equal(states[-1][name], held.get(name, done.spec.named(done.states[0])[name]))


def test_angles_are_those_by_which_a_space_was_turned():
    turn = np.radians([10.0, 0.001, 60.0])
    R = torch.eye(6)[:3]
    other = torch.zeros(3, 6).double()
    other[range(3), range(3)] = torch.from_numpy(np.cos(turn))
    other[range(3), range(3, 6)] = torch.from_numpy(np.sin(turn))
    mixed = torch.randn(3, 3, generator=torch.Generator().manual_seed(0)).double() @ other  # another basis of it
    np.testing.assert_allclose(measures.angles(R[None], mixed[None]), [[0.001, 10, 60]], rtol=1e-4)


def test_each_arm_is_turned_from_its_own_control_and_beside_the_start():
    config = small(method="fedavg", rounds=1)
    fewer = measures.first_clients(assemble(config), 2)
    of_all = [controls.run_on(assemble(each), each) for each in (config, config.but(seed=1))]
    runs = {"arm": of_all, "few": [controls.run_on(fewer, config), of_all[1]]}
    assert len(runs["few"][0].states) == 2
    table = measures.turned(runs, runs["arm"]).set_index(["method", "part", "seed"]).sort_index()
    assert (table.loc["arm", "value"] < 1e-3).all() and table.loc[("few", "W - R", 0), "largest"] > 1
    begun = start(assemble(config), config)[0]
    R, to = (done["R"] for done in map(runs["arm"][0].spec.named, (begun, runs["arm"][0].states[0])))
    cosines = np.linalg.svd((R @ to.mT).double().numpy(), compute_uv=False)
    assert table.loc[("the start", "R", 0), "value"] == pytest.approx(
        np.degrees(np.arccos(cosines.clip(max=1))).mean(), abs=0.05
    )


def test_what_is_beyond_a_rank_is_what_the_best_approximation_of_that_rank_lacks():
    W = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0)).double()
    for rank, found in zip((0, 2, 5), beyond(W, [0, 2, 5]), strict=True):
        U, S, Vh = np.linalg.svd(W.numpy(), full_matrices=False)
        lacks = W.numpy() - (U[..., :rank] * S[:, None, :rank]) @ Vh[:, :rank]
        assert found == pytest.approx(100 * (lacks**2).sum() / float(W.square().sum()), abs=1e-9)
    config = small(method="fedhl", ranks=[2, 1, 2, 1], lr=0.05)
    table, done = measures.beyond_rank(config, [1, 2]), finish(config)
    assert list(table.index) == [1, 2, 3] and (table[1] > table[2]).all()
    assert table.loc[3, 1] == pytest.approx(beyond(done.memory["delta."].double(), [1])[0], abs=1e-4)


@pytest.mark.parametrize("method", ["fedgmm", "fedavg"])
def test_foreign_texts_are_told_by_the_density_or_by_the_answers_entropy(method):
    config = small(method=method, rounds=1, setup="iid", test_size=8, **({"gmm_dims": 3} if method == "fedgmm" else {}))
    federation = measures.without(assemble(config), "piqa")
    assert all(len(client.train) == 6 for client in federation.clients)  # of 8, two of each task
    assert "piqa" not in {item.task for client in federation.questions for item in client.train}
    done = controls.run_on(federation, config)
    table = measures.novelties(done, federation, "piqa", "what").set_index("client")["value"]
    model, state, part = federation.model, done.spec.named(done.states[1]), federation.clients[1].test[0]
    if method == "fedgmm":
        z = measures.fedgmm.seen(model, config, state, part)[0].numpy()
        pi = state["kept.pi"].sum(1).tolist()
        p = sum(w * multivariate_normal(m, S).pdf(z) for w, m, S in zip(pi, state["mu"], state["Sigma"], strict=True))
        score = -np.log(p)
    else:
        each = [
            np.exp(of.numpy()) for of in scoring.option_scores(model, state, part, config.but(scoring="likelihood"))
        ]
        score = [entropy(of) for of in each]
    is_foreign = [item.task == "piqa" for item in federation.questions[1].test]
    assert sum(is_foreign) == 2 and table.iloc[1] == pytest.approx(100 * roc_auc_score(is_foreign, score))


def test_the_way_is_measured_in_what_states_add_and_in_the_loss_of_all():
    config = small(method="fedavg", rounds=1, lr=0.05)
    federation, done = assemble(config), finish(config)
    end = done.spec.named(done.states[0])
    table = measures.on_the_way(config, end, "what")
    assert table["distance"].tolist() == pytest.approx([100, 0], abs=1e-3)
    losses = [scoring.loss(federation.model, end, client.train, 4) for client in federation.clients]
    assert table["loss"].iloc[1] == pytest.approx(np.mean(losses))
    # R, W, b that differ and add the same are no distance apart
    turned = {"R": end["R"].flip(1), "W": end["W"].flip(1), "b": end["b"].flip(1)}
    assert measures.on_the_way(config, turned, "what")["distance"].iloc[1] == pytest.approx(0, abs=1e-3)
