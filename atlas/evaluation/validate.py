"""Did training give the latent space anything? A run beside its own untrained model.

The untrained model has the same architecture and another seed. It keeps what a run knows before
its first step (the base map, which fields exist), so that beating it takes more than the mean map.
-> RUN/validation.json, RUN/report/validation.html, RUN/report/traversals/*.png.
"""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from atlas import __version__, metrics, model_file, pages, space
from atlas.contracts import Batch
from atlas.data.batches import EpochSampler, StudyBatches, loader
from atlas.data.dataset import Dataset
from atlas.errors import AtlasError
from atlas.files import replacing, write_text
from atlas.inference import Atlas
from atlas.models import build
from atlas.models.model import Model

from . import anatomy
from .criteria import verdict
from .evaluate import BATCH, own_dataset, reconstruct

STUDIES = 256  # held-out studies, drawn by the run's seed
DIRECTIONS, STEPS = 4, (-2.0, -1.0, 0.0, 1.0, 2.0)  # drawn; in sd of the training codes
MSE_DROP, MIN_R = 0.5, 0.3
ACTIVE, MAX_PAIRWISE = 0.5, 0.9
FINE_MASK, SPECKS = 0.95, 0.01


class Seen(NamedTuple):
    """What a model makes of the held-out studies: maps (S, V) and codes (S, D)."""

    density: np.ndarray
    codes: np.ndarray


def validate(run: Path, dataset: Dataset | None = None, split: str = "test") -> dict[str, Any]:
    """Validate a run's latent space and write its report.

    Parameters
    ----------
    run : Path
        A finished run folder.
    dataset : Dataset, optional
        The dataset it was trained on; by default found beside or through the run.
    split : str
        "test" or "val".

    Returns
    -------
    dict
        What RUN/validation.json holds; ``checks`` is a list of name, value, bar, pass.

    Raises
    ------
    AtlasError
        The run has no model, or the dataset is missing or another one.
    """
    model, card = model_file.read(run)
    dataset = own_dataset(run, card, dataset)
    batches = _held_out(dataset, split, card)
    mask = torch.from_numpy(space.load(card.data.resolution).mask.copy())
    maps = torch.cat([b.target_B1XYZ[:, 0, mask] for b in batches]).numpy()
    target = metrics.scale_to_max(maps)
    trained, fresh = (Seen(*reconstruct(m, batches)[:2]) for m in (model, untrained(model, card)))
    numbers = {
        "reconstruction": _reconstruction(trained, fresh, target),
        "diversity": _diversity(trained, fresh, target),
        "anatomy": _anatomy(trained, fresh, target, card),
    }
    results = {
        "atlas": __version__,
        "run": run.resolve().name,
        "dataset": dataset.fingerprint,
        "split": split,
        "studies": len(target),
        "checks": checks(numbers, card.model.latent),
        **numbers,
    }
    results["traversals"] = _write_traversals(run, Atlas(model, card))
    write_text(run / "validation.json", json.dumps(results, indent=1))
    write_text(run / "report" / "validation.html", _page(run, results))
    return results


