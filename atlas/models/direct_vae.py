"""The conditional beta-VAE without its convolutions: the direct paths alone.

    volume, m -> DirectEncoder -> q(z) -> z -> Imputer -> DirectDecoder -> density

Everything else is the CVAE's (`atlas.models.cvae`): imputer, year head, code dropout. A step costs
a quarter as much, and beside the CVAE it says what convolutions add.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from atlas.config import ModelConfig, YearHead
from atlas.contracts import Decoded
from atlas.errors import AtlasError

from .cvae import CVAE, DirectDecoder, DirectEncoder
from .layers import double
from .model import LOG_VARIANCE_RANGE


class Encoder(nn.Module):
    """Volume and observed metadata -> mean and log variance of z, (B, D) each."""

    def __init__(
        self, config: ModelConfig, fields_width: int, sizes: list[list[int]], near: Tensor
    ) -> None:
        super().__init__()
        self.shape = sizes[0]
        self.direct = DirectEncoder(config, fields_width, near)
        self.head = nn.Linear(config.direct, 2 * config.latent)

    def forward(self, volume_B1XYZ: Tensor, m_BM: Tensor, kept_BM: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log variance of the posterior."""
        h_BH = self.direct(volume_B1XYZ, m_BM, kept_BM, volume_B1XYZ.new_zeros(()))
        mean_BD, log_variance_BD = self.head(h_BH).float().chunk(2, dim=1)
        return mean_BD, log_variance_BD.clamp(*LOG_VARIANCE_RANGE)

    def receptive_field(self) -> int:
        """Cells per axis that the linear layer sees: the whole grid."""
        return max(self.shape)


class Decoder(nn.Module):
    """z and a complete metadata vector -> log density and log variance over the mask's cells.

    A cell's log variance is linear in the log of what is expected there, one slope for all cells:
    maps vary more where more peaks are expected.
    """

    base_V: Tensor
    cells_V: Tensor

    def __init__(
        self,
        config: ModelConfig,
        fields_width: int,
        sizes: list[list[int]],
        cells_V: Tensor,
        near: Tensor,
    ) -> None:
        super().__init__()
        self.shape = sizes[0]
        self.direct = DirectDecoder(config, fields_width, near)
        self.level_V = nn.Parameter(torch.zeros(len(cells_V)))
        self.slope = nn.Parameter(torch.zeros(1))
        self.register_buffer("base_V", torch.zeros(len(cells_V)))
        self.register_buffer("cells_V", cells_V, persistent=False)

    def forward(self, z_BD: Tensor, m_BM: Tensor) -> Decoded:
        """Decode codes (B, D) with complete metadata (B, M)."""
        logits_B1XYZ = double(self.direct(z_BD, m_BM), self.shape)
        logits_BV = logits_B1XYZ.float().flatten(1)[:, self.cells_V]
        log_density_BV = torch.log_softmax(logits_BV + self.base_V, dim=1)
        log_variance_BV = self.level_V + self.slope * logits_BV.detach()
        return Decoded(log_density_BV, log_variance_BV.clamp(*LOG_VARIANCE_RANGE))


class DirectVAE(CVAE):
    """See the module. Takes the CVAE's configuration; what shapes convolutions is not read."""

    halves = Encoder, Decoder

    def __init__(
        self,
        config: ModelConfig,
        fields_width: int,
        resolution: int,
        year_head: YearHead = "bins",
    ) -> None:
        if not config.direct:
            raise AtlasError("model.direct is 0: direct_vae is nothing else; say model.direct=512")
        super().__init__(config, fields_width, resolution, year_head)
