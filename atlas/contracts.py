"""The records that pass between stages, and the legend of shape letters.

Shape letters, used as suffixes of tensor names in models and objectives:
B batch, C channels, X Y Z voxel axes, V cells of the mask, P peaks, M metadata vector, D latent,
Y year bins.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from itertools import compress
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .metadata import Value

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class Study:
    """One publication, the unit of every record: all its peaks, whatever table they stand in.

    Contrasts of one publication share participants, so they are pooled and never treated as
    independent (Turkeltaub et al. 2012, Hum Brain Mapp).

    Attributes
    ----------
    id : str
        The source's identifier (a PMID where there is one).
    title : str
        Title of the publication.
    peaks_mm : (P, 3) float64 ndarray
        Peaks in the order reported, in mm, as printed until `atlas.data.clean` has seen them.
    peak_space : tuple of str
        Label of each peak's space: "MNI", "TAL", or whatever else the source says.
    metadata : dict
        Value by field name; None or absent is missing.
    peak_table : tuple of str
        The table or contrast that each peak stands in, "" where the source does not say.
    peak_number : (P,) int64 ndarray
        Position of each peak in the study as the source reports it, from 1; kept through cleaning.
    authors, journal, doi : str
        "" where the source does not say.
    """

    id: str
    title: str
    peaks_mm: np.ndarray
    peak_space: tuple[str, ...]
    metadata: dict[str, Value | None] = field(default_factory=dict)
    peak_table: tuple[str, ...] = ()
    peak_number: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    authors: str = ""
    journal: str = ""
    doi: str = ""

    def __post_init__(self) -> None:
        """Fill what a source leaves out."""
        n = len(self.peaks_mm)
        if len(self.peak_table) != n:
            object.__setattr__(self, "peak_table", ("",) * n)
        if len(self.peak_number) != n:
            object.__setattr__(self, "peak_number", np.arange(1, n + 1))

    def keep(self, kept: np.ndarray) -> Study:
        """Return the study with only those of its peaks where `kept`, (P,) bool, is true."""
        return dataclasses.replace(
            self,
            peaks_mm=self.peaks_mm[kept],
            peak_space=tuple(compress(self.peak_space, kept)),
            peak_table=tuple(compress(self.peak_table, kept)),
            peak_number=self.peak_number[kept],
        )

    def finding(self, rule: str, why: str, k: int | None = None) -> Finding:
        """Say something of the peak at position `k`, or of the study as a whole."""
        if k is None:
            return Finding(rule, self.id, 0, math.nan, math.nan, math.nan, why)
        x, y, z = self.peaks_mm[k].tolist()
        return Finding(rule, self.id, int(self.peak_number[k]), x, y, z, why)


class Finding(NamedTuple):
    """What a cleaning rule says of one peak, or of a whole study (peak 0).

    Attributes
    ----------
    rule : str
        Name of the rule.
    study : str
        Identifier of the study.
    peak : int
        Position in the study as printed, from 1; 0 for the study as a whole.
    x, y, z : float
        Coordinates that the rule saw, mm (NaN for a whole study).
    why : str
        The reason, for people.
    """

    rule: str
    study: str
    peak: int
    x: float
    y: float
    z: float
    why: str

    def as_json(self) -> dict[str, object]:
        """Return plain data; a whole study has no coordinates."""
        row = self._asdict()
        return {k: v for k, v in row.items() if v == v} if self.peak == 0 else row


class Batch(NamedTuple):
    """What a training step sees.

    Attributes
    ----------
    volume_B1XYZ : float32
        Splatted peaks given to the encoder (1 at the centre of a lone peak).
    target_B1XYZ : float32
        The same for all peaks of the study.
    counts_BV : float32
        Number of peaks in each cell of the mask: what the likelihood scores.
    metadata_BM, observed_BM : float32
        Encoded metadata and the mask of what was observed.
    year_bin_B : int64
        Publication-year bin, -1 where the year is missing.
    ids : tuple of str
        Studies' identifiers.
    """

    volume_B1XYZ: torch.Tensor
    target_B1XYZ: torch.Tensor
    counts_BV: torch.Tensor
    metadata_BM: torch.Tensor
    observed_BM: torch.Tensor
    year_bin_B: torch.Tensor
    ids: tuple[str, ...]


class Decoded(NamedTuple):
    """What the decoder says of a code.

    Attributes
    ----------
    log_density_BV : float
        Log density of a peak over the mask's cells; exp sums to 1.
    log_variance_BV : float
        Log variance of a study's smoothed map around the mean, in units of the uniform density
        squared.
    """

    log_density_BV: torch.Tensor
    log_variance_BV: torch.Tensor


class Output(NamedTuple):
    """What a model returns for a batch: posterior, imputed metadata, decoded map, year logits."""

    mean_BD: torch.Tensor
    log_variance_BD: torch.Tensor
    decoded: Decoded
    kept_BM: torch.Tensor  # mask of the observed metadata that the model was shown
    imputed_mean_BM: torch.Tensor
    imputed_log_variance_BM: torch.Tensor
    year_logits_BY: torch.Tensor | None  # None of a model without a year head
