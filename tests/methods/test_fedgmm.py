"""FedGMM: each client's data are its own mixture of common Gaussians over the items and of common learners."""

import dataclasses
import functools

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.stats import multivariate_normal

from fedreft_lib import run, train_client
from fedreft_lib.core.state import Spec
from fedreft_lib.errors import ConfigError
from fedreft_lib.federation.assembly import assemble
from fedreft_lib.federation.evaluation import evaluate_all
from fedreft_lib.federation.local_clients import start
from fedreft_lib.federation.rounds import federated_round
from fedreft_lib.methods import METHODS
from fedreft_lib.methods.embeddings import embeddings
from fedreft_lib.methods.fedgmm import by_part
from fedreft_lib.methods.gaussians import estimated, log_densities, merged, moments, principal_basis, responsibilities
from fedreft_lib.methods.method import Sent, of_branch
from fedreft_lib.methods.mixture import Mixture
from fedreft_lib.model import scoring
from fedreft_lib.seeds import derive
from tests.helpers.federations import small

BOTH = pytest.mark.parametrize("intervention", ["loreft", "lora"])
METHOD = METHODS["fedgmm"]


def gmm(**fields):
    return small(**{"method": "fedgmm", "gmm_dims": 3, **fields})


def apart(federation, config, scale=0.2):
    """X (N, P) with one state for all, far from the start, whose Gaussians have shapes of their own."""
    spec, X = federation.model.spec, start(federation, config)
    moved = X[0] + scale * torch.randn(X.shape[1], generator=torch.Generator().manual_seed(1))
    state, begun = spec.named(moved), spec.named(X[0])
    spread = torch.randn(*state["Sigma"].shape, generator=torch.Generator().manual_seed(2))
    state |= {"Sigma": 0.5 * torch.eye(3) + spread @ spread.mT, "mu": begun["mu"]}
    state |= {name: tensor for name, tensor in begun.items() if name.startswith(("kept.", "told."))}
    return spec.row(state).expand(len(X), -1).clone()


def learner(state, i):
    """The state of learner i (from 1) under the names of a state without branches."""
    own = {name.replace(f"m{i}.", ""): tensor for name, tensor in state.items() if f"m{i}." in name}
    assert own
    return own


def seen(federation, state, data):
    """z (items, D) by NumPy."""
    e = embeddings(federation.model, gmm(), None, data).double().numpy()
    return (e - state["kept.centre"].double().numpy()) @ state["kept.basis"].double().numpy().T


def expected_gamma(federation, config, state, client):
    """gamma by a loop over items: SciPy's densities, and the losses of a model that has this learner only."""
    plain, gamma = assemble(small(method="fedavg", intervention=config.intervention)), []
    for i, z in enumerate(seen(federation, state, client.train)):
        item, joint = client.train.subset([i]), np.zeros(state["kept.pi"].shape)
        for m2 in range(joint.shape[1]):
            nll = scoring.loss(plain.model, learner(state, m2 + 1), item, 1)  # of a token
            nll *= item.losses_in(0) if config.gmm_loss == "sum" else 1
            for m1 in range(joint.shape[0]):
                near = multivariate_normal(state["mu"][m1].double(), state["Sigma"][m1].double()).pdf(z)
                joint[m1, m2] = float(state["kept.pi"][m1, m2]) * near * np.exp(-nll)
        gamma.append(joint / joint.sum())
    return np.stack(gamma)


# ---- Gaussians ------------------------------------------------------------------------------------------------------


def groups(seed=0):
    """Items (n, 4) of three clients, of different sizes, centres and shapes."""
    draw = np.random.default_rng(seed)
    return [draw.normal(c, 1, (n, 4)) @ draw.normal(0, 1, (4, 4)) for n, c in ((9, 0), (20, 3), (6, -2))]


