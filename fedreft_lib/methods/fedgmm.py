"""FedGMM (Wu et al., ICML 2023, arXiv 2305.01068): each client's data are its own mixture of common parts.

    p_c(x, y) = sum_(m1, m2) pi_c[m1, m2] N(z(x); mu_m1, Sigma_m1) p_m2(y | x)      z(x): the embedded item

M1 Gaussians over the items and M2 learners are common; pi_c is private. In a round, client c takes one step of EM:

    E   gamma_i[m1, m2] ~ pi_c[m1, m2] N(z_i; mu_m1, Sigma_m1) exp(-loss_m2(x_i, y_i))
    M   pi_c = mean_i gamma_i      mu, Sigma: weighted by sum_m2 gamma      learner m2: losses weighted by sum_m1 gamma

The server takes means: of mu_m1 and Sigma_m1 with weights n_c sum_m2 pi_c, of learner m2 with n_c sum_m1 pi_c. The mean
of the Sigma drops the scatter between clients; gmm_covariance="pooled" has it. A test item is answered by the learners
in the shares p(m2 | z) ~ sum_m1 pi_c[m1, m2] N(z; mu_m1, Sigma_m1). (In the published script log pi stands for pi
there.) M1 = 1 is FedEM; M1 = M2 = 1 is FedAvg. A client that never trains gets its pi by EM with all else as it is.

Published for vision: M1 = M2 = 3, z of 32 dimensions, ridge 0.1 (which also shrinks mu there; not here).
Reconstructions: z is the untrained model's embedding of the prompt on the principal components of all clients' items,
with variance 1; the clients tell their items' mean and covariance for it, once. The learners are states of
`intervention`, each R of its own, and divide a round's steps. All clients are tested with the pi that EM finds under
the newest common part. Options are scored by each learner, and their probabilities are mixed; where text is generated,
a head decides or a loss is computed, the learners' edits are mixed in the same shares: a reduction. A head is common.
The mixing matrix that a run records is that of example counts alone.
"""

import torch
from torch import Tensor

from ..config import RunConfig
from ..core.aggregation import Aggregate, mean
from ..core.state import Layout, State
from ..core.training import Trained
from ..errors import ConfigError
from ..model.encoding import ChoiceSet, Client, Encoded
from ..model.scoring import OutputShares
from ..model.steered import SteeredModel
from ..seeds import derive
from .embeddings import embeddings
from .gaussians import estimated, fitted_pi, log_densities, merged, moments, principal_basis, responsibilities
from .method import Method, Phase, Sent, of_branch, weighted_mean
from .mixture import Mixture, alone, losses_of_members

EM_STEPS = 100  # of pi, before a test


def common_parts(layout: Layout, config: RunConfig) -> State:
    """pi (M1, M2), uniform; mu (M1, D), drawn; Sigma (M1, D, D), of variance 1; what is told; room for z's basis."""
    M1, M2, D, d = config.gmm_components, config.gmm_learners, config.gmm_dims, layout.adapter.d
    if d < D:
        raise ConfigError(f"gmm_dims must be at most {d}, the width of {config.backbone}, got {D}")
    generator = torch.Generator().manual_seed(derive(config.seed, "gaussians"))
    return {
        "mu": torch.randn(M1, D, generator=generator),
        "Sigma": torch.eye(D).repeat(M1, 1, 1),
        "told.components": torch.full((M1,), 1 / M1),
        "told.learners": torch.full((M2,), 1 / M2),
        "kept.pi": torch.full((M1, M2), 1 / (M1 * M2)),
        "kept.centre": torch.zeros(d),
        "kept.basis": torch.zeros(D, d),
    }


def with_basis(layout: Layout, config: RunConfig, state: State, statistics, steps: int) -> State:
    centre, basis = principal_basis(statistics, config.gmm_dims)
    return {**state, "kept.centre": centre.float(), "kept.basis": basis.float().contiguous()}


def seen(model: SteeredModel, config: RunConfig, state: State, data: Encoded) -> tuple[Tensor, Tensor]:
    """z (items, D), and log N(z; mu_m1, Sigma_m1) (items, M1)."""
    z = (embeddings(model, config, None, data).double() - state["kept.centre"]) @ state["kept.basis"].double().mT
    return z, log_densities(z, state["mu"], state["Sigma"], config.gmm_ridge)


