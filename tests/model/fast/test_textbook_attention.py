"""The textbook form of attention: its formulas, its gradients, and how exact it is in bfloat16."""

from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedreft_lib.model.fast import packed_attention, textbook_attention
from fedreft_lib.model.fast.packed_attention import EXPLICIT, GIVEN, Packing
from fedreft_lib.model.fast.textbook_attention import Route, TextbookAttention
from fedreft_lib.model.tokens import added_to_scores

ULP = 2**-8  # of bfloat16, relative


def error(found, exact):
    """Relative, of the whole tensor."""
    return float((found.double() - exact.double()).norm() / exact.double().norm())


def some_mask(kind, B, T, dtype, generator):
    """What is added to scores; the kinds that batches have, see `Batch.attention`."""
    allowed = torch.ones(T, T, dtype=torch.bool).tril()[None, None]
    lengths = torch.randint(1, T + 1, (B,), generator=generator)
    there = torch.arange(T) < lengths[:, None]  # (B, T)
    if kind == "padding":
        allowed = there[:, None, None]
    if kind == "branches":
        branch = (torch.arange(T) * 4 // T - 1).expand(B, T)  # a prompt and three answers
        seen = (branch[:, None] == -1) | (branch[:, None] == branch[:, :, None])
        allowed = (allowed & (seen & there[:, None])[:, None]) | torch.eye(T, dtype=torch.bool)
    return added_to_scores(allowed, dtype)


def inputs(B, h, g, T, n, kind, dtype, seed=0):
    """Q, K, V, the gradient of what comes out, and the mask."""
    generator = torch.Generator().manual_seed(seed)
    QKV = [torch.randn(B, heads, T, n, generator=generator).to(dtype).requires_grad_() for heads in (h, g, g)]
    dO = torch.randn(B, h, T, n, generator=generator).to(dtype)
    return QKV, dO, some_mask(kind, B, T, dtype, generator)


def with_gradients(form, QKV, dO):
    out = form(*QKV)
    return [out.detach(), *torch.autograd.grad(out, QKV, dO)]


def exact(QKV, dO, mask, scale):
    """The formula in double precision, with torch's derivatives of it."""

    def form(Q, K, V):
        K, V = (x.repeat_interleave(Q.shape[1] // K.shape[1], dim=1) for x in (K, V))
        return (scale * Q @ K.mT + mask.double()).softmax(-1) @ V

    return with_gradients(form, [x.detach().double().requires_grad_() for x in QKV], dO.double())


def fused(QKV, dO, mask, scale):
    def form(Q, K, V):
        return nn.functional.scaled_dot_product_attention(Q, K, V, mask, scale=scale, enable_gqa=True)

    return with_gradients(form, QKV, dO)


def textbook(QKV, dO, mask, scale):
    """mask None: the lower triangle, in parts."""
    (B, h, T, _), g = QKV[0].shape, QKV[1].shape[1]
    route = Route.of(torch.arange(B * T), (B, T), mask, h, g)

    def form(*QKV):
        rows = (x.transpose(1, 2).flatten(0, 1) for x in QKV)  # (B T, heads, n)
        return TextbookAttention.apply(*rows, route, scale).view(B, T, h, -1).transpose(1, 2)

    return with_gradients(form, QKV, dO)


MASKS = ["causal", "branches", "padding"]
HEADS = [(4, 4), (9, 3), (4, 1), (1, 1)]


# Not torch's gradcheck: it wants everything in double precision, and the scores are float32 here.
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    B=st.integers(1, 3), heads=st.sampled_from(HEADS), T=st.integers(1, 40), n=st.sampled_from([4, 16]),
    kind=st.sampled_from(MASKS), seed=st.integers(0, 99), scale=st.sampled_from([None, 0.1, 0.0]),
)  # fmt: skip
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-6), (torch.bfloat16, 4 * ULP)], ids=str)
def test_the_textbook_attention_and_its_gradients_are_the_formulas(dtype, bound, B, heads, T, n, kind, seed, scale):
    scale = n**-0.5 if scale is None else scale
    QKV, dO, mask = inputs(B, *heads, T, n, kind, dtype, seed)
    for found, wanted in zip(textbook(QKV, dO, mask, scale), exact(QKV, dO, mask, scale), strict=True):
        assert found.dtype == dtype and found.shape == wanted.shape
        if float(wanted.norm()) > 0.1 * wanted.numel() ** 0.5 * scale:  # few tokens: it may be a small difference
            assert error(found, wanted) < bound
        else:
            assert float((found.double() - wanted).norm()) <= bound * wanted.numel() ** 0.5 * scale


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=5), heads=st.sampled_from(HEADS),
    causal=st.booleans(), part=st.sampled_from([4, 64]), seed=st.integers(0, 99),
)  # fmt: skip
def test_texts_of_several_lengths_read_and_learn_as_each_alone(lengths, heads, causal, part, seed):
    """causal: in parts; else every token of a text sees all of them, by a mask."""
    (h, g), B, T, generator = heads, len(lengths), max(lengths), torch.Generator().manual_seed(seed)
    there = torch.arange(T) < torch.tensor(lengths)[:, None]
    q, k, v, dO = (torch.randn(sum(lengths), heads, 8, generator=generator) for heads in (h, g, g, h))
    mask = None if causal else added_to_scores(there[:, None, None], torch.float32)
    with mock.patch.object(textbook_attention, "PART", part):
        route = Route.of(there.flatten().nonzero()[:, 0], (B, T), mask, h, g)
    rows = [x.requires_grad_() for x in (q, k, v)]
    found = with_gradients(lambda *each: TextbookAttention.apply(*each, route, 0.3), rows, dO)
    each = zip(*(x.detach().split(lengths) for x in (q, k, v, dO)), strict=True)
    alone = []
    for *own, d in each:
        allowed = torch.ones(len(d), len(d), dtype=torch.bool)
        QKV, dQ = [x.transpose(0, 1)[None] for x in own], d.transpose(0, 1)[None]
        shown = added_to_scores(allowed.tril() if causal else allowed, torch.float32)
        alone.append([x[0].transpose(0, 1) for x in exact(QKV, dQ, shown, 0.3)])
    for ours, theirs in zip(found, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(ours.double(), torch.cat(theirs), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("part", [1, 7, 64])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-6), (torch.bfloat16, 4 * ULP)], ids=str)