def untrained(model: Model, card: model_file.Card) -> Model:
    """Return the same architecture with fresh weights and the run's buffers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(card.seed + 1)
        fresh = build(card.model, card.table().width, card.data.resolution, card.year_head)
    known = dict(model.named_buffers())
    for name, buffer in fresh.named_buffers():
        buffer.copy_(known[name])
    return fresh.eval()


def _held_out(dataset: Dataset, split: str, card: model_file.Card) -> list[Batch]:
    rows = dataset.rows(split)
    if not len(rows):
        raise AtlasError(f"{dataset.path}: its {split} split is empty")
    if len(rows) > STUDIES:
        drawn = np.random.default_rng(card.seed).permutation(len(rows))[:STUDIES]
        rows = rows[np.sort(drawn)]
    source = StudyBatches(dataset, card.data, np.array(card.year_edges), view="whole")
    return list(loader(source, EpochSampler(rows, BATCH, shuffle=False)))


# ---------------------------------------------------------------------- numbers


def _reconstruction(trained: Seen, fresh: Seen, target: np.ndarray) -> dict[str, Any]:
    """Compare maps scaled to maximum 1, decoded ones likewise, and by one least-squares factor."""
    out: dict[str, Any] = {}
    for name, seen in (("trained", trained), ("untrained", fresh)):
        scaled = metrics.scale_to_max(seen.density)
        factor = (seen.density * target).sum() / np.square(seen.density).sum()
        out[name] = {
            "mse": _interval(metrics.mse(scaled, target)),
            "mse_one_factor": _interval(metrics.mse(factor * seen.density, target)),
            "r": _interval(metrics.pearson(seen.density, target)),
        }
    for key in ("mse", "mse_one_factor"):
        drop = 1 - out["trained"][key][0] / out["untrained"][key][0]
        out[f"{key}_drop"] = round(drop, 5)
    return out


def _diversity(trained: Seen, fresh: Seen, target: np.ndarray) -> dict[str, Any]:
    def about(seen: Seen) -> dict[str, Any]:
        return {
            "active_units": metrics.active_units(seen.codes),
            "pairwise_correlation": _pairwise(seen.density),
        }

    return {
        "trained": about(trained),
        "untrained": about(fresh),
        "held_out_maps": {"pairwise_correlation": _pairwise(target)},
    }


def _pairwise(maps: np.ndarray) -> float:
    """Mean correlation between studies' maps; constant maps look alike."""
    if (np.ptp(maps, axis=1) == 0).any() or len(maps) < 2:
        return 1.0
    return round(metrics.mean_pairwise_correlation(maps), 4)


def _anatomy(
    trained: Seen, fresh: Seen, target: np.ndarray, card: model_file.Card
) -> dict[str, Any]:
    resolution = card.data.resolution
    here = space.load(resolution)

    def about(maps: np.ndarray) -> dict[str, Any]:
        volumes = here.volume(maps)
        return {
            "grey_matter": _interval(anatomy.grey_share(maps, resolution)),
            "fine_mask": _interval([anatomy.share_in_fine_mask(here.image(v)) for v in volumes]),
            "isolated": _interval([anatomy.isolated_share(v, here.mask) for v in volumes]),
            "smoothness_mm": _interval(
                [anatomy.smoothness_mm(v, here.mask, resolution) for v in volumes]
            ),
        }

    uniform = np.ones((1, here.n_cells))
    return {
        "trained": about(trained.density),
        "untrained": about(fresh.density),
        "held_out_maps": about(target),
        "uniform_grey_matter": round(float(anatomy.grey_share(uniform, resolution)[0]), 5),
    }


def _interval(values: Any) -> list[float]:
    return metrics.interval(np.asarray(values), 6)


# ---------------------------------------------------------------------- checks


