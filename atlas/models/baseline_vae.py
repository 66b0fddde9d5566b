"""The baseline, whole: a plain 3-D ResNet-10 VAE that sees no metadata.

    volume -> Encoder -> q(z) -> z -> Decoder -> density, variance

Encoder, w = `model.width` (32): ResNet-10 (He et al. 2016, CVPR, in the pre-activation order of
He et al. 2016, ECCV), every norm a GroupNorm in groups of 8 channels (Wu & He 2018, ECCV).

    stem        7^3 convolution of stride 2, 1 -> w, then a 3^3 max pool of stride 2
    4 blocks    w, 2w, 4w, 8w channels, each two 3^3 convolutions; all but the first halve the grid;
                shortcuts without parameters (averaged, new channels 0: option A)
    head        norm, SiLU, one linear layer from all cells to mean and log variance of z

Decoder: one linear layer to 8w channels on the coarsest grid, then five times norm, SiLU and a
k4 s2 transposed convolution, to 4w, 2w, w, w/2 and 2 channels: log density and log variance.

At 2 mm (91 x 109 x 91, coarsest grid 3 x 4 x 3) with w = 32 and 64 latent directions:

    stem                                 10,976
    convolutions of the blocks        3,538,944
    norms of the encoder                  1,984
    head                              1,179,776
    decoder's linear layer              599,040
    decoder's norms and convolutions  2,788,561
    together                          8,119,281

0.7 % above the 8,066,409 that the baseline is meant to have.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from atlas import space
from atlas.config import ModelConfig
from atlas.contracts import Batch, Decoded, Output
from atlas_kernels import group_norm_film

from .layers import (
    CHANNELS_PER_GROUP,
    Kernels,
    Upsample,
    channels_last,
    pool,
    pyramid,
    receptive_field,
)
from .model import LOG_VARIANCE_RANGE, Model

BLOCKS = 4
HALVINGS = BLOCKS + 1  # the stem halves twice, every block but the first once


class NormSiLU(nn.GroupNorm):
    """SiLU(GroupNorm(x)) in groups of 8 channels."""

    def __init__(self, channels: int, kernels: Kernels) -> None:
        super().__init__(channels // CHANNELS_PER_GROUP, channels)
        self.kernels = kernels

    def forward(self, x_BCXYZ: Tensor) -> Tensor:
        """Normalise and activate; same shape as the input."""
        if self.kernels == "auto":
            return group_norm_film(x_BCXYZ, self.num_groups, self.weight, self.bias)
        return F.silu(super().forward(x_BCXYZ))


class Residual(nn.Module):
    """x + conv(norm(conv(norm(x)))), perhaps of half the grid and more channels."""

    def __init__(self, channels: int, out_channels: int, stride: int, kernels: Kernels) -> None:
        super().__init__()
        self.stride, self.more = stride, out_channels - channels
        self.norms = nn.ModuleList(NormSiLU(c, kernels) for c in (channels, out_channels))
        self.convs = nn.ModuleList(
            nn.Conv3d(c, out_channels, 3, stride=s, padding=1, bias=False)
            for c, s in ((channels, stride), (out_channels, 1))
        )

    def forward(self, x_BCXYZ: Tensor) -> Tensor:
        """Return (B, out_channels, X, Y, Z), X, Y, Z divided by the stride and rounded up."""
        y = x_BCXYZ
        for norm, conv in zip(self.norms, self.convs):
            y = conv(norm(y))
        if self.stride > 1:
            x_BCXYZ = pool(x_BCXYZ)
        return y + F.pad(x_BCXYZ, (0, 0, 0, 0, 0, 0, 0, self.more))


class Encoder(nn.Module):
    """Volume -> mean and log variance of z."""

    def __init__(self, config: ModelConfig, size: Sequence[int]) -> None:
        super().__init__()
        self.kernels, width = config.kernels, config.width
        self.stem = nn.Conv3d(1, width, 7, stride=2, padding=3, bias=False)
        channels = [width, *(width * 2**k for k in range(BLOCKS))]
        self.blocks = nn.ModuleList(
            Residual(a, b, 1 if k == 0 else 2, config.kernels)
            for k, (a, b) in enumerate(pairwise(channels))
        )
        self.norm = NormSiLU(channels[-1], config.kernels)
        self.head = nn.Linear(channels[-1] * size[0] * size[1] * size[2], 2 * config.latent)

    def forward(self, volume_B1XYZ: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log variance of the posterior, (B, D) each."""
        x = channels_last(self.stem(volume_B1XYZ), self.kernels)
        x = F.max_pool3d(x, 3, stride=2, padding=1)
        for block in self.blocks:
            x = block(x)
        mean_BD, log_variance_BD = self.head(self.norm(x).flatten(1)).float().chunk(2, dim=1)
        return mean_BD, log_variance_BD.clamp(*LOG_VARIANCE_RANGE)

    def receptive_field(self) -> int:
        """Cells of the input, per axis, that one cell before the linear layer sees."""
        first, later = [(3, 1, 1), (3, 1, 1)], [(3, 2, 1), (3, 1, 1)]
        return receptive_field([(7, 2, 1), (3, 2, 1), *first, *later * (BLOCKS - 1)])


