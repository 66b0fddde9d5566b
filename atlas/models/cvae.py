"""The conditional beta-VAE, whole.

    volume, m -> Encoder -> q(z) -> z -> Imputer fills what m lacks -> Decoder -> density, variance
                                    z -> reversed gradient -> publication-year bin

The encoder is a 3-D DenseNet whose last block is dilated; FiLM of the metadata modulates every
dense layer of encoder and decoder. The decoder's density is a softmax over the cells of the brain
mask: where a study with this code and these metadata reports its next peak. Its second channel is
the log variance of one study's smoothed map around that density.

`model.direct` adds a path around the convolutions on either side, at half the resolution: what
linear methods reach in seconds (the projection of a map, a mixture of maps) is not left for
convolutions to find in hours. Both paths add up, in the encoder's hidden layer and in the logits.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from atlas import space
from atlas.config import ModelConfig, YearHead
from atlas.contracts import Batch, Decoded, Output

from .layers import (
    DenseBlock,
    NormFiLM,
    Upsample,
    blur,
    channels_last,
    double,
    pool,
    pyramid,
    receptive_field,
    reverse_gradient,
    transition,
    year_logits,
)
from .model import LOG_VARIANCE_RANGE, Model


class Embedding(nn.Sequential):
    """Metadata vector and mask -> the embedding that FiLM reads, (B, embedding)."""

    def __init__(self, fields_width: int, embedding: int) -> None:
        super().__init__(
            nn.Linear(2 * fields_width, embedding), nn.SiLU(), nn.Linear(embedding, embedding)
        )


class Hidden(nn.Module):
    """The hidden state of a direct path: one residual layer, normalised; (B, H) -> (B, H)."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Dropout(dropout)
        )
        self.outer = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, h_BH: Tensor) -> Tensor:
        """Activate, add the layer, normalise."""
        h_BH = nn.functional.silu(h_BH)
        return self.norm(h_BH + self.outer(self.inner(h_BH)))


class DirectEncoder(nn.Module):
    """Volume and observed metadata -> hidden state, (B, H).

    Reads the square root of the map as a density over cells of twice the edge (Hellinger's
    geometry, in which Euclidean projections suit counts), and the log of its mass.
    """

    near: Tensor

    def __init__(self, config: ModelConfig, fields_width: int, near: Tensor) -> None:
        super().__init__()
        self.register_buffer("near", near, persistent=False)
        self.dropout = nn.Dropout(config.dropout)
        self.read = nn.Linear(int(near.sum()) + 1, config.direct)
        self.tell = nn.Linear(2 * fields_width, config.direct)
        self.hidden = Hidden(config.direct, config.dropout)

    def forward(
        self, volume_B1XYZ: Tensor, m_BM: Tensor, kept_BM: Tensor, features_BH: Tensor
    ) -> Tensor:
        """Add what the convolutions found, (B, H), and return the hidden state."""
        map_BN = pool(volume_B1XYZ)[:, 0, self.near]
        mean_B1 = map_BN.mean(1, keepdim=True)
        root_BN = (map_BN / (mean_B1 + 1e-6) + 1e-3).sqrt()
        mass_B1 = (mean_B1 + 1e-6).log()
        read_BH = self.read(self.dropout(0.2 * torch.cat([root_BN, mass_B1], dim=1)))
        return self.hidden(read_BH + self.tell(_rooted(m_BM * kept_BM, kept_BM)) + features_BH)


