"""R stays orthonormal, by the rule of torch's own `orthogonal` parametrisation."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedreft_lib.core.rotation import Rotation, orthonormality_error, retract


def orthonormal(sites, r, d, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(sites, d, r, generator=generator, dtype=dtype))[0].mT.contiguous()


def torch_parametrised(R):
    """torch's own: a linear layer whose weight (d, r) is kept orthogonal, as pyreft has it."""
    layer = torch.nn.Module()
    layer.weight = torch.nn.Parameter(R.T.clone())
    return torch.nn.utils.parametrizations.orthogonal(layer, "weight", orthogonal_map="householder")


@given(st.integers(1, 6), st.integers(1, 20), st.integers(0, 10**6))
def test_every_coordinate_gives_an_orthonormal_R(r, extra, seed):
    R = orthonormal(2, r, r + extra, seed)
    A = torch.randn(2, r + extra, r, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    assert orthonormality_error(Rotation(R)(A)) < 1e-12


def test_the_start_is_R_to_the_bit_also_where_R_is_not_orthonormal():
    R = torch.randn(3, 4, 11)
    rotation = Rotation(R)
    assert torch.equal(rotation(rotation.start()), R)


@pytest.mark.parametrize(("r", "d"), [(1, 5), (3, 8), (7, 16)])
def test_values_and_gradients_equal_torchs_parametrisation(r, d):
    R = orthonormal(1, r, d)
    layer = torch_parametrised(R[0])
    parametrisation = layer.parametrizations.weight[0]
    A = 0.3 * torch.randn(d, r, dtype=torch.float64).tril(-1)
    with torch.no_grad():
        layer.parametrizations.weight.original += A
    ours = A.clone().unsqueeze(0).requires_grad_()
    moved = Rotation(R, complement=parametrisation.base[:, r:].unsqueeze(0))(ours)
    target = torch.randn(r, d, dtype=torch.float64)
    (moved[0] * target).sum().backward()
    (layer.weight.T * target).sum().backward()
    torch.testing.assert_close(moved[0], layer.weight.T)
    torch.testing.assert_close(ours.grad[0], layer.parametrizations.weight.original.grad.tril(-1))


def test_the_implied_complement_completes_R_to_a_basis():
    R = orthonormal(2, 3, 9)
    rotation = Rotation(R)
    columns = [rotation._complete(e.expand(2, -1, 1))[..., 0] for e in torch.eye(6, dtype=torch.float64)[..., None]]
    basis = torch.cat([R.mT, torch.stack(columns, -1)], -1)
    torch.testing.assert_close(basis.mT @ basis, torch.eye(9, dtype=torch.float64).expand(2, -1, -1))


def test_axis_aligned_R_needs_no_reflection_and_still_works():
    R = torch.eye(8)[:3].unsqueeze(0)
    A = torch.randn(1, 8, 3)
    assert orthonormality_error(Rotation(R)(A)) < 1e-5


@pytest.mark.parametrize("how", ["polar", "qr"])
def test_retraction_gives_orthonormal_rows_and_leaves_orthonormal_ones_alone(how):
    R = orthonormal(4, 5, 12)
    off = R + 0.3 * torch.randn_like(R)
    assert orthonormality_error(off) > 0.1
    assert orthonormality_error(retract(off, how)) < 1e-12
    torch.testing.assert_close(retract(R, how), R)


def test_qr_is_gram_schmidts():
    off = orthonormal(1, 4, 9) + 0.3 * torch.randn(1, 4, 9, dtype=torch.float64)
    off[0, ::2] *= -1  # LAPACK's own signs would give these rows backwards
    rows: list[torch.Tensor] = []
    for row in off[0]:
        row = row - sum((row @ other) * other for other in rows)
        rows.append(row / row.norm())
    torch.testing.assert_close(retract(off, "qr")[0], torch.stack(rows))


def test_polar_is_the_nearest_orthonormal_matrix():
    off = orthonormal(1, 3, 7) + 0.4 * torch.randn(1, 3, 7, dtype=torch.float64)
    nearest = torch.linalg.norm(retract(off, "polar") - off)
    for seed in range(200):
        other = retract(retract(off, "polar") + 0.05 * torch.randn_like(off), "qr")
        assert torch.linalg.norm(other - off) >= nearest - 1e-12, seed


def test_raw_is_what_it_says():
    R = torch.randn(2, 3, 5)
    assert retract(R, "raw") is R
