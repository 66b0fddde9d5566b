"""The conditional beta-VAE: shapes, masks, where it starts, how far it sees."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from atlas import config, space
from atlas.contracts import Batch
from atlas.data.batches import Request, StudyBatches
from atlas.data.dataset import Dataset
from atlas.models import build
from atlas.models.cvae import CVAE
from atlas.models.layers import double

SMOKE = config.load("smoke")


@pytest.fixture
def model() -> CVAE:
    torch.manual_seed(0)
    return build(SMOKE.model, 70, 4)


@pytest.fixture(scope="module")
def batch(bundled: Dataset) -> Batch:
    return StudyBatches(bundled, SMOKE.data, np.zeros(0))[Request(0, (0, 1, 2))]


def real(bundled: Dataset) -> CVAE:
    torch.manual_seed(0)
    return build(SMOKE.model, bundled.fields.width, 4)


def test_shapes_and_normalisation(bundled: Dataset, batch: Batch) -> None:
    output = real(bundled)(batch, batch.observed_BM)
    V = space.load(4).n_cells
    assert output.mean_BD.shape == output.log_variance_BD.shape == (3, 8)
    assert output.decoded.log_density_BV.shape == output.decoded.log_variance_BV.shape == (3, V)
    torch.testing.assert_close(output.decoded.log_density_BV.exp().sum(1), torch.ones(3))
    assert output.imputed_mean_BM.shape == batch.metadata_BM.shape
    assert output.year_logits_BY.shape == (3, 10)


def test_the_decoder_starts_at_the_base_map(model: CVAE) -> None:
    base = torch.randn(space.load(4).n_cells)
    model.decoder.base_V.copy_(base)
    decoded = model.decode(torch.randn(2, 8), torch.randn(2, 70))
    expected = torch.log_softmax(base, 0).expand(2, -1)
    torch.testing.assert_close(decoded.log_density_BV, expected)


def test_every_parameter_learns(bundled: Dataset, batch: Batch) -> None:
    model = real(bundled)
    torch.nn.init.normal_(model.decoder.ups[-1].conv.weight, std=0.1)
    torch.nn.init.normal_(model.imputer.net[2].weight, std=0.1)
    for module in model.modules():
        if hasattr(module, "film"):
            torch.nn.init.normal_(module.film.weight, std=0.1)
    output = model(batch, batch.observed_BM, 1.0)
    decoded = output.decoded
    loss = decoded.log_density_BV.square().mean() + decoded.log_variance_BV.square().mean()
    loss = loss + output.imputed_mean_BM.square().mean() + output.year_logits_BY.square().mean()
    (loss + output.log_variance_BD.square().mean()).backward()
    still = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not still


def test_metadata_reach_encoder_and_decoder(bundled: Dataset, batch: Batch) -> None:
    model = real(bundled).eval()
    torch.nn.init.normal_(model.decoder.ups[-1].conv.weight, std=0.1)
    for module in model.modules():
        if hasattr(module, "film"):
            torch.nn.init.normal_(module.film.weight, std=0.3)
    seen, none = batch.observed_BM, torch.zeros_like(batch.observed_BM)
    args = batch.volume_B1XYZ, batch.metadata_BM
    assert not torch.equal(model.encode(*args, seen)[0], model.encode(*args, none)[0])
    z, m = torch.zeros(3, 8), batch.metadata_BM
    assert not torch.equal(model.decode(z, m)[0], model.decode(z, 0 * m)[0])


def test_a_field_never_observed_never_reaches_a_layer(model: CVAE) -> None:
    torch.nn.init.normal_(model.decoder.ups[-1].conv.weight, std=0.1)
    for module in model.modules():
        if hasattr(module, "film"):
            torch.nn.init.normal_(module.film.weight, std=0.3)
    model.available_M[10:20] = 0
    z, m = torch.zeros(1, 8), torch.randn(1, 70)
    moved = m.clone()
    moved[:, 10:20] += 5
    assert torch.equal(model.decode(z, m)[0], model.decode(z, moved)[0])
    moved[:, 20] += 5
    assert not torch.equal(model.decode(z, m)[0], model.decode(z, moved)[0])


def test_evaluation_is_deterministic_and_training_is_not(bundled: Dataset, batch: Batch) -> None:
    model = real(bundled)
    torch.nn.init.normal_(model.decoder.ups[-1].conv.weight, std=0.1)
    run = lambda: model(batch, batch.observed_BM).decoded.log_density_BV  # noqa: E731
    assert not torch.equal(run(), run())
    model.eval()
    assert torch.equal(run(), run())


FOOTPRINTS = [
    ((1,), (1, 2), False),
    ((1,), (1, 2), True),
    ((2, 2), (1, 2, 4), False),
    ((2, 1, 1), (1,), False),
    ((1, 2), (3, 1), False),
]


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize(("blocks", "dilations", "halve"), FOOTPRINTS)
def test_the_receptive_field_is_the_gradient_footprint(
    blocks: tuple[int, ...], dilations: tuple[int, ...], halve: bool, axis: int
) -> None:
    """What the function computes is what a cell really depends on, measured by its gradient."""
    torch.manual_seed(0)
    small = {"width": 8, "growth": 8, "blocks": blocks, "dilations": dilations, "halve": halve}
    encoder = build(SMOKE.model.model_copy(update=small), 70, 4).encoder.double()
    field, shape = encoder.receptive_field(), [32, 32, 32]
    # Without the norms, whose statistics see everything; long along the axis that is measured.
    shape[axis] = 2 * field + 32
    x = torch.randn(1, 1, *shape, dtype=torch.double, requires_grad=True)
    out = encoder.stem(F.avg_pool3d(x, 2) if halve else x)
    for block, mix in zip(encoder.blocks, encoder.mixes):
        for conv in block.convs:
            out = torch.cat([out, conv(F.silu(out))], 1)
        out = F.avg_pool3d(mix(F.silu(out)), 2, ceil_mode=True)
    middle = [0, 0, 0]
    middle[axis] = out.shape[2 + axis] // 2
    out[(0, slice(None), *middle)].sum().backward()
    touched = x.grad.abs().sum([d for d in range(5) if d != 2 + axis]).nonzero().ravel()
    assert int(touched[-1] - touched[0]) + 1 == field < shape[axis]


@pytest.mark.parametrize(
    ("dilations", "cells"), [((1,), 57), ((2,), 73), ((1, 2), 89), ((1, 2, 4), 153)]
)
def test_dilations_that_see_more_than_150_mm(dilations: tuple[int, ...], cells: int) -> None:
    """With two blocks of two layers: any at 4 mm, (1, 2) and up at 2 mm, as docs/model.md says."""
    update = {"blocks": (2, 2), "dilations": dilations, "halve": False}
    seen = build(SMOKE.model.model_copy(update=update), 70, 4).encoder.receptive_field()
    assert seen == cells and 4 * seen > 150
    assert (2 * seen > 150) == (sum(dilations) >= 3)


@pytest.mark.parametrize("name", [name for name in config.shipped() if name != "smoke"])
def test_shipped_models_see_more_than_150_mm(name: str) -> None:
    shipped = config.load(name)
    resolution = shipped.data.resolution
    model = build(shipped.model, 70, resolution)
    assert model.encoder.receptive_field() * resolution > 150


# ---------------------------------------------------------------- the path around the convolutions

DIRECT = config.load(
    "smoke",
    ["model.direct=16", "model.rank=4", "model.dropout=0.5", "model.halve=true"],
)


@pytest.fixture
def direct(bundled: Dataset) -> CVAE:
    torch.manual_seed(0)
    return build(DIRECT.model, bundled.fields.width, 4)


def test_the_direct_path_has_the_same_shapes(direct: CVAE, batch: Batch) -> None:
    output = direct(batch, batch.observed_BM)
    V = space.load(4).n_cells
    assert output.mean_BD.shape == (3, 8)
    assert output.decoded.log_density_BV.shape == output.decoded.log_variance_BV.shape == (3, V)
    torch.testing.assert_close(output.decoded.log_density_BV.exp().sum(1), torch.ones(3))


def test_the_direct_path_learns_in_every_parameter(direct: CVAE, batch: Batch) -> None:
    for module in direct.modules():
        for name in ("film", "outer"):
            if hasattr(module, name):
                torch.nn.init.normal_(getattr(module, name).weight, std=0.1)
    torch.nn.init.normal_(direct.decoder.ups[-1].conv.weight, std=0.1)
    torch.nn.init.normal_(direct.imputer.net[2].weight, std=0.1)
    output = direct.eval()(batch, batch.observed_BM, 1.0)
    decoded = output.decoded
    loss = decoded.log_density_BV.square().mean() + decoded.log_variance_BV.square().mean()
    loss = loss + output.imputed_mean_BM.square().mean() + output.year_logits_BY.square().mean()
    (loss + output.log_variance_BD.square().mean()).backward()
    still = [n for n, p in direct.named_parameters() if p.grad is None or not p.grad.any()]
    assert not still


def test_the_direct_path_takes_a_study_without_peaks(direct: CVAE, batch: Batch) -> None:
    mean_BD, log_variance_BD = direct.eval().encode(
        0 * batch.volume_B1XYZ, batch.metadata_BM, batch.observed_BM
    )
    assert mean_BD.isfinite().all() and log_variance_BD.isfinite().all()


def test_the_direct_path_hears_only_what_is_observed(direct: CVAE, batch: Batch) -> None:
    direct.eval()
    hidden = torch.where(batch.observed_BM > 0, batch.metadata_BM, 1.0)
    first = direct.encode(batch.volume_B1XYZ, batch.metadata_BM, batch.observed_BM)
    second = direct.encode(batch.volume_B1XYZ, hidden, batch.observed_BM)
    assert torch.equal(first[0], second[0])
    z = torch.zeros(3, 8)
    changed = direct.decode(z, batch.metadata_BM), direct.decode(z, batch.metadata_BM + 1)
    assert not torch.equal(changed[0].log_density_BV, changed[1].log_density_BV)


def test_doubling_is_trilinear_interpolation() -> None:
    x = torch.randn(2, 3, 5, 6, 4)
    expected = F.interpolate(x, scale_factor=2, mode="trilinear")[..., :9, :12, :7]
    found = double(x, (9, 12, 7))
    assert found.shape == expected.shape
    inner = (..., slice(1, 9), slice(1, 11), slice(1, 7))
    torch.testing.assert_close(found[inner], expected[inner])
    torch.testing.assert_close(found[:, :, 0, 1, 1], 0.75 * expected[:, :, 0, 1, 1])  # 0 beyond