def test_the_basis_is_that_of_all_clients_items_together_with_variance_one():
    parts = groups()
    centre, basis = principal_basis([moments(torch.from_numpy(part)) for part in parts], 3)
    joined = np.concatenate(parts)
    np.testing.assert_allclose(centre, joined.mean(0), atol=1e-5)
    np.testing.assert_allclose(np.cov((joined - joined.mean(0)) @ basis.numpy().T, rowvar=False, bias=True), np.eye(3),
                               atol=1e-4)  # fmt: skip
    axes = np.linalg.svd(joined - joined.mean(0))[2][:3]
    np.testing.assert_allclose(np.abs(np.linalg.qr(basis.numpy().T)[0].T @ axes.T), np.eye(3), atol=1e-3)


def test_directions_that_the_items_do_not_have_stay_zero():
    flat = np.concatenate(groups())[:, :2] @ np.ones((2, 4))
    _, basis = principal_basis([moments(torch.from_numpy(flat))], 3)
    assert bool(basis.isfinite().all()) and [bool(row.any()) for row in basis] == [True, False, False]


def test_densities_are_scipys():
    z, draw = np.concatenate(groups()), np.random.default_rng(3)
    mu, half = draw.normal(size=(2, 4)), draw.normal(size=(2, 4, 4))
    Sigma = half @ half.transpose(0, 2, 1) + 0.3 * np.eye(4)
    found = log_densities(*map(torch.from_numpy, (z, mu, Sigma)), least=1e-9)
    expected = np.stack([multivariate_normal(mu[m], Sigma[m]).logpdf(z) for m in range(2)], 1)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_merged_covariances_are_that_of_all_items_only_with_the_scatter_between_clients():
    parts = groups()
    draw = np.random.default_rng(4)
    gammas = [draw.uniform(size=(len(part), 2)) for part in parts]
    each = [estimated(torch.from_numpy(x), torch.from_numpy(g), 0.1) for x, g in zip(parts, gammas, strict=True)]
    mu, Sigma = (torch.stack(of) for of in zip(*each, strict=True))
    sizes = torch.from_numpy(np.stack([g.sum(0) for g in gammas]))
    mean, pooled = merged(mu, Sigma, sizes, scatter=True)
    for m in range(2):
        weights, joined = np.concatenate(gammas)[:, m], np.concatenate(parts)
        np.testing.assert_allclose(mean[m], np.average(joined, axis=0, weights=weights), rtol=1e-9)
        covariance = np.cov(joined, rowvar=False, bias=True, aweights=weights)
        np.testing.assert_allclose(pooled[m], covariance + 0.1 * np.eye(4), rtol=1e-9, atol=1e-9)
    official = merged(mu, Sigma, sizes, scatter=False)[1]
    assert bool((pooled - official).diagonal(dim1=1, dim2=2).gt(0).all())


def test_a_step_of_em_never_lowers_the_likelihood_while_the_learners_rest():
    z, draw = np.concatenate(groups()), np.random.default_rng(5)
    losses, pi = torch.from_numpy(draw.exponential(2, (len(z), 2))), torch.full((3, 2), 1 / 6, dtype=torch.float64)
    mu, Sigma, likelihoods = torch.from_numpy(draw.normal(size=(3, 4))), torch.eye(4).double().repeat(3, 1, 1), []
    for _ in range(12):
        normals = [multivariate_normal(m, S, allow_singular=True).pdf(z) for m, S in zip(mu, Sigma, strict=True)]
        p = np.einsum("mn,mi,in->i", pi.numpy(), np.stack(normals), np.exp(-losses.numpy()))
        likelihoods.append(np.log(p).sum())
        gamma = responsibilities(pi, log_densities(torch.from_numpy(z), mu, Sigma, 1e-9), losses)
        pi, (mu, Sigma) = gamma.mean(0), estimated(torch.from_numpy(z), gamma.sum(2), 1e-6)
    assert (np.diff(likelihoods) > -1e-3).all() and likelihoods[-1] > likelihoods[0] + 10


# ---- a round --------------------------------------------------------------------------------------------------------


