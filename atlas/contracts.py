"""The records that pass between stages, and the legend of shape letters.

Shape letters, used as suffixes of tensor names in models and objectives:
B batch, C channels, X Y Z voxel axes, V cells of the mask, P peaks, M metadata vector, D latent,
Y year bins.
"""

from __future__ import annotations

from dataclasses import dataclass, field
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
    """

    id: str
    title: str
    peaks_mm: np.ndarray
    peak_space: tuple[str, ...]
    metadata: dict[str, Value | None] = field(default_factory=dict)


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
    year_logits_BY: torch.Tensor
