"""What a latent direction goes along with: topics and task categories of the training studies.

The codes of a draw of training studies are correlated with their topic and task weights. The
released model carries the result as ``directions.json`` (`python -m atlas.explore.directions`
makes it); other runs get theirs while they are served.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from atlas import model_file
from atlas.errors import AtlasError
from atlas.files import write_text
from atlas.inference import Atlas

if TYPE_CHECKING:
    from .studies import Studies

FILE = "directions.json"
MOST = 3  # labels of a direction
DRAW = 2000  # studies: a correlation's standard error is then 0.02
LEAST_R = 0.08  # weaker ones are noise
_BATCH = 32
_WORDS = 3  # of a topic's name

Topics = list[list[dict[str, Any]]]  # by direction: [{"label", "r"}, ..], strongest first


def topics(atlas: Atlas, studies: Studies, draw: int = DRAW, seed: int = 0) -> Iterator[Topics]:
    """Correlate codes with topic and task weights; yields [] after each batch, the result last.

    Yielding lets whoever serves maps meanwhile put them first.
    """
    rows = studies.training(atlas)
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.permutation(rows)[:draw])
    codes = []
    for k in range(0, len(rows), _BATCH):
        part = rows[k : k + _BATCH]
        peaks = [studies.peaks(r) for r in part]
        codes.append(atlas.encode_studies(peaks, [studies.metadata(r, atlas) for r in part]).mean)
        yield []
    yield correlate(np.concatenate(codes), *_weights(studies, rows))


def correlate(codes: np.ndarray, weights: np.ndarray, labels: list[str]) -> Topics:
    """Return each direction's strongest correlations with weights.

    Parameters
    ----------
    codes : (S, D) array
    weights : (S, K) array, NaN where unknown
    labels : list of K str
    """
    out: Topics = [[] for _ in range(codes.shape[1])]
    for label, column in zip(labels, weights.T):
        known = np.isfinite(column)
        if known.sum() < 10 or np.ptp(column[known]) == 0:
            continue
        w, z = column[known] - column[known].mean(), codes[known] - codes[known].mean(0)
        scale = np.linalg.norm(w) * np.linalg.norm(z, axis=0)
        for k, r in enumerate(w @ z / np.where(scale > 0, scale, np.inf)):
            if abs(r) >= LEAST_R:
                out[k].append({"label": label, "r": round(float(r), 3)})
    return [sorted(found, key=lambda row: -abs(row["r"]))[:MOST] for found in out]


def _weights(studies: Studies, rows: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Return topic weights, named, beside task weights, (S, K)."""
    words = topic_words() if studies.source == "neurosynth v7" else {}
    columns, labels = [], []
    for name in ("topics", "task"):
        values, known = studies.values(studies.fields[name])
        if known[rows].any():
            columns.append(values[rows])
            labels += [words.get(c, c.replace("_", " ")) for c in studies.fields[name].categories]
    return np.concatenate(columns or [np.zeros((len(rows), 0))], axis=1), labels


def topic_words() -> dict[str, str]:
    """Top words of Neurosynth's 50 topics, as ``{"topic_17": "motor, finger, hand"}``."""
    file = resources.files("atlas").joinpath("resources", model_file.RELEASED, FILE)
    return dict(json.loads(file.read_text())["topics"]) if file.is_file() else {}


def stored(run: Path | None) -> Topics | None:
    """Return what a model folder carries; None where there is nothing."""
    path = (run or model_file.released()) / FILE
    try:
        found: Topics = json.loads(path.read_text())["directions"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        raise AtlasError(f"{path}: damaged; delete it") from None
    return found


def main(dataset: str, vocabulary: str) -> None:
    """Write the released model's file from a prepared Neurosynth and its list of topics."""
    from .studies import read

    studies, folder = read(Path(dataset)), model_file.released()
    names = Path(vocabulary).read_text().split()
    words = {f"topic_{k:02d}": ", ".join(n.split("_")[1:]) for k, n in enumerate(names)}
    file = folder / FILE
    write_text(file, json.dumps({"topics": words, "directions": []}))
    *_, found = topics(Atlas.load(), studies)
    rows = ",\n  ".join(json.dumps(row) for row in found)
    write_text(file, f'{{"topics": {json.dumps(words, indent=1)},\n "directions": [\n  {rows}]}}\n')


if __name__ == "__main__":
    main(*sys.argv[1:])
