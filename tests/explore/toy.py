"""A model whose maps are known by formula, behind the same few methods as `Atlas`."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch

from atlas import space
from atlas.inference import Point
from atlas.metadata import Field, FieldTable

YEAR = Field("year", "Year", "number", "", low=1990, high=2030, centre=2010, spread=8)
N = Field("n", "Sample size", "number", "", low=1, high=1e4, log=True, centre=20, spread=0.7)
TASK = Field("task", "Task", "category", "", categories=("language", "motor"))


class Toy:
    """Map = base + z . along + m . across; its sd is constant; it imputes mean 0, variance 1."""

    latent = 2
    SD = 0.5

    def __init__(self, along: np.ndarray, across: np.ndarray, base: float = 1.0) -> None:
        self.fields, self.space = FieldTable((YEAR, N, TASK)), space.load(4)
        self.along, self.across, self.base = along, across, base
        self.card = SimpleNamespace(
            used={"n_peaks": SimpleNamespace(studies=0)}, source="", dataset="-"
        )

    def point(self, z=None, m=None) -> Point:
        z_BD = torch.zeros(1, 2) if z is None else torch.as_tensor(np.atleast_2d(z)).float()
        vector, _ = self.fields.encode(m or {})
        return Point(z_BD, torch.from_numpy(vector).expand(len(z_BD), -1), {}, ())

    def pair(self, z, m, changes):
        return self.point(z, m), self.point(z, {**(m or {}), **changes})

    def cells(self, z_BD, m_BM):
        mean = self.base + z_BD.numpy() @ self.along + m_BM.numpy() @ self.across
        return mean, np.full_like(mean, self.SD)

    def imputation(self, z_BD, m):
        vector, observed = self.fields.encode(m or {})
        return (
            torch.from_numpy(vector).expand(len(z_BD), -1),
            torch.zeros(len(z_BD), len(vector)),
            torch.from_numpy(observed) == 0,
        )