@pytest.mark.parametrize("T", [1, 13, 70])
def test_the_lower_triangle_in_parts_is_the_whole_one(T, dtype, bound, part, monkeypatch):
    monkeypatch.setattr(textbook_attention, "PART", part)
    QKV, dO, mask = inputs(2, 6, 2, T, 8, "causal", dtype)
    for found, wanted in zip(textbook(QKV, dO, None, 0.3), exact(QKV, dO, mask, 0.3), strict=True):
        assert float((found.double() - wanted).norm()) <= bound * float(dO.double().norm())


@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("T", [8, 40, EXPLICIT])
def test_in_bfloat16_it_is_about_as_exact_as_torchs_fused_attention(heads, kind, T):
    QKV, dO, mask = inputs(2, *heads, T, 32, kind, torch.bfloat16)
    wanted, scale = exact(QKV, dO, mask, 32**-0.5), 32**-0.5
    ours, theirs = textbook(QKV, dO, mask, scale), fused(QKV, dO, mask, scale)
    for found, other, value in zip(ours, theirs, wanted, strict=True):
        assert error(found, value) < 2.2 * error(other, value)  # it rounds scores, which are of order 1


def test_one_token_attends_to_itself():
    QKV, dO, mask = inputs(2, 6, 2, 1, 8, "causal", torch.bfloat16)
    out, dQ, dK, dV = textbook(QKV, dO, mask, 0.3)
    assert torch.equal(out, QKV[2].repeat_interleave(3, dim=1))
    assert error(dV, dO.double().view(2, 2, 3, 1, 8).sum(2)) < ULP
    assert not dQ.any() and not dK.any()


@pytest.mark.parametrize("kind", MASKS)
def test_scores_beyond_the_range_of_exp_stay_finite(kind):
    QKV, dO, mask = inputs(2, 4, 2, 12, 8, kind, torch.bfloat16)
    QKV = [(100 * x.detach()).requires_grad_() for x in QKV]
    assert all(bool(found.isfinite().all()) for found in textbook(QKV, dO, mask, 1.0))


@pytest.mark.parametrize("form", [textbook, fused])
def test_what_is_not_a_number_stays_in_its_row_of_the_grid(form):
    QKV, dO, mask = inputs(3, 4, 2, 9, 8, "branches", torch.bfloat16)
    before = form(QKV, dO, mask, 0.3)
    with torch.no_grad():
        for x in QKV:
            x[1] = torch.nan
    for found, clean in zip(form(QKV, dO, mask, 0.3), before, strict=True):
        assert bool(found[1].isnan().all()) and torch.equal(found[[0, 2]], clean[[0, 2]])


@pytest.mark.skipif(not GIVEN, reason="this transformers takes no attention from outside")
@pytest.mark.parametrize(
    ("dtype", "scaling"),
    [(torch.bfloat16, None), (torch.bfloat16, 0.2), (torch.bfloat16, 0.0), (torch.float32, None), (torch.float32, 0.2)],
    ids=str,
)
@torch.no_grad()
def test_the_scale_is_the_one_that_is_given(dtype, scaling):
    QKV, _, mask = inputs(1, 4, 2, 6, 16, "causal", dtype)
    module = nn.Module()
    module.num_key_value_groups = 2
    grid = Packing.of(torch.tensor([0]), [6], mask, causal=True)
    found, _ = packed_attention.attention(module, *QKV, mask, scaling=scaling, packing=grid)
    K, V = (x.double().repeat_interleave(2, dim=1) for x in QKV[1:])
    wanted = ((0.25 if scaling is None else scaling) * QKV[0].double() @ K.mT + mask.double()).softmax(-1) @ V
    assert error(found, wanted.transpose(1, 2)) < (1e-6 if dtype == torch.float32 else 2 * ULP)
