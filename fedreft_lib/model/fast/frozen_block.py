"""A decoder's block with frozen weights, in few passes over memory: three functions with their own backward passes.

    Norm            n = norm(x)
    Projections     q, k, v = turned(n Wq^T), turned(n Wk^T), n Wv^T
    FeedForward     y = m + (silu(g) * u) Wd^T                          g, u = n Wg^T, n Wu^T; n = norm(m)

Before FeedForward the batch's own attention computes o, what each token reads, and m = x + o Wo^T. No weight has a
gradient, so the backward passes need neither n nor the other inputs of products. Kept are x and m, the factor of each
norm, g and u; silu(g) is computed again, which costs a step nothing that can be measured.

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
def in_few_passes(blocks: Sequence[nn.Module], but_attention: bool = False) -> Iterator[None]:
    """In this context, the `blocks` that are `known` read packed batches as above, unless something hooks into them.

    but_attention: without Projections, so that something may hook into the modules of their attention.
    """
    changed = [block for block in blocks if known(block)]
    for block in changed:
        block.forward = partial(_forward, block, block.forward, but_attention)
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
    block: nn.Module, plain: Callable[..., Tensor], but_attention: bool, hidden_states: Tensor,
    packing: Attends | None = None, **more,
) -> Tensor:  # fmt: skip
    """Takes the place of the block's own forward pass, `plain`."""
    if packing is None:
        return plain(hidden_states, **more)
    parts = [part for part in block.children() if not (but_attention and part is block.self_attn)]
    if any(module._forward_hooks or module._forward_pre_hooks for part in parts for module in part.modules()):
        return plain(hidden_states, packing=packing, **more)
    x = hidden_states[0]  # (N, d)
    n = Norm.apply(x, block.input_layernorm)
    if but_attention:
        m = block.self_attn(hidden_states=n.unsqueeze(0), packing=packing, **more)[0][0] + x
    else:
        m = _attended(block.self_attn, n, packing, more["position_embeddings"]).add_(x)
    return FeedForward.apply(m, block).unsqueeze(0)


def _attended(attention: nn.Module, n: Tensor, packing: Attends, position_embeddings: tuple[Tensor, Tensor]) -> Tensor:
    """o Wo^T (N, d) of n (N, d)."""
    cos, sin = (each[0].unsqueeze(1) for each in position_embeddings)  # (N, 1, n)
    each = Projections.apply(n, cos, sin, attention)  # (N, h, n), (N, g, n), (N, g, n)
    q, k, v = (y.transpose(0, 1).unsqueeze(0) for y in each)
    o = packing.attend(attention, q, k, v, attention.scaling, {"dropout": 0.0})  # (1, N, h, n)
    return linear(o[0].flatten(1), attention.o_proj.weight, attention.o_proj.bias)


class Norm(torch.autograd.Function):
    """The root-mean-square norm (N, d) of x (N, d)."""

    @staticmethod
    def forward(ctx, x: Tensor, norm: nn.Module) -> Tensor:
        factor = _factor(x, norm)
        ctx.save_for_backward(x, factor)
        ctx.norm = norm
        return _normed(x, factor, norm)

    @staticmethod
    def backward(ctx, dn: Tensor) -> tuple:
        x, factor = ctx.saved_tensors
        return _norm_backward(dn.to(torch.float32, copy=True), x, factor, ctx.norm).to(x.dtype), None


class Projections(torch.autograd.Function):
    """Queries (N, h, n), keys and values (N, g, n) of n (N, d), at positions with cos and sin (N, 1, n)."""

    @staticmethod
    def forward(ctx, n: Tensor, cos: Tensor, sin: Tensor, attention: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
        a, b = sin.chunk(2, -1)
        sin = torch.cat((-a, b), -1)
        q, k, v = (
            linear(n, p.weight, p.bias).unflatten(1, (-1, attention.head_dim))
            for p in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        ctx.save_for_backward(cos, sin)
        ctx.attention = attention
        return _turned(q, cos, sin, into=q), _turned(k, cos, sin, into=k), v

    @staticmethod
    def backward(ctx, dq: Tensor, dk: Tensor, dv: Tensor) -> tuple:
        (cos, sin), attention = ctx.saved_tensors, ctx.attention
        sin = _halves_swapped(sin)
        dn = _turned(dq, cos, sin).flatten(1) @ attention.q_proj.weight
        dn += _turned(dk, cos, sin).flatten(1) @ attention.k_proj.weight
        dn += dv.flatten(1) @ attention.v_proj.weight
        return dn, None, None, None


class FeedForward(torch.autograd.Function):
    """The block's output (N, d), from its input with what attention adds, m (N, d)."""

    @staticmethod
    def forward(ctx, m: Tensor, block: nn.Module) -> Tensor:
        mlp, norm = block.mlp, block.post_attention_layernorm
        factor = _factor(m, norm)
        normed = _normed(m, factor, norm)
        g = linear(normed, mlp.gate_proj.weight, mlp.gate_proj.bias)
        u = linear(normed, mlp.up_proj.weight, mlp.up_proj.bias)
        ctx.save_for_backward(m, factor, g, u)  # silu(g) would be a fifth of what a block keeps: made again below
        ctx.block = block
        return linear(silu(g).mul_(u), mlp.down_proj.weight, mlp.down_proj.bias).add_(m)

    @staticmethod
    def backward(ctx, dy: Tensor) -> tuple:
        (m, factor, g, u), mlp = ctx.saved_tensors, ctx.block.mlp
        da = dy @ mlp.down_proj.weight  # (N, D)
        dg = da * u
        torch.ops.aten.silu_backward.grad_input(dg, g, grad_input=dg)
        dn = dg @ mlp.gate_proj.weight
        dn += da.mul_(silu(g)) @ mlp.up_proj.weight
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