class Decoder(nn.Module):
    """z -> log density and log variance over the mask's cells."""

    base_V: Tensor
    cells_V: Tensor

    def __init__(self, config: ModelConfig, sizes: list[list[int]], cells_V: Tensor) -> None:
        super().__init__()
        self.kernels, self.coarsest = config.kernels, sizes[-1]
        # The norms want multiples of 8; w/2 is one where w is a multiple of 16.
        widths = [max(config.width * 2**k // 2, 8) for k in reversed(range(BLOCKS + 1))]
        x, y, z = self.coarsest
        self.spread = nn.Linear(config.latent, widths[0] * x * y * z)
        self.norms = nn.ModuleList(NormSiLU(c, config.kernels) for c in widths)
        self.ups = nn.ModuleList(
            Upsample(a, b, size) for a, b, size in zip(widths, widths[1:], sizes[-2:0:-1])
        )
        self.size = sizes[0]
        self.last = nn.ConvTranspose3d(widths[-1], 2, 4, stride=2, padding=1, bias=False)
        # Of the log variance alone: the softmax is blind to a bias of the log density.
        self.bias = nn.Parameter(torch.zeros(()))
        nn.init.zeros_(self.last.weight)  # training starts at the base map, whatever the code
        self.register_buffer("base_V", torch.zeros(len(cells_V)))
        self.register_buffer("cells_V", cells_V, persistent=False)

    def forward(self, z_BD: Tensor) -> Decoded:
        """Decode codes, (B, D)."""
        x = self.spread(z_BD).unflatten(1, (-1, *self.coarsest))
        x = channels_last(x, self.kernels)
        for norm, up in zip(self.norms, self.ups):
            x = up(norm(x))
        a, b, c = self.size
        maps = self.last(self.norms[-1](x))[..., :a, :b, :c]
        logits_BV, log_variance_BV = maps.float().flatten(2)[:, :, self.cells_V].unbind(1)
        return Decoded(
            torch.log_softmax(logits_BV + self.base_V, dim=1),
            (log_variance_BV + self.bias).clamp(*LOG_VARIANCE_RANGE),
        )


class BaselineVAE(Model):
    """Encoder and decoder, and how a batch passes through them.

    Metadata are taken and not looked at; of the configuration `latent`, `width`, `base_map` and
    `kernels` count.

    Parameters
    ----------
    config : ModelConfig
    fields_width : int
        M, width of the metadata vector.
    resolution : int
        Edge of a cell in mm.
    """

    conditional = False
    encoder: Encoder
    decoder: Decoder

    def __init__(self, config: ModelConfig, fields_width: int, resolution: int) -> None:
        super().__init__()
        here = space.load(resolution)
        sizes = pyramid(here.grid.shape, HALVINGS)
        cells_V = torch.from_numpy(here.mask.ravel().nonzero()[0])
        self.encoder = Encoder(config, sizes[-1])
        self.decoder = Decoder(config, sizes, cells_V)
        self.year = None
        self.code_dropout = 0.0
        self.register_buffer("available_M", torch.ones(fields_width))

    def encode(self, volume_B1XYZ: Tensor, m_BM: Tensor, kept_BM: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log variance of q(z | volume), (B, D) each."""
        return self.encoder(volume_B1XYZ)

    def impute(self, z_BD: Tensor, m_BM: Tensor, kept_BM: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean 0 and log variance 0, (B, M) each: each field's centre and spread."""
        return torch.zeros_like(m_BM), torch.zeros_like(m_BM)

    def decode(self, z_BD: Tensor, m_BM: Tensor) -> Decoded:
        """Decode codes, (B, D)."""
        return self.decoder(z_BD)

    def forward(self, batch: Batch, kept_BM: Tensor, reversal: float = 0.0) -> Output:
        """Pass a batch through; there is no year head for `reversal` to act on."""
        mean_BD, log_variance_BD = self.encode(batch.volume_B1XYZ, batch.metadata_BM, kept_BM)
        z_BD = self.draw(mean_BD, log_variance_BD)
        return Output(
            mean_BD,
            log_variance_BD,
            self.decode(z_BD, batch.metadata_BM),
            kept_BM,
            *self.impute(z_BD, batch.metadata_BM, kept_BM),
            None,
        )
