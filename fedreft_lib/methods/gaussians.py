"""Gaussians over embedded items, for FedGMM: a basis to see them in, densities, EM, the merging of estimates.

All in float64. M components in D dimensions: mu (M, D), Sigma (M, D, D). An item belongs to one of M1 components and to
one of M2 learners, whose losses are given: pi (M1, M2).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..core.state import State

EMPTY = 1e-6  # a direction with less than this part of the largest variance has nothing in it
TINY = 1e-300


def moments(x: Tensor) -> State:
    """What a client tells of its items' embeddings x (items, d): their number, their mean, their covariance (d, d)."""
    x = x.double()
    mean = x.mean(0)
    covariance = (x - mean).mT @ (x - mean) / len(x)
    return {"count": torch.tensor([float(len(x))]), "mean": mean.float(), "covariance": covariance.float()}


def principal_basis(of_clients: Sequence[State], dims: int) -> tuple[Tensor, Tensor]:
    """PCA of all clients' items, from their `moments`: the centre (d,), and a basis (dims, d).

    (x - centre) basis^T has variance 1 in each dimension, and 0 in one that the items do not have.
    """
    n, mean, within = (torch.stack([e[name].double() for e in of_clients]) for name in ("count", "mean", "covariance"))
    p = n / n.sum()  # (clients, 1)
    centre = (p * mean).sum(0)
    total = (p[..., None] * within).sum(0) + (p * (mean - centre)).mT @ (mean - centre)
    values, vectors = torch.linalg.eigh(total)  # increasing
    values, vectors = values.flip(0)[:dims], vectors.flip(1)[:, :dims]
    scale = torch.where(values > EMPTY * values[0], values, math.inf).rsqrt()
    return centre, (vectors * scale).mT


def log_densities(z: Tensor, mu: Tensor, Sigma: Tensor, least: float) -> Tensor:
    """log N(z_i; mu_m, Sigma_m) (items, M) for z (items, D). No variance counts as less than `least`."""
    values, vectors = torch.linalg.eigh(Sigma.double())
    values = values.clamp_min(least)  # Sigma has come over the network
    along = torch.einsum("imd,mde->ime", z.double()[:, None] - mu.double(), vectors)
    return -0.5 * (along.square() / values + values.log() + math.log(2 * math.pi)).sum(-1)


def responsibilities(pi: Tensor, near: Tensor, losses: Tensor) -> Tensor:
    """gamma (items, M1, M2), from pi (M1, M2), log densities (items, M1) and losses (items, M2)."""
    logs = pi.double().log() + near[:, :, None] - losses[:, None, :]
    return logs.flatten(1).softmax(-1).view_as(logs)


def fitted_pi(near: Tensor, losses: Tensor, steps: int) -> Tensor:
    """pi (M1, M2) of items by so many steps of EM from a uniform one, with all else as it is."""
    M1, M2 = near.shape[1], losses.shape[1]
    pi = torch.full((M1, M2), 1 / (M1 * M2))
    for _ in range(steps):
        pi = responsibilities(pi, near, losses).mean(0)
    return pi


def estimated(z: Tensor, weights: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """mu and Sigma + ridge I of items z (items, D) that belong to each component with `weights` (items, M)."""
    p = weights / weights.sum(0).clamp_min(TINY)
    mu = p.mT @ z
    apart = z[:, None] - mu
    return mu, torch.einsum("im,ima,imb->mab", p, apart, apart) + ridge * torch.eye(z.shape[1], dtype=z.dtype)


def merged(mu: Tensor, Sigma: Tensor, weights: Tensor, scatter: bool) -> tuple[Tensor, Tensor]:
    """The mean of clients' mu (N, M, D) and Sigma (N, M, D, D), by `weights` (N, M).

    scatter: with that of the clients' mu, which makes Sigma the one of all their items together.
    """
    p = weights / weights.sum(0).clamp_min(TINY)
    mean = torch.einsum("nm,nmd->md", p, mu)
    of_all = torch.einsum("nm,nmab->mab", p, Sigma)
    if scatter:
        of_all = of_all + torch.einsum("nm,nma,nmb->mab", p, mu - mean, mu - mean)
    return mean, of_all