class DirectDecoder(nn.Module):
    """z and a complete metadata vector -> logits over cells of twice the edge: a mixture of maps.

    (B, 1, X/2, Y/2, Z/2), 0 in cells that touch no cell of the mask. With `model.smooth` what is
    learnt is smoothed: few studies cannot teach more than a smooth map.
    """

    near: Tensor
    near_N: Tensor

    def __init__(self, config: ModelConfig, fields_width: int, near: Tensor) -> None:
        super().__init__()
        self.register_buffer("near", near, persistent=False)
        self.register_buffer("near_N", near.flatten().nonzero()[:, 0], persistent=False)
        self.code = nn.Linear(config.latent, config.direct)
        self.tell = nn.Linear(2 * fields_width, config.direct)
        self.hidden = Hidden(config.direct, config.dropout)
        self.weigh = nn.Linear(config.direct, config.rank)
        self.maps = nn.Linear(config.rank, int(near.sum()))
        self.smooth = config.smooth
        nn.init.normal_(self.maps.weight, std=0.01)
        nn.init.zeros_(self.maps.bias)

    def forward(self, z_BD: Tensor, m_BM: Tensor) -> Tensor:
        """Mix the maps for a code and its metadata."""
        told_BH = self.tell(_rooted(m_BM, torch.ones_like(m_BM)))
        logits_BN = self.maps(self.weigh(self.hidden(self.code(z_BD) + told_BH)))
        # By index: ONNX cannot express an assignment through a mask.
        out = logits_BN.new_zeros(z_BD.shape[0], self.near.numel())
        out = out.scatter(1, self.near_N.expand_as(logits_BN), logits_BN)
        out = out.view(-1, 1, *self.near.shape)
        return blur(out, self.smooth) if self.smooth else out


