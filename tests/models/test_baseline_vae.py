"""The baseline VAE: size, contract, where it starts, how far it sees, a run from end to end."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from atlas import config, model_file, objectives, space
from atlas.contracts import Batch, Study
from atlas.data import dataset as folder
from atlas.data.batches import Request, StudyBatches
from atlas.data.dataset import Dataset
from atlas.data.sources import Provenance
from atlas.errors import AtlasError
from atlas.evaluation.evaluate import Split, evaluate, predictive, unseen_density, unseen_law
from atlas.inference import Atlas
from atlas.models import baseline_vae, build
from atlas.models.baseline_vae import BaselineVAE
from atlas.training.run import train
from tests.support import one_line_error, run_atlas

INTENDED = 8_066_409
SHIPPED = config.load("baseline_vae")
SMALL = ["model.latent=8", "model.width=16", "train.epochs=1"]
TINY = config.load("baseline_vae", SMALL)
soak = pytest.mark.skipif(os.environ.get("ATLAS_SOAK") != "1", reason="20 steps at 2 mm: make soak")


def small(**changes: object) -> BaselineVAE:
    torch.manual_seed(0)
    return build(TINY.model.model_copy(update=changes), 70, 4)


@pytest.fixture(scope="module")
def batch(bundled: Dataset) -> Batch:
    return StudyBatches(bundled, TINY.data, np.zeros(0))[Request(0, (0, 1, 2))]


@pytest.fixture(scope="module")
def few(bundled: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Write a dataset of 32 studies."""
    sizes = {"train": 16, "val": 8, "test": 8}
    splits = {name: bundled.splits[name][:size] for name, size in sizes.items()}
    kept = {study for ids in splits.values() for study in ids}
    studies = [
        Study(study, "", peaks, ("MNI",) * len(peaks), dict(bundled.metadata[row]))
        for row, study in enumerate(bundled.ids)
        if study in kept and len(peaks := bundled.peaks(row).astype(float))
    ]
    path = tmp_path_factory.mktemp("few") / "data"
    return folder.write(path, studies, splits, Provenance("few", "1", "none", {}), funnel={})


