"""Measures of maps and codes: arrays in, one number a study out.

Maps are (S, V) over the cells of the brain mask unless said otherwise.
"""

from __future__ import annotations

import numpy as np

ACTIVE_VARIANCE = 0.01  # of a direction's posterior mean over studies (Burda et al. 2016, ICLR)


def pearson(maps: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Voxel-wise correlation of each map with its target, (S,); 0 for a constant map."""
    a = maps - maps.mean(1, keepdims=True)
    b = targets - targets.mean(1, keepdims=True)
    norm = np.sqrt((a * a).sum(1) * (b * b).sum(1))
    return (a * b).sum(1) / np.maximum(norm, 1e-20)


def mse(maps: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Mean squared error over voxels, (S,)."""
    return np.square(maps - targets).mean(1)


def psnr(errors: np.ndarray, data_range: float = 1.0) -> np.ndarray:
    """Peak signal-to-noise ratio in dB of mean squared errors, (S,)."""
    return 10 * np.log10(data_range**2 / np.maximum(errors, 1e-20))


def ssim(
    volumes: np.ndarray, targets: np.ndarray, mask: np.ndarray, data_range: float = 1.0
) -> np.ndarray:
    """Structural similarity in 3-D, averaged over the mask, (S,).

    Wang et al. 2004 with a Gaussian window of 1.5 voxels (11 wide), K1 = .01, K2 = .03.

    Parameters
    ----------
    volumes, targets : (S, X, Y, Z) arrays
    mask : (X, Y, Z) bool array
    """
    from scipy.ndimage import gaussian_filter

    def smooth(volume: np.ndarray) -> np.ndarray:
        return gaussian_filter(volume, 1.5, truncate=3.5, mode="constant")

    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    out = np.empty(len(volumes))
    for k, (x, y) in enumerate(zip(volumes, targets)):
        mean_x, mean_y = smooth(x), smooth(y)
        var_x, var_y = smooth(x * x) - mean_x**2, smooth(y * y) - mean_y**2
        cov = smooth(x * y) - mean_x * mean_y
        score = (2 * mean_x * mean_y + c1) * (2 * cov + c2)
        score /= (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
        out[k] = score[mask].mean()
    return out


def bits_per_peak(densities: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Information above the uniform map that a density gives about a study's peaks, (S,).

    Mean over the study's peaks of log2(p(cell) * V); NaN for a study without peaks.

    Parameters
    ----------
    densities : (S, V), rows sum to 1
    counts : (S, V), peaks in each cell
    """
    log_ratio = np.log2(np.maximum(densities, 1e-30) * densities.shape[1])
    peaks = counts.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (counts * log_ratio).sum(1) / peaks


def peak_auc(densities: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of a study's peaks against all cells of the mask, (S,).

    Mean over the study's peaks of the share of cells with a lower density, ties counting half;
    NaN for a study without peaks.

    Parameters
    ----------
    densities : (S, V)
    counts : (S, V), peaks in each cell
    """
    out = np.full(len(densities), np.nan)
    for k, (density, count) in enumerate(zip(densities, counts)):
        cells = np.flatnonzero(count)
        if len(cells):  # a few comparisons with every cell are quicker than sorting them
            ranks = [
                np.count_nonzero(density < here) + np.count_nonzero(density <= here)
                for here in density[cells]
            ]
            out[k] = count[cells] @ ranks / (2 * len(density) * count[cells].sum())
    return out


def normalise(maps: np.ndarray, uniform: float) -> np.ndarray:
    """Turn maps into densities: clipped at 0, summing to 1, with some uniform mass mixed in."""
    clipped = np.maximum(maps, 0)
    total = clipped.sum(1, keepdims=True)
    density = np.where(total > 0, clipped / np.where(total > 0, total, 1), 1 / maps.shape[1])
    return (1 - uniform) * density + uniform / maps.shape[1]


def scale_to_max(maps: np.ndarray) -> np.ndarray:
    """Divide each map by its maximum."""
    return maps / np.maximum(maps.max(1, keepdims=True), 1e-20)


def active_units(means: np.ndarray, threshold: float = ACTIVE_VARIANCE) -> int:
    """Count latent directions whose posterior mean varies over studies, (S, D) -> int.

    Burda et al. 2016, ICLR.
    """
    return int((means.var(0) > threshold).sum())


def mean_pairwise_correlation(maps: np.ndarray) -> float:
    """Mean correlation between the maps of different studies: 1 where all look alike."""
    corr = np.corrcoef(maps)
    return float(corr[np.triu_indices(len(maps), 1)].mean())


def balanced_accuracy(predicted: np.ndarray, true: np.ndarray) -> float:
    """Mean over the classes that occur of the share of their members that is predicted right."""
    return float(np.mean([(predicted[true == c] == c).mean() for c in np.unique(true)]))


def bootstrap(values: np.ndarray, draws: int = 2000, seed: int = 0) -> tuple[float, float, float]:
    """Return the mean over studies with its 95 % bootstrap interval, (mean, low, high)."""
    values = np.asarray(values, dtype=float)
    values = values[np.isfinite(values)]
    rng = np.random.default_rng(seed)
    means = values[rng.integers(0, len(values), (draws, len(values)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(values.mean()), float(low), float(high)


def interval(values: np.ndarray, digits: int = 5) -> list[float]:
    """Return what `bootstrap` does as results hold it, [mean, low, high], rounded."""
    return [round(number, digits) for number in bootstrap(values)]


def ratio_interval(sums: np.ndarray, counts: np.ndarray, digits: int = 5) -> list[float]:
    """Return sum / count over all studies, (S,) each, as `interval` does, studies drawn whole."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(sums), (2000, len(sums)))
    low, high = np.quantile(sums[drawn].sum(1) / counts[drawn].sum(1), [0.025, 0.975])
    return [round(float(v), digits) for v in (sums.sum() / counts.sum(), low, high)]
