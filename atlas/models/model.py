"""What training, evaluation and inference ask of a model."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from atlas.contracts import Batch, Decoded, Output

LOG_VARIANCE_RANGE = (-8.0, 8.0)  # of a posterior, an imputed value, a cell


class Encoding(Protocol):
    """The encoder, as `atlas doctor` sees it."""

    def receptive_field(self) -> int:
        """Cells of the input, per axis, that one cell before the linear layer sees."""


class Decoding(Protocol):
    """The decoder, as training sees it: it starts at a base map, (V,), of log densities."""

    base_V: Tensor


class Model(nn.Module):
    """A network from a batch to an `Output`; its row stands in `atlas.models.MODELS`.

    Attributes
    ----------
    conditional : bool
        Whether metadata change anything. A model without takes them and does not look: it imputes
        mean 0 and log variance 0, each field's centre and spread, and inference refuses to set
        a field.
    encoder, decoder
        Its two halves.
    year : nn.Module or None
        Codes (B, D) -> logits of the publication-year bin, None for a model without an adversary.
    available_M : (M,) float buffer
        1 for elements of fields that were observed in training.
    code_dropout : float
        Share of training samples decoded from z = 0.
    """

    conditional: ClassVar[bool] = True
    encoder: Encoding
    decoder: Decoding
    year: nn.Module | None
    available_M: Tensor
    code_dropout: float

    @abstractmethod
    def encode(self, volume_B1XYZ: Tensor, m_BM: Tensor, kept_BM: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log variance of q(z | volume, observed metadata), (B, D) each."""

    @abstractmethod
    def impute(self, z_BD: Tensor, m_BM: Tensor, kept_BM: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log variance of every element of the metadata, (B, M) each."""

    @abstractmethod
    def decode(self, z_BD: Tensor, m_BM: Tensor) -> Decoded:
        """Decode codes with complete metadata."""

    def draw(self, mean: Tensor, log_variance: Tensor) -> Tensor:
        """Draw from a normal law in training; its mean otherwise."""
        if not self.training:
            return mean
        return mean + torch.randn_like(mean) * torch.exp(0.5 * log_variance)

    @abstractmethod
    def forward(self, batch: Batch, kept_BM: Tensor, reversal: float = 0.0) -> Output:
        """Pass a batch through: codes are sampled in training, means otherwise."""