def checks(numbers: dict[str, Any], latent: int) -> list[dict[str, Any]]:
    """Hold the numbers against their bars: a list of name, value, bar, pass."""
    fit, spread, place = numbers["reconstruction"], numbers["diversity"], numbers["anatomy"]
    active = spread["trained"]["active_units"]
    alike = spread["trained"]["pairwise_correlation"]
    real = place["held_out_maps"]["grey_matter"][0]
    smooth = place["held_out_maps"]["smoothness_mm"][0]
    grey_bar = (place["uniform_grey_matter"] + real) / 2
    trained = {name: value[0] for name, value in place["trained"].items()}
    drop, r = fit["mse_drop"], fit["trained"]["r"][0]
    return [
        _check("MSE below the untrained model's", drop, f">= {MSE_DROP}", drop >= MSE_DROP),
        _check("Pearson r with held-out maps", r, f"> {MIN_R}", r > MIN_R),
        _check("active directions", active, f">= {ACTIVE:g} x {latent}", active >= ACTIVE * latent),
        _check(
            "correlation between decoded maps", alike, f"< {MAX_PAIRWISE}", alike < MAX_PAIRWISE
        ),
        _check(
            "share of mass in grey matter",
            trained["grey_matter"],
            f">= {grey_bar:.4f}, half way from uniform to the studies' own maps",
            trained["grey_matter"] >= grey_bar,
        ),
        _check(
            "share of mass in the 2 mm mask",
            trained["fine_mask"],
            f">= {FINE_MASK}",
            trained["fine_mask"] >= FINE_MASK,
        ),
        _check(
            "share of strong mass in isolated cells",
            trained["isolated"],
            f"<= {SPECKS}",
            trained["isolated"] <= SPECKS,
        ),
        _check(
            "smoothness of decoded maps, mm",
            trained["smoothness_mm"],
            f">= {smooth / 2:.2f}, half that of the studies' own maps",
            trained["smoothness_mm"] >= smooth / 2,
        ),
    ]


def _check(name: str, value: float, bar: str, passed: bool) -> dict[str, Any]:
    return {"name": name, "value": value, "bar": bar, "pass": bool(passed)}


# ---------------------------------------------------------------------- pictures


def _write_traversals(run: Path, atlas: Atlas) -> list[dict[str, Any]]:
    """Draw the most active directions, one picture each."""
    folder = run / "report" / "traversals"
    folder.mkdir(parents=True, exist_ok=True)
    order = np.argsort(atlas.card.latent_activity)[::-1][:DIRECTIONS]
    return [_write_traversal(folder, atlas, int(direction)) for direction in order]


def _write_traversal(folder: Path, atlas: Atlas, direction: int) -> dict[str, Any]:
    mean, sd = atlas.card.latent_mean[direction], atlas.card.latent_sd[direction]
    maps = atlas.traverse(direction, [mean + step * sd for step in STEPS]).mean.get_fdata()
    here = space.load(atlas.card.data.resolution)
    figure = pages.pyplot().figure(figsize=(13, 2.6 * len(STEPS)))
    top = max(float(np.quantile(maps[here.mask], 0.999)), 1e-6)
    for k, step in enumerate(STEPS):
        axes = figure.add_subplot(len(STEPS), 1, k + 1)
        pages.glass_brain(axes, here.image(maps[..., k]), f"{step:+g} sd", vmax=top)
    path = folder / f"direction_{direction:03d}.png"
    with replacing(path) as work:
        figure.savefig(work, dpi=80, format="png")
    pages.pyplot().close(figure)
    first, last = (maps[here.mask][:, k] for k in (0, -1))
    return {
        "direction": direction,
        "sd": round(sd, 5),
        "correlation_of_ends": round(float(metrics.pearson(first[None], last[None])[0]), 4),
        "picture": f"report/traversals/{path.name}",
    }


def _page(run: Path, results: dict[str, Any]) -> str:
    rows = [(c["name"], f"{c['value']:.4g}", c["bar"], verdict(c)) for c in results["checks"]]
    pictures = "".join(
        f"<p>Direction {t['direction']}; its ends correlate at {t['correlation_of_ends']:.2f}</p>"
        f'<img alt="traversal of direction {t["direction"]}" '
        f'src="traversals/{html.escape(Path(t["picture"]).name)}">'
        for t in results["traversals"]
    )
    note = (
        "The decoded density lives on the brain mask by construction; the shares of mass are "
        "measured on the exported image. All numbers: validation.json."
    )
    about = f"{results['studies']} {results['split']} studies, atlas {results['atlas']}"
    return pages.page(
        f"Validation: {results['run']}",
        about,
        [
            (
                "Beside the untrained model",
                pages.table(["check", "value", "bar", ""], rows, text=(0, 2, 3))
                + pages.paragraph(note, note=True),
            ),
            ("Traversals", pictures),
        ],
    )