@BOTH
def test_one_gaussian_and_one_learner_are_fedavg_to_the_bit(uneven, intervention):
    config = gmm(gmm_components=1, gmm_learners=1, intervention=intervention)
    plain = small(method="fedavg", engine="one_by_one", intervention=intervention)
    one, avg = uneven(config), uneven(plain)
    X, Y, spec = start(one, config), start(avg, plain), one.model.spec
    for t in (1, 2):
        X, Y = federated_round(one, config, X, t)[0], federated_round(avg, plain, Y, t)[0]
        assert torch.equal(spec.columns(one.model.layout.adapter_names, X), Y)
    gained = [
        [row["value"] for row in evaluate_all(each, of, states, 2) if row["metric"] == "accuracy"]
        for each, of, states in ((one, config, X), (avg, plain, Y))
    ]
    assert gained[0] == gained[1]


@pytest.mark.parametrize("fields", [{}, {"intervention": "lora"}, {"gmm_loss": "mean"}], ids=str)
def test_the_responsibilities_are_what_bayes_says(fields):
    config = gmm(**fields)
    federation = assemble(config)
    state, client = federation.model.spec.named(apart(federation, config)[0]), federation.clients[1]
    state["kept.pi"] = torch.tensor([[0.1, 0.2], [0.3, 0.4]])
    found, expected = METHOD.prepare(federation.model, config, state, client, 1), None
    expected = expected_gamma(federation, config, state, client)
    np.testing.assert_allclose(found["gamma"], expected, atol=1e-4)
    np.testing.assert_allclose(found["weight m2"], expected[:, :, 1].sum(1), atol=1e-4)
    assert float(found["gamma"].std()) > 0.01


def test_learners_that_are_equal_share_every_item_evenly():
    config = gmm()
    federation = assemble(config)
    state = federation.model.spec.named(apart(federation, config)[0])
    state |= {name: state[name.replace("m2.", "m1.")] for name in of_branch(state, "m2")}
    gamma = METHOD.prepare(federation.model, config, state, federation.clients[0], 1)["gamma"]
    torch.testing.assert_close(gamma[..., 0], gamma[..., 1])