@pytest.fixture(scope="module")
def run(few: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(TINY, few, tmp_path_factory.mktemp("runs") / "baseline")


def test_the_number_of_parameters_at_2_mm() -> None:
    model = build(SHIPPED.model, 70, 2)
    found = sum(p.numel() for p in model.parameters())
    assert abs(found / INTENDED - 1) < 0.01
    assert f"{found:,}" in (baseline_vae.__doc__ or "")


def test_no_metadata_change_anything(batch: Batch) -> None:
    model = small().eval()
    torch.nn.init.normal_(model.decoder.last.weight, std=0.1)
    one = model(batch, batch.observed_BM)
    other = model(
        batch._replace(metadata_BM=batch.metadata_BM + 1), torch.zeros_like(batch.observed_BM)
    )
    assert torch.equal(one.mean_BD, other.mean_BD)
    assert torch.equal(one.decoded.log_density_BV, other.decoded.log_density_BV)
    assert not one.imputed_mean_BM.any() and not one.imputed_log_variance_BM.any()
    assert one.year_logits_BY is None and model.year is None


def test_it_starts_at_the_base_map_and_learns_everywhere(batch: Batch) -> None:
    model, base = small(), torch.randn(space.load(4).n_cells)
    model.decoder.base_V.copy_(base)
    density = model(batch, batch.observed_BM).decoded.log_density_BV
    torch.testing.assert_close(density, torch.log_softmax(base, 0).expand(3, -1))
    torch.nn.init.normal_(model.decoder.last.weight, std=0.1)
    mask = torch.from_numpy(space.load(4).mask.copy())
    output = model(batch, batch.observed_BM)
    loss = objectives.losses(output, batch, TINY.objective, mask, beta=0.1, year_weight=1.0)
    assert loss.year == 0
    loss.total.backward()
    still = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not still


def test_fused_and_plain_layers_agree(batch: Batch) -> None:
    fused, plain = small().eval(), small(kernels="reference").eval()
    torch.nn.init.normal_(fused.decoder.last.weight, std=0.1)
    plain.load_state_dict(fused.state_dict())
    one, other = (m(batch, batch.observed_BM) for m in (fused, plain))
    torch.testing.assert_close(one.mean_BD, other.mean_BD, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        one.decoded.log_density_BV, other.decoded.log_density_BV, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_receptive_field_is_the_gradient_footprint(axis: int) -> None:
    """Measured along each axis, without the norms, whose statistics see everything."""
    encoder = small(width=8).encoder.double()
    field, shape = encoder.receptive_field(), [32, 32, 32]
    shape[axis] = 2 * field + 64
    x = torch.randn(1, 1, *shape, dtype=torch.double, requires_grad=True)
    # An average in place of the maximum, which passes a gradient to one cell alone.
    y = F.avg_pool3d(encoder.stem(x), 3, stride=2, padding=1)
    for block in encoder.blocks:
        short = (
            F.avg_pool3d(y, 2, ceil_mode=True, count_include_pad=False) if block.stride > 1 else y
        )
        first, second = block.convs
        y = second(F.silu(first(F.silu(y)))) + F.pad(short, (0,) * 7 + (block.more,))
    middle = [0, 0, 0]
    middle[axis] = y.shape[2 + axis] // 2
    y[(0, slice(None), *middle)].sum().backward()
    touched = x.grad.abs().sum([d for d in range(5) if d != 2 + axis]).nonzero().ravel()
    assert int(touched[-1] - touched[0]) + 1 == field


@pytest.mark.slow
def test_a_run_goes_through_evaluate_generate_and_doctor(
    run: Path, few: Dataset, tmp_path: Path
) -> None:
    assert isinstance(model_file.read(run)[0], BaselineVAE)
    evaluate(run, few, samples=1)
    results = json.loads((run / "test_results.json").read_text())
    assert results["year"] is None
    assert np.isfinite(results["methods"]["atlas"]["bits_half"]).all()
    done = run_atlas("generate", run, "--out", tmp_path / "map.nii.gz")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "map.nii.gz").exists()
    described = json.loads(run_atlas("doctor", "--json", "--model", run).stdout)["model"]
    assert described["receptive_field"] == "195 cells, 780 mm"


@pytest.mark.slow
def test_an_unseen_study_is_that_of_every_other(run: Path, few: Dataset) -> None:
    """Said once for all, it is what averaging over the prior study by study says."""
    model, card = model_file.read(run)
    split, shown = Split(few, "test", card), np.ones(card.table().width, np.float32)
    once = unseen_density(model, split, shown, samples=3)
    each = predictive(model, split.whole, *unseen_law(model, 3), torch.from_numpy(shown))
    assert once.shape == each.shape and len(once) == len(split.ids)
    np.testing.assert_allclose(once, each, rtol=1e-4)


def test_metadata_are_refused_with_a_sentence(run: Path, tmp_path: Path) -> None:
    atlas = Atlas.load(run)
    assert not atlas.describe()["conditioned"]
    assert atlas.decode().imputed == {}
    with pytest.raises(AtlasError, match="task: this model takes no metadata, cannot be set"):
        atlas.decode(m={"task": "language"})
    done = run_atlas("generate", run, "--set", "task=language", "--out", tmp_path / "x.nii")
    assert "this model takes no metadata" in one_line_error(done, code=2)


@soak
@pytest.mark.slow
def test_twenty_steps_at_2_mm(bundled: Dataset) -> None:
    """The configuration at 91 x 109 x 91: 20 steps on two studies lower their loss."""
    torch.manual_seed(0)
    settings = config.load("baseline_vae", ["data.resolution=2"])
    model = build(settings.model, bundled.fields.width, 2)
    batch = StudyBatches(bundled, settings.data, np.zeros(0))[Request(0, (0, 1))]
    assert batch.volume_B1XYZ.shape == (2, 1, 91, 109, 91)
    mask = torch.from_numpy(space.load(2).mask.copy())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    seen = []
    for _ in range(20):
        output = model(batch, batch.observed_BM)
        terms = objectives.losses(output, batch, settings.objective, mask, 1e-3, 0.0)
        optimizer.zero_grad()
        terms.total.backward()
        optimizer.step()
        seen.append(float(terms.reconstruction.detach()))
    assert np.isfinite(seen).all()
    assert max(seen[-3:]) < 0.99 * min(seen[:3]), seen  # the first three lie within 0.1 %
