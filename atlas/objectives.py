"""The loss: Batch, Output, weights -> Losses."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .config import ObjectiveConfig
from .contracts import Batch, Decoded, Output
from .metadata import YEAR_BINS


class Losses(NamedTuple):
    """Terms of the loss, scalars.

    Attributes
    ----------
    total : what is minimised
    reconstruction : nats a study ("peaks"), mean squared error ("mse") or hundredths of
        correlation that are missing ("correlation")
    kl : rate of the code in nats, unweighted
    uncertainty : mean Gaussian negative log-likelihood of a voxel of the smoothed map
    imputation : mean Gaussian negative log-likelihood of a hidden metadata element
    year : cross-entropy of the year head, 0 without a head or a known year
    """

    total: Tensor
    reconstruction: Tensor
    kl: Tensor
    uncertainty: Tensor
    imputation: Tensor
    year: Tensor


def losses(
    output: Output,
    batch: Batch,
    config: ObjectiveConfig,
    mask: Tensor,
    beta: float,
    year_weight: float,
) -> Losses:
    """Compute every term.

    Parameters
    ----------
    output, batch
        What the model made of what.
    config : ObjectiveConfig
    mask : (X, Y, Z) bool tensor
    beta : float
        Weight of the KL term.
    year_weight : float
        Weight of the year head's cross-entropy; the reversal's lambda sits in the model.
    """
    target_BV = relative_map(batch.target_B1XYZ, mask)
    if config.reconstruction == "peaks":
        reconstruction = peak_nll(output.decoded, batch.counts_BV, config.temper).mean()
    elif config.reconstruction == "correlation":
        reconstruction = 100 * (1 - correlation(relative_density(output.decoded), target_BV)).mean()
    else:
        reconstruction = F.mse_loss(relative_density(output.decoded), target_BV)
    kl = kl_nats(output.mean_BD, output.log_variance_BD).sum(1).mean()
    uncertainty = voxel_nll(output.decoded, target_BV).mean()
    imputation = hidden_nll(output, batch)
    year = _year_loss(output.year_logits_BY, batch.year_bin_B)
    total = (
        reconstruction
        + beta * kl
        + config.uncertainty * uncertainty
        + config.imputation * imputation
        + year_weight * year
    )
    return Losses(total, reconstruction, kl, uncertainty, imputation, year)


def relative_map(volume_B1XYZ: Tensor, mask: Tensor) -> Tensor:
    """Turn volumes into maps over the mask, (B, V), in units of the uniform density (mean 1)."""
    values_BV = volume_B1XYZ[:, 0, mask]
    return values_BV / values_BV.mean(1, keepdim=True).clamp_min(1e-12)


def relative_density(decoded: Decoded) -> Tensor:
    """Return the decoded density in units of the uniform density, (B, V)."""
    return decoded.log_density_BV.exp() * decoded.log_density_BV.shape[1]


def peak_nll(decoded: Decoded, counts_BV: Tensor, temper: float = 0.5) -> Tensor:
    """Negative log-likelihood of a study's peaks, nats, (B,).

    Each peak is an independent draw from the decoded density (a multinomial given their number),
    and the mean over peaks counts by their number to the power `temper`, in units of a study of
    25 peaks, whose weight is 5 whatever the power. 1 would be the likelihood, were reported peaks
    independent; 0 makes all studies alike; the root lies between: a study of 400 must not
    outweigh twenty of 20.
    """
    peaks_B = counts_BV.sum(1).clamp_min(1)
    nats_B = -(counts_BV * decoded.log_density_BV).sum(1)
    return nats_B / peaks_B * (5 * (peaks_B / 25) ** temper)


def correlation(maps_BV: Tensor, target_BV: Tensor) -> Tensor:
    """Correlation of each map with its target over the mask, (B,); 0 for a constant one.

    Blind to scale, as comparisons of maps whose maximum is set to 1 are.
    """
    a_BV = maps_BV - maps_BV.mean(1, keepdim=True)
    b_BV = target_BV - target_BV.mean(1, keepdim=True)
    return F.cosine_similarity(a_BV, b_BV, dim=1)


def kl_nats(mean_BD: Tensor, log_variance_BD: Tensor) -> Tensor:
    """KL divergence of each latent direction from the standard normal prior, nats, (B, D)."""
    return 0.5 * (mean_BD.square() + log_variance_BD.exp() - 1 - log_variance_BD)


def voxel_nll(decoded: Decoded, target_BV: Tensor) -> Tensor:
    """Gaussian negative log-likelihood of the smoothed map around the decoded mean, (B, V).

    The mean is detached, so that this term cannot bend it; the trunk that both share learns from
    both.
    """
    error = target_BV - relative_density(decoded).detach()
    return 0.5 * (decoded.log_variance_BV + error.square() * torch.exp(-decoded.log_variance_BV))


def hidden_nll(output: Output, batch: Batch) -> Tensor:
    """Gaussian negative log-likelihood of the metadata that were observed but hidden, scalar."""
    hidden_BM = batch.observed_BM * (1 - output.kept_BM)
    error = batch.metadata_BM - output.imputed_mean_BM
    log_variance = output.imputed_log_variance_BM
    nll_BM = 0.5 * (log_variance + error.square() * torch.exp(-log_variance))
    return (nll_BM * hidden_BM).sum() / hidden_BM.sum().clamp_min(1)


def year_nll(logits_BY: Tensor, year_bin_B: Tensor) -> Tensor:
    """Negative log-likelihood of known year bins under either year head, nats, scalar.

    Ten logits are a softmax over the bins. Nine are of P(bin > k), k = 0 to 8, and each is a binary
    decision of its own (`atlas.models.layers.year_logits`): their cross-entropies add up.
    """
    if logits_BY.shape[1] == YEAR_BINS:
        return F.cross_entropy(logits_BY, year_bin_B)
    thresholds = torch.arange(YEAR_BINS - 1, device=year_bin_B.device)
    above_BY = (year_bin_B[:, None] > thresholds).to(logits_BY.dtype)
    nll_BY = F.binary_cross_entropy_with_logits(logits_BY, above_BY, reduction="none")
    return nll_BY.sum(1).mean()


def predicted_bin(logits_BY: Tensor) -> Tensor:
    """Return the year bin that either head says, (B,) int64.

    The likeliest of ten; the number of thresholds that the year is likelier above than not
    (Niu et al. 2016, CVPR).
    """
    if logits_BY.shape[1] == YEAR_BINS:
        return logits_BY.argmax(1)
    return (logits_BY > 0).sum(1)


def _year_loss(logits_BY: Tensor | None, year_bin_B: Tensor) -> Tensor:
    if logits_BY is None:
        return torch.zeros((), device=year_bin_B.device)
    known = year_bin_B >= 0
    if not known.any():
        return logits_BY.sum() * 0
    return year_nll(logits_BY[known], year_bin_B[known])