def losses_of_learners(model: SteeredModel, config: RunConfig, state: State, data: Encoded) -> Tensor:
    """The loss (items, M2) of each item under each learner: the sum over its answer tokens, or their mean."""
    found = losses_of_members(model, state, data, config.batch_size)
    tokens = torch.tensor([data.losses_in(i) for i in range(len(data))])
    return found / tokens[:, None] if config.gmm_loss == "mean" else found


def e_step(model: SteeredModel, config: RunConfig, state: State, client: Client, t: int) -> State:
    z, near = seen(model, config, state, client.train)
    gamma = responsibilities(state["kept.pi"], near, losses_of_learners(model, config, state, client.train))
    found = {"z": z, "gamma": gamma}
    for m, name in enumerate(model.adapter.kind.branches):
        found |= {f"only {name}": alone(len(z), m, config.gmm_learners), f"weight {name}": gamma[..., m].sum(1)}
    return found


def m_step(
    model: SteeredModel, config: RunConfig, before: State, trained: Trained, prepared: State, client: Client, t: int
) -> State:
    """The new pi, mu and Sigma of this client; the learners have been trained."""
    pi = prepared["gamma"].mean(0)
    mu, Sigma = estimated(prepared["z"], prepared["gamma"].sum(2), config.gmm_ridge)
    found = {"kept.pi": pi, "told.components": pi.sum(1), "told.learners": pi.sum(0), "mu": mu, "Sigma": Sigma}
    return {name: tensor.float() for name, tensor in found.items()}


def by_part(sent: Sent, aggregate: Aggregate) -> list[State]:
    """The mean of each part by what the clients say of it; a part that nobody has anything of stays as it was.

    A client may claim at most all of its examples for a part.
    """
    spec, n, before = sent.spec, sent.weights.double(), sent.spec.named(sent.before[0])
    learners, components = (
        n[:, None] * sent.told[f"told.{name}"].double().clamp(0, 1) for name in ("learners", "components")
    )
    answer = dict(before)
    for m, name in enumerate(sent.kind.branches):
        if learners[:, m].any():
            part = spec.part(of_branch(spec.names, name))
            answer |= part.named(mean(spec.columns(part.names, sent.X), learners[:, m]).aggregate[0])
    states = [spec.named(row) for row in sent.X.double()]
    mu, Sigma = (torch.stack([state[name] for state in states]) for name in ("mu", "Sigma"))
    mu, Sigma = merged(mu, Sigma, components, scatter=sent.config.gmm_covariance == "pooled")
    there = components.sum(0) > 0
    answer["mu"] = torch.where(there[:, None], mu.float(), before["mu"])
    answer["Sigma"] = torch.where(there[:, None, None], Sigma.float(), before["Sigma"])
    return [answer for _ in sent.X]


def own_pi(model: SteeredModel, config: RunConfig, state: State, client: Client, t: int) -> State:
    """The state with the pi of a client's training items, by EM from a uniform one; all else is as it is."""
    near = seen(model, config, state, client.train)[1]
    losses = losses_of_learners(model, config, state, client.train)
    return {**state, "kept.pi": fitted_pi(near, losses, EM_STEPS).float()}


def shares(
    model: SteeredModel, config: RunConfig, state: State, client: Client, part: Encoded
) -> Tensor | OutputShares:
    """p(m2 | z) (items, M2) of test items: shares of the learners' probabilities of options, else of their edits."""
    near = seen(model, config, state, part)[1]
    both = near[:, :, None] + state["kept.pi"].double().log()  # (items, M1, M2)
    found = both.logsumexp(1).softmax(-1).float()
    scored = isinstance(part, ChoiceSet) and config.scoring != "generation"
    return OutputShares(found) if scored else found


FEDGMM = Method(
    "fedgmm",
    aggregate=weighted_mean,
    mixing=lambda config: 1.0,
    one_for_all=True,
    state_kind=lambda kind, config: Mixture(kind, config.gmm_learners),
    phases=lambda names, kind, config, t: [
        Phase(of_branch(names, m), share=f"only {m}", weights=f"weight {m}") for m in kind.branches
    ],
    client_statistics=lambda model, config, state, client: moments(embeddings(model, config, None, client.train)),
    initial_state=with_basis,
    extras=common_parts,
    prepare=e_step,
    after=m_step,
    answer=by_part,
    deploy=own_pi,
    test_share=shares,
)
