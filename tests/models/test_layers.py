"""Layers against their formulas."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from atlas.models import layers
from atlas.models.layers import (
    DenseBlock,
    NormFiLM,
    Upsample,
    pool,
    receptive_field,
    reverse_gradient,
    transition,
)
from atlas_kernels import group_norm_film


def test_norm_film_is_its_formula() -> None:
    torch.manual_seed(0)
    layer = NormFiLM(24, 5).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    x, e = torch.randn(3, 24, 4, 3, 5).double(), torch.randn(3, 5).double()
    gamma, beta = (t[:, :, None, None, None] for t in layer.film(e).chunk(2, dim=1))
    normed = F.group_norm(x, 3, layer.weight, layer.bias)
    torch.testing.assert_close(layer(x, e), F.silu(normed * (1 + gamma) + beta))


def test_norm_film_starts_without_modulation() -> None:
    layer, x = NormFiLM(8, 5), torch.randn(2, 8, 3, 3, 3)
    torch.testing.assert_close(layer(x, torch.randn(2, 5)), F.silu(F.group_norm(x, 1)))


def test_norm_film_gradients() -> None:
    torch.manual_seed(0)
    layer = NormFiLM(8, 3).double()
    torch.nn.init.normal_(layer.film.weight)
    x = torch.randn(2, 8, 2, 3, 2, dtype=torch.double, requires_grad=True)
    e = torch.randn(2, 3, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x, e))


def test_a_dense_block_appends() -> None:
    block = DenseBlock(16, 8, [1, 2, 4], 5)
    x = torch.randn(2, 16, 9, 10, 9)
    out = block(x, torch.zeros(2, 5))
    assert out.shape == (2, block.out_channels, 9, 10, 9) and block.out_channels == 40
    assert torch.equal(out[:, :16], x)
    assert all(conv.bias is None for conv in block.convs)


@pytest.mark.parametrize("size", [(46, 55, 46), (23, 28, 23), (3, 4, 5)])
def test_upsampling_crops_to_size(size: tuple[int, int, int]) -> None:
    half = [-(-n // 2) for n in size]
    assert Upsample(8, 8, size)(torch.randn(1, 8, *half)).shape == (1, 8, *size)


@pytest.mark.parametrize("channels", [1, 2, 8])
def test_upsampling_is_a_transposed_convolution(channels: int) -> None:
    up, x = Upsample(8, channels, (5, 8, 5)), torch.randn(2, 8, 3, 4, 3)
    torch.testing.assert_close(up(x), up.conv(x)[..., :5, :8, :5], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [(23, 28, 23), (5, 4, 2), (3, 2, 2)])
def test_pooling_in_two_steps(size: tuple[int, int, int]) -> None:
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    two, one = pool(x, "auto"), pool(x, "reference")
    torch.testing.assert_close(two, one)
    dy = torch.randn_like(one)
    of_two, of_one = (torch.autograd.grad(y, x, dy)[0] for y in (two, one))
    torch.testing.assert_close(of_two, of_one)
    halved = pool(x.detach().bfloat16(), "auto")
    assert halved.dtype == torch.bfloat16
    assert halved.is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize("halve", [True, False])
def test_a_transition_forgets_what_its_norm_put_out(
    monkeypatch: pytest.MonkeyPatch, halve: bool
) -> None:
    torch.manual_seed(0)
    norm, conv = NormFiLM(16, 5), torch.nn.Conv3d(16, 8, 3 - 2 * halve, padding=1 - halve)
    torch.nn.init.normal_(norm.film.weight)
    x, e = torch.randn(2, 16, 6, 7, 5), torch.randn(2, 5)
    inputs = [x.contiguous(memory_format=torch.channels_last_3d).requires_grad_(), e]
    inputs += [*norm.parameters(), *conv.parameters()]
    e.requires_grad_()
    made: list[weakref.ref[Tensor]] = []

    def noted(*args: Any) -> Tensor:
        y = group_norm_film(*args)
        made.append(weakref.ref(y.untyped_storage()))
        return y

    monkeypatch.setattr(layers, "group_norm_film", noted)
    y = transition(norm, conv, *inputs[:2], halve=halve)
    assert [ref() for ref in made] == [None]
    dy = torch.randn_like(y)
    ours = torch.autograd.grad(y, inputs, dy)
    assert len(made) == 2 and all(ref() is None for ref in made)

    norm.kernels = "reference"
    plain = norm(*inputs[:2])
    plain = pool(conv(plain)) if halve else conv(plain)
    torch.testing.assert_close(y, plain)
    for a, b in zip(ours, torch.autograd.grad(plain, inputs, dy), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_transition_compiles_as_one_graph() -> None:
    torch.manual_seed(0)
    norm, conv = NormFiLM(8, 5), torch.nn.Conv3d(8, 8, 1)
    x, e = torch.randn(1, 8, 4, 3, 2), torch.randn(1, 5)
    compiled = torch.compile(transition, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(norm, conv, x, e), transition(norm, conv, x, e))


def test_the_gradient_comes_back_reversed() -> None:
    x = torch.randn(3, requires_grad=True)
    y = reverse_gradient(x, 0.7)
    assert torch.equal(y, x)
    y.sum().backward()
    torch.testing.assert_close(x.grad, torch.full((3,), -0.7))


def test_receptive_field_of_known_stacks() -> None:
    assert receptive_field([(3, 1, 1)] * 3) == 7
    assert receptive_field([(3, 2, 1), (3, 1, 2)]) == 3 + 8
