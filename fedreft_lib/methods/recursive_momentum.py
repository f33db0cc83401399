"""Momentum whose memory is corrected at every step (STORM, Cutkosky and Orabona 2019), for any optimiser.

    v_s = g(w_s; B_s) + m (v_(s-1) - g(w_(s-1); B_s)),    v_0 = mean_s g(w_1; B_s),    w_0 = w_1

g(w; B): the gradient of the loss on batch B at state w. Both gradients of a step are on its own batch: with that of the
batch before, the sum telescopes to plain gradients. m = 0 is `core.training.optimise`, at three times its cost.
"""

import functools

import torch
from torch import Tensor

from ..core.state import State
from ..core.training import optimise


def with_momentum(m: float, state: State, loss_at, recipe, *, steps: int, trains, **how) -> tuple[State, list[Tensor]]:
    """`core.training.optimise`, whose gradient at step s is v_s."""
    moving = tuple(state) if trains is None else tuple(name for name in state if name in trains)
    last: dict[str, State] = {}  # v_(s-1), and the state at step s - 1

    def gradient(step: int, phi: State) -> State:
        at = {name: tensor.detach().requires_grad_(name in moving) for name, tensor in phi.items()}
        loss, of = loss_at(step, at), [at[name] for name in moving]
        return dict(zip(moving, torch.autograd.grad(loss, of, allow_unused=True, materialize_grads=True), strict=True))

    def loss_with_v(step: int, phi: State) -> Tensor:
        here = {name: tensor.detach().clone() for name, tensor in phi.items()}  # the optimiser steps in place
        if not last:
            each = [gradient(s, here) for s in range(steps)]
            last.update(v={name: sum(g[name] for g in each) / steps for name in moving}, w=here)
        stale, v = gradient(step, last["w"]), {}
        last["w"] = here

        def correct(name: str, g: Tensor) -> Tensor:
            last["v"][name] = g + m * (last["v"][name] - stale[name])
            return last["v"][name]

        for name in moving:
            v[name] = phi[name].view_as(phi[name])
            v[name].register_hook(functools.partial(correct, name))
        return loss_at(step, {**phi, **v})

    return optimise(state, loss_with_v, recipe, steps=steps, trains=trains, **how)