@BOTH
def test_a_learner_takes_its_share_of_the_steps_on_losses_weighted_by_its_responsibilities(learned, intervention):
    config = gmm(intervention=intervention, local_steps=4, optimiser="sgd", lr=0.5)  # AdamW is blind to a scale
    federation, plain = assemble(config), assemble(small(method="fedavg", intervention=intervention))
    X, spec, k = apart(federation, config), federation.model.spec, 2
    orthonormal = {name: R for name, R in spec.named(start(federation, config)[0]).items() if name.endswith(".R")}
    X[:] = spec.row({**spec.named(X[0]), **orthonormal})
    trained, client = spec.named(learned(federation, config, X)[k]), federation.clients[k]
    gamma = METHOD.prepare(federation.model, config, spec.named(X[k]), client, 1)["gamma"]
    assert float((gamma[..., 0] - gamma[..., 1]).sum(1).abs().min()) > 0.01
    for i in (1, 2):
        seed = derive(config.seed, "batches", 1, client.name, *((1,) if i == 2 else ()))
        alone = train_client(
            plain.model, learner(spec.named(X[k]), i), client.train, config, seed=seed, steps=2,
            weights=gamma[..., i - 1].sum(1),
        )  # fmt: skip
        for name, tensor in alone.state.items():
            torch.testing.assert_close(learner(trained, i)[name], tensor, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("covariance", ["official", "pooled"])
def test_each_part_becomes_the_mean_weighted_by_what_the_clients_have_of_it(uneven, learned, covariance):
    config = gmm(retraction="raw", gmm_covariance=covariance)
    federation = uneven(config)
    X, spec = apart(federation, config), federation.model.spec
    told = [spec.named(row.double()) for row in learned(federation, config, X)]
    after = spec.named(federated_round(federation, config, X, 1)[0][0].double())
    n = torch.tensor([8.0, 5, 2, 8]).double()
    gammas = [METHOD.prepare(federation.model, config, spec.named(X[k]), c, 1)["gamma"]
              for k, c in enumerate(federation.clients)]  # fmt: skip
    for i in (0, 1):
        p = n * torch.stack([gamma.sum(1).mean(0)[i] for gamma in gammas])
        for name in of_branch(spec.names, f"m{i + 1}"):
            mean = sum(w * each[name] for w, each in zip(p / p.sum(), told, strict=True))
            torch.testing.assert_close(after[name], mean, atol=1e-6, rtol=1e-5)
    for i in (0, 1):
        items = [(torch.from_numpy(seen(federation, spec.named(X[0]), c.train)), g.sum(2)[:, i])
                 for c, g in zip(federation.clients, gammas, strict=True)]  # fmt: skip
        sizes, joined = [float(g.sum()) for _, g in items], [np.concatenate(of) for of in zip(*items, strict=True)]
        torch.testing.assert_close(
            after["mu"][i], torch.from_numpy(np.average(joined[0], axis=0, weights=joined[1])), atol=1e-5, rtol=1e-4
        )
        if covariance == "pooled":
            of_all = np.cov(joined[0], rowvar=False, bias=True, aweights=joined[1])
        else:
            of_all = sum(
                w / sum(sizes) * np.cov(z, rowvar=False, bias=True, aweights=g)
                for w, (z, g) in zip(sizes, items, strict=True)
            )
        np.testing.assert_allclose(after["Sigma"][i], of_all + 0.1 * np.eye(3), atol=1e-4, rtol=1e-3)
    for k, state in enumerate(told):
        torch.testing.assert_close(state["kept.pi"], gammas[k].mean(0), atol=1e-6, rtol=1e-5)


def test_nobody_can_claim_more_than_its_examples_and_a_part_that_nobody_has_stays():
    spec = Spec.of({"m1.b": (1,), "m2.b": (1,), "mu": (2, 1), "Sigma": (2, 1, 1)})
    X = torch.tensor([[1.0, 1, 1, 1, 1, 1], [3, 3, 3, 3, 2, 2]])
    told = {"told.learners": torch.tensor([[1.0, 0.0], [1e9, -1.0]]),
            "told.components": torch.tensor([[1.0, 0.0], [1e9, -1.0]])}  # fmt: skip
    before = torch.full((2, 6), 7.0)
    sent = Sent(X, before, torch.tensor([3.0, 1.0]), spec, gmm(), Mixture(None, 2), told=told)
    found = spec.row(by_part(sent, METHOD.aggregate(X, sent.weights, sent.config))[0])
    torch.testing.assert_close(found, torch.tensor([1.5, 7, 1.5, 7, 1.25, 7]))


def test_what_is_sent_is_all_but_a_clients_own_mixture_and_the_basis():
    done = run(gmm(rounds=1), progress=False)
    of_learners = sum(tensor.numel() for name, tensor in done.spec.named(done.states[0]).items() if name[0] == "m")
    sent = of_learners + 2 * 9  # mu is among the former; Sigma
    assert done.history["uplink_bytes"].sum() == 4 * 4 * (sent + 2 + 2)  # and the two parts' shares, which are told
    assert done.history["downlink_bytes"].sum() == 4 * 4 * sent
    assert len({tuple(done.spec.named(row)["kept.pi"].flatten().tolist()) for row in done.states}) == 4


# ---- tests ----------------------------------------------------------------------------------------------------------


def test_where_the_gaussians_are_equal_the_learners_have_the_shares_of_pi():
    config = gmm(gmm_components=1)
    federation = assemble(config)
    state = {**federation.model.spec.named(apart(federation, config)[0]), "kept.pi": torch.tensor([[0.9, 0.1]])}
    client = federation.clients[0]
    found = METHOD.test_share(federation.model, config, state, client, client.test[0])
    torch.testing.assert_close(found.of, torch.tensor([0.9, 0.1]).expand(5, -1))


@BOTH
def test_options_are_scored_by_each_learner_and_their_probabilities_are_mixed(intervention):
    config = gmm(intervention=intervention, scoring="likelihood")
    federation, plain = assemble(config), assemble(small(method="fedavg", intervention=intervention))
    state = federation.model.spec.named(apart(federation, config, scale=0.5)[0])
    state["kept.pi"] = torch.tensor([[0.05, 0.35], [0.5, 0.1]])
    client = federation.clients[0]
    (test,) = client.test
    share = METHOD.test_share(federation.model, config, state, client, test)
    found = scoring.option_scores(federation.model, state, test, config, share)
    each = [[of.numpy() for of in scoring.option_scores(plain.model, learner(state, i), test, config)] for i in (1, 2)]
    for i, z in enumerate(seen(federation, state, test)):
        near = [multivariate_normal(state["mu"][m].double(), state["Sigma"][m].double()).pdf(z) for m in (0, 1)]
        p = np.array(near) @ state["kept.pi"].double().numpy()
        mixed = sum(w * np.exp(own[i]) / np.exp(own[i]).sum() for w, own in zip(p / p.sum(), each, strict=True))
        np.testing.assert_allclose(found[i].exp(), mixed, atol=1e-4)
        assert float(found[i].exp().sum()) == pytest.approx(1.0)
    assert float(share.of.std()) > 0.01


def test_a_clients_own_mixture_is_the_most_likely_one_in_tests():
    config = gmm(gmm_components=1, gmm_loss="mean")
    federation, found = assemble(config), []
    state = federation.model.spec.named(apart(federation, config, scale=0.5)[0])
    for client in federation.clients:
        own = METHOD.deploy(federation.model, config, state, client, 1)
        assert all(torch.equal(own[name], state[name]) for name in state if name != "kept.pi")
        odds = expected_gamma(federation, config, state, client)[:, 0]  # from a uniform pi: likelihoods, up to a factor
        unlikely = functools.partial(lambda odds, a: -np.log(odds @ [a, 1 - a]).mean(), odds)
        best = minimize_scalar(unlikely, bounds=(0, 1), method="bounded")
        found.append(float(own["kept.pi"][0, 0]))
        assert unlikely(found[-1]) == pytest.approx(best.fun, abs=3e-3)
        assert unlikely(0.5) > best.fun + 0.01
    assert max(found) - min(found) > 0.05


def test_an_unseen_client_changes_nothing_and_is_tested_with_the_newest_parts_in_its_own_mixture():
    config = gmm(clients=5, setup="mixed", unseen=1, rounds=2, scoring="likelihood")
    federation = assemble(config)
    fewer = dataclasses.replace(federation.clients[-1], train=federation.clients[-1].train.subset([0]))
    other = dataclasses.replace(federation, clients=[*federation.clients[:-1], fewer])
    assert torch.equal(start(federation, config), start(other, config))
    done, spec, client = run(config, progress=False), federation.model.spec, federation.clients[-1]
    assert torch.equal(done.states[-1], start(federation, config)[-1])
    shared = {
        name: tensor for name, tensor in spec.named(done.states[0]).items() if name.startswith(("m1", "m2", "mu", "S"))
    }
    state = METHOD.deploy(federation.model, config, {**spec.named(done.states[-1]), **shared}, client, 2)
    share = METHOD.test_share(federation.model, config, state, client, client.test[0])
    right, _ = scoring.correct(federation.model, state, client.test[0], config, share)
    assert done.accuracy()[client.name] == pytest.approx(100 * float(right.double().mean()))


# ---- what cannot be -------------------------------------------------------------------------------------------------


def test_what_cannot_work_is_one_sentence():
    with pytest.raises(
        ConfigError, match="gmm_learners must be at most a round's steps, which they divide: got 3 and 2"
    ):
        gmm(gmm_learners=3)
    with pytest.raises(ConfigError, match="gmm_dims must be at most 64, the width of tiny-llama, got 65"):
        assemble(gmm(gmm_dims=65))