class Encoder(nn.Module):
    """Volume and observed metadata -> mean and log variance of z.

    Stem (stride 2), then dense blocks with an average pool after each, then the dilated block, a
    pool, and one linear layer.
    """

    direct: DirectEncoder | None

    def __init__(
        self, config: ModelConfig, fields_width: int, sizes: list[list[int]], near: Tensor
    ) -> None:
        super().__init__()
        self.config = config
        e, growth = config.embedding, config.growth
        self.embed = Embedding(fields_width, e)
        self.stem = nn.Conv3d(1, config.width, 3, stride=2, padding=1, bias=False)
        self.blocks, self.norms, self.mixes = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        channels = config.width
        for layers in config.blocks:
            block = DenseBlock(channels, growth, [1] * layers, e, config.kernels)
            channels = 2 * channels
            self._append(block, channels)
        last = DenseBlock(channels, growth, config.dilations, e, config.kernels)
        self._append(last, config.width)
        cells = sizes[-1][0] * sizes[-1][1] * sizes[-1][2]
        self.direct = DirectEncoder(config, fields_width, near) if config.direct else None
        if config.direct:
            self.join = nn.Linear(config.width * cells, config.direct)
        self.head = nn.Linear(config.direct or config.width * cells, 2 * config.latent)

    def _append(self, block: DenseBlock, out_channels: int) -> None:
        self.blocks.append(block)
        self.norms.append(NormFiLM(block.out_channels, self.config.embedding, self.config.kernels))
        self.mixes.append(nn.Conv3d(block.out_channels, out_channels, 1, bias=False))

    def forward(self, volume_B1XYZ: Tensor, m_BM: Tensor, kept_BM: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log variance of the posterior, (B, D) each."""
        e = self.embed(torch.cat([m_BM * kept_BM, kept_BM], dim=1))
        seen = pool(volume_B1XYZ) if self.config.halve else volume_B1XYZ
        x = channels_last(self.stem(seen), self.config.kernels)
        for block, norm, mix in zip(self.blocks, self.norms, self.mixes):
            # The convolution sees single cells alone: after the pool it is the same and an eighth.
            x = transition(norm, mix, block(x, e), e, halve=True)
        h = x.flatten(1)
        if self.direct is not None:
            h = self.direct(volume_B1XYZ, m_BM, kept_BM, self.join(h))
        mean_BD, log_variance_BD = self.head(h).float().chunk(2, dim=1)
        return mean_BD, log_variance_BD.clamp(*LOG_VARIANCE_RANGE)

    def receptive_field(self) -> int:
        """Cells of the input, per axis, that one cell before the linear layer sees."""
        steps = [(2, 2, 1)] * self.config.halve + [(3, 2, 1)]
        for layers in self.config.blocks:
            steps += [(3, 1, 1)] * layers + [(2, 2, 1)]
        return receptive_field([*steps, *((3, 1, d) for d in self.config.dilations), (2, 2, 1)])


class Imputer(nn.Module):
    """z and what is known of m -> mean and log variance of every element of m.

    z comes detached: imputing must not teach the code to carry metadata, or a counterfactual
    could not change them.
    """

    def __init__(self, latent: int, fields_width: int, hidden: int = 64) -> None:
        super().__init__()
        out = nn.Linear(hidden, 2 * fields_width)
        for parameter in out.parameters():
            nn.init.zeros_(parameter)
        self.net = nn.Sequential(nn.Linear(latent + 2 * fields_width, hidden), nn.SiLU(), out)

    def forward(self, z_BD: Tensor, m_BM: Tensor, kept_BM: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log variance, (B, M) each, in units of the encoded metadata."""
        known = torch.cat([z_BD.detach(), _rooted(m_BM * kept_BM, kept_BM)], dim=1)
        mean_BM, log_variance_BM = self.net(known).float().chunk(2, dim=1)
        return mean_BM, log_variance_BM.clamp(*LOG_VARIANCE_RANGE)


class Decoder(nn.Module):
    """z and a complete metadata vector -> log density and log variance over the mask's cells."""

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
        e, growth = config.embedding, config.growth
        self.shape, self.halve, self.kernels = sizes[0], config.halve, config.kernels
        self.sizes = sizes = sizes[config.halve :]
        self.embed = Embedding(fields_width, e)
        self.start = config.width * 2 ** len(config.blocks)
        x, y, z = sizes[-1]
        self.spread = nn.Linear(config.latent + e, self.start * x * y * z)
        self.blocks, self.norms, self.ups = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        channels = self.start
        for level in reversed(range(len(sizes) - 1)):
            block = DenseBlock(channels, growth, [1, 1], e, config.kernels)
            channels = 2 if level == 0 else max(config.width, channels // 2)
            self.blocks.append(block)
            self.norms.append(NormFiLM(block.out_channels, e, config.kernels))
            self.ups.append(Upsample(block.out_channels, channels, sizes[level], config.kernels))
        for parameter in self.ups[-1].parameters():
            nn.init.zeros_(parameter)  # training starts at the base map, whatever the code
        self.direct = DirectDecoder(config, fields_width, near) if config.direct else None
        self.register_buffer("base_V", torch.zeros(len(cells_V)))
        self.register_buffer("cells_V", cells_V, persistent=False)

    def forward(self, z_BD: Tensor, m_BM: Tensor) -> Decoded:
        """Decode codes (B, D) with complete metadata (B, M)."""
        e = self.embed(torch.cat([m_BM, torch.ones_like(m_BM)], dim=1))
        x = self.spread(torch.cat([z_BD, e], dim=1)).unflatten(1, (self.start, *self.sizes[-1]))
        for block, norm, up in zip(self.blocks, self.norms, self.ups):
            x = transition(norm, up, block(channels_last(x, self.kernels), e), e)
        if self.direct is not None:
            x = self._add(x, self.direct(z_BD, m_BM))
        logits_BV, log_variance_BV = self._at_cells(x)
        return Decoded(
            torch.log_softmax(logits_BV + self.base_V, dim=1),
            log_variance_BV.clamp(*LOG_VARIANCE_RANGE),
        )

    def _add(self, x_B2XYZ: Tensor, logits_B1XYZ: Tensor) -> Tensor:
        """Add logits of the half resolution to the first channel."""
        if logits_B1XYZ.shape[2:] != x_B2XYZ.shape[2:]:
            logits_B1XYZ = double(logits_B1XYZ, self.shape)
        return x_B2XYZ + nn.functional.pad(logits_B1XYZ, (0, 0, 0, 0, 0, 0, 0, 1))

    def _at_cells(self, x_BCXYZ: Tensor) -> tuple[Tensor, ...]:
        """Each channel at the mask's cells, (B, V), interpolated where the grid is coarse."""
        if list(x_BCXYZ.shape[2:]) != self.shape:
            x_BCXYZ = double(x_BCXYZ, self.shape)
        return x_BCXYZ.float().flatten(2)[:, :, self.cells_V].unbind(1)


class CVAE(Model):
    """Encoder, imputer, decoder and year head, and how a batch passes through them.

    Parameters
    ----------
    config : ModelConfig
    fields_width : int
        M, width of the metadata vector.
    resolution : int
        Edge of a cell in mm.
    year_head : {"bins", "ordinal"}
        What the year head's logits are: `year_logits`.

    Attributes
    ----------
    available_M : (M,) float buffer
        1 for elements of fields that were observed in training; others never reach a layer.
    """

    halves: ClassVar[tuple[type, type]] = Encoder, Decoder
    encoder: Encoder
    decoder: Decoder
    year: nn.Sequential

    def __init__(
        self,
        config: ModelConfig,
        fields_width: int,
        resolution: int,
        year_head: YearHead = "bins",
    ) -> None:
        super().__init__()
        here = space.load(resolution)
        sizes = pyramid(here.grid.shape, len(config.blocks) + 2 + config.halve)
        cells_V = torch.from_numpy(here.mask.ravel().nonzero()[0])
        near = _near(torch.from_numpy(here.mask.copy()))
        encoder, decoder = self.halves
        self.encoder = encoder(config, fields_width, sizes, near)
        self.imputer = Imputer(config.latent, fields_width)
        self.decoder = decoder(config, fields_width, sizes, cells_V, near)
        self.code_dropout = config.code_dropout
        self.year = nn.Sequential(
            nn.Linear(config.latent, 64), nn.SiLU(), nn.Linear(64, year_logits(year_head))
        )
        self.register_buffer("available_M", torch.ones(fields_width))

    def encode(self, volume_B1XYZ: Tensor, m_BM: Tensor, kept_BM: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log variance of q(z | volume, observed metadata), (B, D) each."""
        return self.encoder(volume_B1XYZ, m_BM, kept_BM * self.available_M)

    def impute(self, z_BD: Tensor, m_BM: Tensor, kept_BM: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log variance of every element of the metadata, (B, M) each."""
        return self.imputer(z_BD, m_BM, kept_BM * self.available_M)

    def decode(self, z_BD: Tensor, m_BM: Tensor) -> Decoded:
        """Decode codes with complete metadata; elements never observed in training are ignored."""
        return self.decoder(z_BD, m_BM * self.available_M)

    def forward(self, batch: Batch, kept_BM: Tensor, reversal: float = 0.0) -> Output:
        """Pass a batch through: codes and imputed values are sampled in training, means otherwise.

        Parameters
        ----------
        batch : Batch
        kept_BM : (B, M) tensor
            Mask of the observed metadata that the model is shown.
        reversal : float
            Lambda, the weight of the reversed gradient from the year head.
        """
        mean_BD, log_variance_BD = self.encode(batch.volume_B1XYZ, batch.metadata_BM, kept_BM)
        z_BD = self.draw(mean_BD, log_variance_BD)
        shown_BD = self._drop(z_BD)
        imputed = self.impute(shown_BD, batch.metadata_BM, kept_BM)
        # Detached: the imputer learns from hidden values alone, or it would become a second code.
        drawn_BM = self.draw(*imputed).detach()
        filled_BM = torch.where(kept_BM > 0, batch.metadata_BM, drawn_BM)
        return Output(
            mean_BD,
            log_variance_BD,
            self.decode(shown_BD, filled_BM),
            kept_BM,
            *imputed,
            self.year(reverse_gradient(z_BD, reversal)),
        )

    def _drop(self, z_BD: Tensor) -> Tensor:
        """Training: set the codes of some samples to 0, as a place for what m alone says."""
        if not self.training or not self.code_dropout:
            return z_BD
        return z_BD * (torch.rand(len(z_BD), 1, device=z_BD.device) >= self.code_dropout)


def _rooted(m_BM: Tensor, kept_BM: Tensor) -> Tensor:
    """Metadata and mask, (B, 2M), as signed roots: weights of topics are many and small.

    Four times the root brings topics to the size of a code's directions; a layer that starts
    small and decays would else hardly hear them.
    """
    return torch.cat([4 * m_BM.sign() * m_BM.abs().sqrt(), kept_BM], dim=1)


def _near(mask: Tensor) -> Tensor:
    """Cells of twice the edge that interpolation to the mask, (X, Y, Z) bool, reads."""
    touched = nn.functional.max_pool3d(mask[None, None].float(), 2, ceil_mode=True)
    return nn.functional.max_pool3d(touched, 3, stride=1, padding=1)[0, 0] > 0
