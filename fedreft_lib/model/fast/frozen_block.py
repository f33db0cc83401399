"""A decoder's block with frozen weights, in few passes over memory: two functions with their own backward passes.

    Projections     q, k, v = turned(n Wq^T), turned(n Wk^T), n Wv^T                n = norm(x)
    FeedForward     y = m + (silu(n Wg^T) * n Wu^T) Wd^T                            n = norm(m)

Between them the batch's own attention computes o, what each token reads, and m = x + o Wo^T. No weight has a gradient,
so the backward passes need neither n nor the other inputs of products. Kept are x and m, the factor of each norm, and
of the gate g and of u, above on both sides of the *, the values g, silu(g) and u. (To compute silu(g) again would spare
a tenth of that, and cost a step 2.5 per cent.)

The plain counterpart is the block's own forward pass. The two differ by rounding: a norm's output is rounded once here,
twice in transformers.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu
from transformers.activations import ACT2FN

from .packed_attention import Attends

# Families of transformers whose blocks compute the formulas above, with the same names of modules.
FAMILIES = ("Llama", "Mistral", "Qwen2")

SILU = (nn.SiLU, type(ACT2FN["silu"]))


@contextmanager
def in_few_passes(blocks: Sequence[nn.Module], feed_forward_only: bool = False) -> Iterator[None]:
    """In this context, the `blocks` that are `known` read packed batches as above, unless something hooks into them.

    feed_forward_only: only the second function, so that something may hook into their attention.
    """
    changed = [block for block in blocks if known(block)]
    for block in changed:
        block.forward = partial(_forward, block, block.forward, feed_forward_only)
    try:
        yield
    finally:
        for block in changed:
            del block.forward


def known(block: nn.Module) -> bool:
    """Whether a block computes the formulas above: of a known family as it is in transformers, frozen, on a CPU."""
    family = type(block).__name__.removesuffix("DecoderLayer")
    if family not in FAMILIES or block.training or any("forward" in vars(module) for module in block.modules()):
        return False
    own = f"transformers.models.{family.lower()}.modeling_{family.lower()}"
    parts = {"": "DecoderLayer", "self_attn": "Attention", "mlp": "MLP"}
    parts |= dict.fromkeys(("input_layernorm", "post_attention_layernorm"), "RMSNorm")
    classes = {name: type(block.get_submodule(name)) for name in parts}
    if any((classes[name].__module__, classes[name].__name__) != (own, family + end) for name, end in parts.items()):
        return False
    attention, mlp = block.self_attn, block.mlp
    linears = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
    linears += (mlp.gate_proj, mlp.up_proj, mlp.down_proj)
    return (
        type(mlp.act_fn) in SILU
        and all(type(module) is nn.Linear for module in linears)
        and not any(weight.requires_grad or weight.device.type != "cpu" for weight in block.parameters())
    )


def _forward(
    block: nn.Module, plain: Callable[..., Tensor], feed_forward_only: bool, hidden_states: Tensor,
    packing: Attends | None = None, **more,
) -> Tensor:  # fmt: skip
    """Takes the place of the block's own forward pass, `plain`."""
    if packing is None:
        return plain(hidden_states, **more)
    parts = (block.post_attention_layernorm, block.mlp) if feed_forward_only else block.children()
    if any(module._forward_hooks or module._forward_pre_hooks for part in parts for module in part.modules()):
        return plain(hidden_states, packing=packing, **more)
    if feed_forward_only:
        added, _ = block.self_attn(hidden_states=block.input_layernorm(hidden_states), packing=packing, **more)
        m = (hidden_states + added)[0]
    else:
        m = _first_half(block, hidden_states[0], packing, more["position_embeddings"])
    return FeedForward.apply(m, block).unsqueeze(0)


def _first_half(block: nn.Module, x: Tensor, packing: Attends, position_embeddings: tuple[Tensor, Tensor]) -> Tensor:
    """m (N, d) of x (N, d)."""
    attention, out = block.self_attn, block.self_attn.o_proj
    cos, sin = (each[0].unsqueeze(1) for each in position_embeddings)  # (N, 1, n)
    each = Projections.apply(x, cos, sin, block)  # (N, h, n), (N, g, n), (N, g, n)
    q, k, v = (y.transpose(0, 1).unsqueeze(0) for y in each)
    o = packing.attend(attention, q, k, v, attention.scaling, {"dropout": 0.0})  # (1, N, h, n)
    return linear(o[0].flatten(1), out.weight, out.bias).add_(x)


