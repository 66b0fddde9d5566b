"""A dataset small enough to train on many times."""

from __future__ import annotations

import pytest

from atlas.contracts import Study
from atlas.data import dataset as folder
from atlas.data.dataset import Dataset
from atlas.data.sources import Provenance


@pytest.fixture(scope="session")
def small(bundled: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """28 training and 8 validation studies of the bundled ones."""
    sizes = {"train": 28, "val": 8, "test": 8}
    splits = {name: bundled.splits[name][:size] for name, size in sizes.items()}
    chosen = [bundled.row[i] for members in splits.values() for i in members]
    studies = [
        Study(
            bundled.ids[row],
            "",
            bundled.peaks(row).astype(float),
            ("MNI",) * len(bundled.peaks(row)),
            bundled.metadata[row],
        )
        for row in sorted(chosen)
    ]
    path = tmp_path_factory.mktemp("small") / "data"
    return folder.write(path, studies, splits, Provenance("small", "1", "none", {}), funnel={})
