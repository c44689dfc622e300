import pytest
import torch

from bi_ray.pretraining.muon import Muon, orthogonalize


@pytest.mark.parametrize("shape", [(32, 32), (32, 96), (96, 32), (5, 200)])
def test_singular_values_come_near_one_and_the_singular_vectors_stay(shape):
    torch.manual_seed(0)
    matrices = torch.randn(3, *shape)
    result = orthogonalize(matrices)
    assert result.shape == matrices.shape
    values = torch.linalg.svdvals(result)
    # the quintic iteration trades precision for speed: it settles in about 0.7 to 1.2
    assert values.min() > 0.4
    assert values.max() < 1.3
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    rotated = u.mT @ result @ vh.mT
    off = rotated - torch.diag_embed(rotated.diagonal(dim1=-2, dim2=-1))
    assert off.abs().max() < 1e-3


def test_orthogonalize_knows_no_scale_and_no_company():
    torch.manual_seed(0)
    matrices = torch.randn(2, 16, 24)
    together = orthogonalize(matrices)
    assert torch.allclose(together[1], orthogonalize(1e-3 * matrices[1:])[0], atol=1e-3)
    assert torch.allclose(orthogonalize(torch.zeros(1, 4, 4)), torch.zeros(1, 4, 4))


def test_a_step_is_the_momentum_of_the_equations():
    """Two steps against the formulas: average, Nesterov mix, orthogonalized, scaled by 0.2
    sqrt(longer side).
    """
    torch.manual_seed(0)
    start, gradients = torch.randn(8, 12), [torch.randn(8, 12) for _ in range(2)]
    parameter = torch.nn.Parameter(start.clone())
    optimizer = Muon([parameter], lr=0.1, momentum=0.9, weight_decay=0.5)
    expected, average = start.clone(), torch.zeros(8, 12)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
        average = 0.9 * average + 0.1 * gradient
        direction = orthogonalize((0.1 * gradient + 0.9 * average)[None])[0]
        expected = expected * (1 - 0.1 * 0.5) - 0.1 * 0.2 * 12**0.5 * direction
    assert torch.allclose(parameter, expected, atol=1e-5)


def test_the_size_of_an_update_is_about_a_fifth_of_the_rate_whatever_the_shape():
    torch.manual_seed(0)
    for shape in [(16, 16), (16, 64), (64, 16)]:
        parameter = torch.nn.Parameter(torch.zeros(shape))
        parameter.grad = torch.randn(shape)
        Muon([parameter], lr=1.0).step()
        assert 0.14 < parameter.detach().square().mean().sqrt() < 0.26


def test_parameters_without_gradient_stay():
    kept, moved = torch.nn.Parameter(torch.ones(4, 4)), torch.nn.Parameter(torch.ones(4, 4))
    moved.grad = torch.randn(4, 4)
    Muon([kept, moved], lr=0.1).step()
    assert torch.equal(kept, torch.ones(4, 4))
    assert not torch.equal(moved, torch.ones(4, 4))