class Projections(torch.autograd.Function):
    """Queries (N, h, n), keys and values (N, g, n) of x (N, d), at positions with cos and sin (N, 1, n)."""

    @staticmethod
    def forward(ctx, x: Tensor, cos: Tensor, sin: Tensor, block: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
        attention, norm = block.self_attn, block.input_layernorm
        factor = _factor(x, norm)
        normed = _normed(x, factor, norm)
        a, b = sin.chunk(2, -1)
        sin = torch.cat((-a, b), -1)
        q, k, v = (
            linear(normed, p.weight, p.bias).unflatten(1, (-1, attention.head_dim))
            for p in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        ctx.save_for_backward(x, factor, cos, sin)
        ctx.block = block
        return _turned(q, cos, sin, into=q), _turned(k, cos, sin, into=k), v

    @staticmethod
    def backward(ctx, dq: Tensor, dk: Tensor, dv: Tensor) -> tuple:
        x, factor, cos, sin = ctx.saved_tensors
        attention, sin = ctx.block.self_attn, _halves_swapped(sin)
        dn = _turned(dq, cos, sin).flatten(1) @ attention.q_proj.weight
        dn += _turned(dk, cos, sin).flatten(1) @ attention.k_proj.weight
        dn += dv.flatten(1) @ attention.v_proj.weight
        return _norm_backward(dn, x, factor, ctx.block.input_layernorm).to(x.dtype), None, None, None


class FeedForward(torch.autograd.Function):
    """The block's output (N, d), from its input with what attention adds, m (N, d)."""

    @staticmethod
    def forward(ctx, m: Tensor, block: nn.Module) -> Tensor:
        mlp, norm = block.mlp, block.post_attention_layernorm
        factor = _factor(m, norm)
        normed = _normed(m, factor, norm)
        g = linear(normed, mlp.gate_proj.weight, mlp.gate_proj.bias)
        u = linear(normed, mlp.up_proj.weight, mlp.up_proj.bias)
        s = silu(g)
        ctx.save_for_backward(m, factor, g, s, u)
        ctx.block = block
        return linear(s * u, mlp.down_proj.weight, mlp.down_proj.bias).add_(m)

    @staticmethod
    def backward(ctx, dy: Tensor) -> tuple:
        (m, factor, g, s, u), mlp = ctx.saved_tensors, ctx.block.mlp
        da = dy @ mlp.down_proj.weight  # (N, D)
        dg = da * u
        torch.ops.aten.silu_backward.grad_input(dg, g, grad_input=dg)
        dn = dg @ mlp.gate_proj.weight
        dn += da.mul_(s) @ mlp.up_proj.weight
        return _norm_backward(dn, m, factor, ctx.block.post_attention_layernorm).add_(dy).to(m.dtype), None


def _factor(x: Tensor, norm: nn.Module) -> Tensor:
    """(mean of x^2 + eps)^-1/2 for each token, float32 (N, 1)."""
    norms = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    return norms.square_().div_(x.shape[-1]).add_(norm.variance_epsilon).rsqrt_()


def _normed(x: Tensor, factor: Tensor, norm: nn.Module) -> Tensor:
    return x.to(torch.float32, copy=True).mul_(factor).mul_(norm.weight).to(x.dtype)


def _norm_backward(dn: Tensor, x: Tensor, factor: Tensor, norm: nn.Module) -> Tensor:
    """The gradient of x, in float32, from that of `_normed`; may overwrite dn."""
    dn, x = dn.float().mul_(norm.weight), x.float()
    along = (dn * x).sum(-1, keepdim=True).mul_(factor.pow(3).div_(-x.shape[-1]))
    return dn.mul_(factor).addcmul_(x, along)


def _turned(y: Tensor, cos: Tensor, sin: Tensor, into: Tensor | None = None) -> Tensor:
    """Each y (N, h, n) turned by its position. sin: with the sign that it has in each half; swapped, it turns back."""
    swapped = _halves_swapped(y)
    return torch.mul(y, cos, out=into).addcmul_(swapped, sin)


def _halves_swapped(y: Tensor) -> Tensor:
    return y.roll(y.shape[-1] // 2, -1)
