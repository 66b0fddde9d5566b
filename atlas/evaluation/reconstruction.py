"""Task (c) of the benchmark: a whole study's smoothed map (maximum 1) from what a model kept of it.

Beside PCA of the same number of latents, which pays no rate, and beside PCA quantised to a rate.
A density that a predictor gives may first be smoothed by a Gaussian, whose width is chosen by r on
validation studies: how sharp it is is its own choice, and no claim about the kernel of the target.
Then a floor, a share of its maximum, may be taken off and what falls below 0 cut, as PCA's maps are
cut at 0: a density is nowhere 0, and SSIM is mostly of empty places. The floor is the one under
which r + SSIM is largest on validation; PCA of the same size has a row with a floor of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from atlas import metrics, progress, space

from .baselines import PCA
from .protocol import RESOLUTION, Benchmark, Predictor, check, smooth

FWHM_MM = (10.0, 16.0)
SIZES = (16, 32, 64, 128, 256)
RATES = (8.0, 20.0, 40.0, 60.0)  # nats
SMOOTHING = (0.0, 6.0, 8.0, 10.0, 12.0, 16.0)  # mm, tried on validation
FLOORS = (0.0, 0.02, 0.05, 0.1)  # of the maximum, tried on validation
_SSIM_STUDIES, _VAL_STUDIES, _BLOCK, _MORE = 400, 200, 128, 64

Measured = dict[str, np.ndarray]
Source = Callable[[slice], np.ndarray]  # some of the scored studies -> their maps


class RatePCA:
    """PCA whose coordinates are sent through a scalar quantiser and an entropy code.

    Coordinate k of a study, ``z_k``, is sent as ``q_k = round(z_k / step)`` and received as the
    mean coordinate of the studies of that ``q_k``. With ``p_k`` the frequencies (1/2 added to every
    value that occurs, and to one for all others), a study costs ``R = - sum_k ln p_k(q_k)`` nats.
    One step for all directions is reverse water-filling (Cover & Thomas 2006, ch. 10.3): a
    direction that varies much less than a step always sends 0 and costs nothing. The step is that
    at which a study costs the wanted rate on average.

    Parameters
    ----------
    codes : (n, K) array
        Coordinates that means, frequencies and step are taken from: of the validation studies,
        because those that the components were fitted to spread wider than any others.
    rate : float
        Nats a study.
    """

    def __init__(self, codes: np.ndarray, rate: float) -> None:
        low, high = np.log(codes.std() / 100), np.log(np.abs(codes).max() * 4)
        for _ in range(20):
            self._fit(codes, float(np.exp((low + high) / 2)))
            if self.rate(codes).mean() > rate:
                low = np.log(self._step)
            else:
                high = np.log(self._step)

    def _fit(self, codes: np.ndarray, step: float) -> None:
        self._step = step
        q = np.rint(codes / step).astype(np.int64)
        self._low, self._high = int(q.min()), int(q.max())
        values = self._high - self._low + 1
        flat = ((q - self._low) + values * np.arange(q.shape[1])).ravel()
        shape, size = (q.shape[1], values), q.shape[1] * values
        counts = np.bincount(flat, minlength=size).reshape(shape)
        sums = np.bincount(flat, codes.ravel(), minlength=size).reshape(shape)
        total = len(codes) + 0.5 * ((counts > 0).sum(1, keepdims=True) + 1)
        self._cost = -np.log(np.where(counts > 0, counts + 0.5, 0.5) / total)
        middle = step * np.arange(self._low, self._high + 1)
        self._centre = np.where(counts > 0, sums / np.maximum(counts, 1), middle)

    def _send(self, codes: np.ndarray) -> np.ndarray:
        return np.clip(np.rint(codes / self._step).astype(np.int64), self._low, self._high)

    def rate(self, codes: np.ndarray) -> np.ndarray:
        """Nats that each study costs, (S,)."""
        return self._cost[np.arange(codes.shape[1]), self._send(codes) - self._low].sum(1)

    def receive(self, codes: np.ndarray) -> np.ndarray:
        """Return the coordinates after the channel, (S, K) float32."""
        received = self._centre[np.arange(codes.shape[1]), self._send(codes) - self._low]
        return received.astype(np.float32)


def score(bench: Benchmark, predictors: Sequence[Predictor], split: str) -> dict[str, Any]:
    """Score PCA and predictors at each target width.

    Returns
    -------
    dict
        "peers" and "runs": row -> "r 10", "ssim 10", "r 16", "ssim 16" as [mean, low, high] over
        studies (SSIM over 400 of them), "nats" where a row has a rate (quantised PCA: at each
        width), for runs "smoothed 10" and "smoothed 16", mm, "floor 10" and "floor 16".
    """
    rows, val = bench.rows(split), bench.rows("val")
    some = np.random.default_rng(0).permutation(len(val))[:_VAL_STUDIES]
    rates = {p.name: _rate_of(p, bench, rows) for p in predictors}
    channels = {*RATES, *(round(rate, 1) for rate in rates.values() if rate)}
    steps = len(FWHM_MM) * (2 + len(SIZES) + len(channels)) + len(predictors) * (1 + len(FWHM_MM))
    peers: dict[str, dict[str, Any]] = {}
    ours: dict[str, dict[str, Any]] = {p.name: {} for p in predictors}
    with progress.track(f"(c) scoring {split}", steps) as ticker:
        densities = {}
        for p in predictors:
            densities[p.name] = tuple(
                np.concatenate([
                    check(p, p.predict(bench.show(block, "c")), len(block))
                    for block in np.array_split(which, -(-len(which) // _BLOCK))
                ])
                for which in (val[some], rows)
            )  # fmt: skip
            ticker.advance()
        for fwhm in FWHM_MM:
            target = _maps(bench, rows, fwhm)
            val_target = _maps(bench, val[some], fwhm)
            for name, source, nats in _pca_rows(bench, fwhm, target, predictors, rates, val[some]):
                row = peers.setdefault(name, {})
                row |= _measure(source, target, fwhm)
                if nats is not None:
                    row[f"nats {fwhm:g}"] = nats
                ticker.advance()
            for p in predictors:
                on_val, on_test = densities[p.name]
                width = _choose_width(on_val, val_target)
                floor = _choose_floor(_scaled(on_val, width)(slice(None)), val_target)
                row = ours[p.name]
                row |= _measure(_floored(_scaled(on_test, width), floor), target, fwhm)
                row |= {f"smoothed {fwhm:g}": width, f"floor {fwhm:g}": floor}
                if rates[p.name] is not None:
                    row["nats"] = round(float(rates[p.name] or 0), 2)
                ticker.advance()
    return {"peers": peers, "runs": ours}


def _rate_of(predictor: Predictor, bench: Benchmark, rows: np.ndarray) -> float | None:
    rate = getattr(predictor, "rate", None)
    return None if rate is None else float(np.mean(rate(bench.show(rows, "c"))))


def _maps(bench: Benchmark, rows: np.ndarray, fwhm: float) -> np.ndarray:
    return metrics.scale_to_max(smooth(bench.counts(rows, "all"), fwhm))


def _pca_rows(
    bench: Benchmark,
    fwhm: float,
    target: np.ndarray,
    predictors: Sequence[Predictor],
    rates: dict[str, float | None],
    some: np.ndarray,
) -> list[tuple[str, Source, float | None]]:
    """Fit PCA; return its rows: name, maps, nats."""
    train = _maps(bench, bench.rows("train"), fwhm)
    sizes = {*SIZES, *(getattr(p, "latent", 0) for p in predictors)} - {0}
    most = min(max(sizes), len(train) - 1)
    pca = PCA(train, min(most + _MORE, len(train) - 1))  # the last of a random basis are rough
    del train
    on_val, codes = (
        pca.encode(maps)[:, :most] for maps in (_maps(bench, bench.rows("val"), fwhm), target)
    )

    def source(kept: np.ndarray) -> Source:
        return lambda part: np.maximum(pca.decode(kept[part]), 0)

    out: list[tuple[str, Source, float | None]] = [("mean map", source(codes[:, :0]), None)]
    kept = sorted({min(size, most) for size in sizes})
    out += [(f"PCA-{size}", source(codes[:, :size]), None) for size in kept]
    val_target = _maps(bench, some, fwhm)
    for size in sorted({getattr(p, "latent", 0) for p in predictors} & set(kept)):
        val_maps = metrics.scale_to_max(source(pca.encode(val_target)[:, :size])(slice(None)))
        floor = _choose_floor(val_maps, val_target)
        maps = _floored(_to_max(source(codes[:, :size])), floor)
        out.append((f"PCA-{size} less a floor", maps, None))
    for nats in sorted({*RATES, *(round(rate, 1) for rate in rates.values() if rate)}):
        channel = RatePCA(on_val, nats)
        cost = round(float(channel.rate(codes).mean()), 2)
        out.append((f"PCA at {nats:g} nats", source(channel.receive(codes)), cost))
    return out


def _scaled(density: np.ndarray, width: float) -> Source:
    """Return a source of densities smoothed by `width` (0: as they are) and scaled to maximum 1."""

    def source(part: slice) -> np.ndarray:
        maps = density[part]
        return metrics.scale_to_max(smooth(maps, width) if width else maps)

    return source


def _to_max(source: Source) -> Source:
    return lambda part: metrics.scale_to_max(source(part))


def _floored(source: Source, floor: float) -> Source:
    """Return a source of maps less a floor, cut at 0, scaled to maximum 1 again."""
    return lambda part: np.maximum(source(part) - np.float32(floor), 0) / np.float32(1 - floor)


def _choose_floor(maps: np.ndarray, target: np.ndarray) -> float:
    """Return the floor under which r + SSIM of maps, maximum 1, is largest."""
    here = space.load(RESOLUTION)
    volumes = here.volume(target)

    def merit(floor: float) -> float:
        found = _floored(lambda part: maps[part], floor)(slice(None))
        ssim = metrics.ssim(here.volume(found), volumes, here.mask).mean()
        return float(metrics.pearson(found, target).mean() + ssim)

    return max(FLOORS, key=merit)


def _choose_width(density: np.ndarray, target: np.ndarray) -> float:
    """Return the smoothing, mm, under which densities correlate best with their maps."""
    everything = slice(None)
    found = [
        metrics.pearson(_scaled(density, width)(everything), target).mean() for width in SMOOTHING
    ]
    return SMOOTHING[int(np.argmax(found))]


def _measure(source: Source, target: np.ndarray, fwhm: float) -> dict[str, list[float]]:
    """Take r over all studies and SSIM over `_SSIM_STUDIES` of them."""
    here = space.load(RESOLUTION)
    chosen = np.zeros(len(target), bool)
    chosen[np.random.default_rng(0).permutation(len(target))[:_SSIM_STUDIES]] = True
    r, ssim = [], []
    for start in range(0, len(target), _BLOCK):
        part = slice(start, start + _BLOCK)
        maps, true, mine = source(part), target[part], chosen[part]
        r.append(metrics.pearson(maps, true))
        volumes = here.volume(np.ascontiguousarray(maps[mine])), here.volume(true[mine])
        ssim.append(metrics.ssim(*volumes, here.mask))
    return {
        f"r {fwhm:g}": metrics.interval(np.concatenate(r), 4),
        f"ssim {fwhm:g}": metrics.interval(np.concatenate(ssim), 4),
    }
