"""The model without convolutions: where it starts, what it hears, how smooth its maps are."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from atlas import config, space
from atlas.contracts import Batch
from atlas.data.batches import Request, StudyBatches
from atlas.data.dataset import Dataset
from atlas.errors import AtlasError
from atlas.models import build
from atlas.models.direct_vae import DirectVAE
from atlas.models.layers import blur

SMALL = ["model.name=direct_vae", "model.direct=16", "model.rank=4"]
CONFIG = config.load("smoke", SMALL)


@pytest.fixture(scope="module")
def batch(bundled: Dataset) -> Batch:
    return StudyBatches(bundled, CONFIG.data, np.zeros(0))[Request(0, (0, 1, 2))]


@pytest.fixture
def model(bundled: Dataset) -> DirectVAE:
    torch.manual_seed(0)
    return build(CONFIG.model, bundled.fields.width, 4)


def test_shapes_and_normalisation(model: DirectVAE, batch: Batch) -> None:
    output, cells = model(batch, batch.observed_BM), space.load(4).n_cells
    assert output.mean_BD.shape == output.log_variance_BD.shape == (3, 8)
    assert output.decoded.log_density_BV.shape == output.decoded.log_variance_BV.shape == (3, cells)
    torch.testing.assert_close(output.decoded.log_density_BV.exp().sum(1), torch.ones(3))


def test_it_learns_in_every_parameter(model: DirectVAE, batch: Batch) -> None:
    for half in (model.encoder, model.decoder):
        torch.nn.init.normal_(half.direct.hidden.outer.weight, std=0.1)
    torch.nn.init.normal_(model.imputer.net[2].weight, std=0.1)
    output = model.eval()(batch, batch.observed_BM, 1.0)
    decoded = output.decoded
    loss = decoded.log_density_BV.square().mean() + (decoded.log_variance_BV - 1).square().mean()
    loss = loss + output.imputed_mean_BM.square().mean() + output.year_logits_BY.square().mean()
    (loss + output.log_variance_BD.square().mean()).backward()
    still = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not still


def test_the_variance_does_not_bend_the_density(model: DirectVAE, batch: Batch) -> None:
    model.eval()(batch, batch.observed_BM).decoded.log_variance_BV.sum().backward()
    bent = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert bent == {"decoder.level_V", "decoder.slope"}


def test_it_needs_a_width() -> None:
    with pytest.raises(AtlasError, match="model.direct"):
        build(config.load("smoke", SMALL[:1]).model, 70, 4)


def test_smoothing_spreads_a_point_and_keeps_its_mass() -> None:
    point = torch.zeros(1, 1, 23, 25, 27)
    point[0, 0, 11, 12, 13] = 1
    smooth = blur(point, 4.0)
    assert float(smooth.sum()) == pytest.approx(1, abs=1e-4)
    top = float(smooth.max())
    for neighbour in (smooth[0, 0, 13, 12, 13], smooth[0, 0, 11, 14, 13], smooth[0, 0, 11, 12, 15]):
        assert float(neighbour) == pytest.approx(top / 2, rel=1e-4)  # half the width away


def test_smoothed_maps_are_smooth(bundled: Dataset) -> None:
    rough, smooth = [], []
    for fwhm, out in ((0, rough), (4, smooth)):
        torch.manual_seed(0)
        wide = config.load("smoke", [*SMALL, f"model.smooth={fwhm}"]).model
        decoder = build(wide, bundled.fields.width, 4).eval().decoder.direct
        maps = decoder(torch.ones(1, 8), torch.zeros(1, bundled.fields.width))[0, 0].detach()
        out += [float(maps.diff(dim=0).std()), float(maps.std())]
    assert smooth[0] / smooth[1] < 0.5 * rough[0] / rough[1]
