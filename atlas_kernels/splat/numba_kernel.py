"""splat in numba, for installations without the C++ extension: fast, and in need of no compiler.

Takes NumPy arrays. Loop order: volume (these in parallel), peak, row (x, y), z; the gradient goes
peak by peak in parallel and finds again, voxel by voxel, what the other peaks of the study leave.
Each writes its own memory, so the bits do not depend on the number of threads.
Siblings: reference.py (the specification), csrc/splat/splat_cpu.cpp. Maths: docs/kernels/splat.md.
"""

# mypy: ignore-errors
# (numba takes the types from the call)
from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import config as numba_config
from numba import njit, prange, set_num_threads

from .problem import Array, Problem

FWHM_PER_SIGMA = 2 * math.sqrt(2 * math.log(2))
NOTHING_BEYOND = 40.0  # sigmas: a Gaussian is less there than a float64 can hold
SUM, MAX, UNION = range(3)


class Options(NamedTuple):
    """What a compiled function needs beside the arrays."""

    mode: int
    flat: bool  # spheres
    box: bool
    taper: bool
    truncate: float
    voxel_mm3: float  # what a normalised kernel's sum is multiplied with; 0 without normalising
    rounded: bool
    n_kernels: int
    width_of: int  # 0 kernels, 1 studies, 2 peaks


class Focus(NamedTuple):
    """One peak at one width: where and how it is drawn, and what its gradient needs."""

    x: float
    y: float
    z: float
    sigma: float
    radius2: float
    unit: float  # value = unit * (exp(-u) - tangent), u = |d|^2 / (2 sigma^2)
    edge: float  # tangent = edge * (1 + end - u)
    end: float
    pull_x: float
    pull_y: float
    pull_z: float
    pull_square: float


def forward(problem: Problem, out: Array, threads: int) -> None:
    """Write the volumes to ``out``, C-contiguous and of any dtype that ``splat`` gives."""
    exact = out.dtype in (np.float32, np.float64)
    volumes = out if exact else np.empty(out.shape, np.float32)
    set_num_threads(min(threads, numba_config.NUMBA_NUM_THREADS))
    shape = tuple(problem.shape)
    masked = problem.voxels is not None
    rows = volumes.reshape(problem.n_studies * problem.n_kernels, -1 if volumes.size else 0)
    _forward(*_arrays(problem), _voxels(problem), masked, shape, _options(problem), rows)
    if not exact:
        with np.errstate(over="ignore"):  # a float16 becomes infinite, as it should
            out[...] = np.minimum(volumes, 255) if out.dtype == np.uint8 else volumes


def backward(grad_out: Array, problem: Problem, threads: int) -> tuple[Array, Array, Array]:
    """Return the float64 gradients of ``peaks_mm`` (P, 3), ``weights`` (P,) and ``widths``."""
    set_num_threads(min(threads, numba_config.NUMBA_NUM_THREADS))
    if problem.voxels is not None:
        whole = np.zeros((*grad_out.shape[:2], math.prod(problem.shape)), grad_out.dtype)
        whole[:, :, problem.voxels] = grad_out
        grad_out = whole
    grads = np.zeros((len(problem.peaks_mm), problem.n_kernels, 5))
    volumes = grad_out.reshape(*grad_out.shape[:2], *problem.shape)
    _backward(*_arrays(problem), tuple(problem.shape), _options(problem), volumes, grads)
    grad_widths = np.zeros(len(problem.widths))
    if problem.widths_of == "kernels":
        grad_widths += grads[:, :, 4].sum(axis=0)
    elif problem.widths_of == "studies":
        study = np.repeat(np.arange(problem.n_studies), np.diff(problem.offsets))
        np.add.at(grad_widths, study, grads[:, 0, 4])
    else:
        grad_widths += grads[:, 0, 4]
    return grads[:, :, :3].sum(axis=1), grads[:, :, 3].sum(axis=1), grad_widths


def _arrays(problem: Problem) -> tuple[Array, ...]:
    def double(array: Array) -> Array:
        return np.ascontiguousarray(array, np.float64)

    peaks, affine = double(problem.peaks_mm), problem.affine
    weights = np.ones(len(peaks)) if problem.weights is None else double(problem.weights)
    offsets = np.ascontiguousarray(problem.offsets)
    steps, origin = np.array(affine[:11:5]), np.array(affine[3::4])
    return peaks, offsets, double(problem.widths), weights, steps, origin


def _voxels(problem: Problem) -> Array:
    voxels = np.empty(0, np.int64) if problem.voxels is None else problem.voxels
    return np.ascontiguousarray(voxels)


def _options(problem: Problem) -> Options:
    sphere = problem.splat_mode == "sphere"
    modes = {"sum": SUM, "max": MAX, "union": UNION, "sphere": SUM if problem.counts else MAX}
    voxel = abs(problem.affine[0] * problem.affine[5] * problem.affine[10])
    return Options(
        mode=modes[problem.splat_mode],
        flat=sphere,
        box=problem.support == "box",
        taper=problem.support == "taper" and problem.truncate < math.inf,
        truncate=problem.truncate,
        voxel_mm3={"peak": 0.0, "sum": 1.0, "mm3": voxel}[problem.normalize],
        rounded=problem.centre == "voxel",
        n_kernels=problem.n_kernels,
        width_of=("kernels", "studies", "peaks").index(problem.widths_of),
    )


# ---- one focus -----------------------------------------------------------------------------------


@njit(cache=True, error_model="numpy")
def _place(peak, step, origin, rounded):
    return origin + step * np.round((peak - origin) / step) if rounded else peak


@njit(cache=True, error_model="numpy")
def _focus(peaks, widths, steps, origin, options, study, kernel, p):
    width = widths[(kernel, study, p)[options.width_of]]
    x = _place(peaks[p, 0], steps[0], origin[0], options.rounded)
    y = _place(peaks[p, 1], steps[1], origin[1], options.rounded)
    z = _place(peaks[p, 2], steps[2], origin[2], options.rounded)
    if options.flat:
        return Focus(x, y, z, 1.0, width * width, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    sigma = width / FWHM_PER_SIGMA
    radius = options.truncate * sigma
    edge, end, unit = 0.0, 0.0, 1.0
    if options.taper:
        end = 0.5 * options.truncate**2
        edge = math.exp(-end)
        unit = 1 / (1 - edge * (1 + end))
    focus = Focus(x, y, z, sigma, radius * radius, unit, edge, end, 0.0, 0.0, 0.0, 0.0)
    return _normalized(focus, steps, origin, options) if options.voxel_mm3 else focus


@njit(cache=True, error_model="numpy")
def _normalized(focus, steps, origin, options):
    """Make the kernel sum to 1 over the voxels that it reaches on a grid without bounds."""
    reach = min(options.truncate, NOTHING_BEYOND) * focus.sigma
    xs = _unbounded(focus.x, steps[0], origin[0], reach)
    ys = _unbounded(focus.y, steps[1], origin[1], reach)
    zs = _unbounded(focus.z, steps[2], origin[2], reach)
    if options.box or options.truncate > NOTHING_BEYOND:
        sums = _sum_box(focus, reach, xs, ys, zs)
    else:
        sums = _sum_ball(focus, xs, ys, zs)
    total = sums[0] if sums[0] > 0 else 1.0  # no voxel within reach: no value
    unit = 1 / (total * options.voxel_mm3)
    pulls = (sums[1] / total, sums[2] / total, sums[3] / total, sums[4] / total)
    return Focus(*focus[:5], unit, focus.edge, focus.end, *pulls)


@njit(cache=True, error_model="numpy")
def _sum_ball(focus, xs, ys, zs):
    """Return the sums of the kernel, and of its slope times d and |d|^2."""
    total, x, y, z, stretch = 0.0, 0.0, 0.0, 0.0, 0.0
    for dx in xs:
        for dy in ys:
            for dz in zs:
                square = dx * dx + dy * dy + dz * dz
                if square > focus.radius2:
                    continue
                u = 0.5 * square / focus.sigma**2
                slope = math.exp(-u) - focus.edge
                total += slope - focus.edge * (focus.end - u)
                x += slope * dx
                y += slope * dy
                z += slope * dz
                stretch += slope * square
    return total, x, y, z, stretch


@njit(cache=True, error_model="numpy")
def _sum_box(focus, reach, xs, ys, zs):
    """Return the same for a kernel that is the product of three."""
    x, x_d, x_dd = _sum_axis(focus, reach, xs)
    y, y_d, y_dd = _sum_axis(focus, reach, ys)
    z, z_d, z_dd = _sum_axis(focus, reach, zs)
    stretch = x_dd * y * z + x * y_dd * z + x * y * z_dd
    return x * y * z, x_d * y * z, x * y_d * z, x * y * z_d, stretch


@njit(cache=True, error_model="numpy")
def _sum_axis(focus, reach, mm):
    one, d, dd = 0.0, 0.0, 0.0
    for away in mm:
        if away * away <= reach * reach:
            gauss = math.exp(-0.5 * away * away / focus.sigma**2)
            one += gauss
            d += gauss * away
            dd += gauss * away * away
    return one, d, dd


@njit(cache=True, error_model="numpy")
def _unbounded(place, step, origin, reach):
    """Distances, mm, to the voxels in reach of an axis without ends, and a few more."""
    centre, far = np.round((place - origin) / step), int(reach / abs(step)) + 2
    return (origin + step * (centre + np.arange(-far, far + 1))) - place


@njit(cache=True, error_model="numpy")
def _covers(focus, box, dx, dy, dz):
    if box:
        return max(dx * dx, dy * dy, dz * dz) <= focus.radius2
    return dx * dx + dy * dy + dz * dz <= focus.radius2


@njit(cache=True, error_model="numpy")
def _span(place, step, origin, size, radius2):
    """First voxel of an axis in reach, and the one after the last."""
    half = math.sqrt(radius2) / abs(step)
    centre = (place - origin) / step
    begin = int(min(max(np.floor(centre - half), 0.0), size))
    end = int(min(max(np.ceil(centre + half) + 1, 0.0), size))
    while begin < end and ((origin + step * begin) - place) ** 2 > radius2:
        begin += 1
    while begin < end and ((origin + step * (end - 1)) - place) ** 2 > radius2:
        end -= 1
    return begin, max(begin, end)


@njit(cache=True, error_model="numpy")
def _tables(place, step, origin, begin, end, focus, flat):
    """Distances, mm, along an axis, and the exponential of each."""
    mm, gauss = np.empty(end - begin), np.ones(end - begin)
    for i in range(end - begin):
        mm[i] = (origin + step * (begin + i)) - place
        if not flat:
            gauss[i] = math.exp(-0.5 * mm[i] * mm[i] / focus.sigma**2)
    return mm, gauss


# ---- forward -------------------------------------------------------------------------------------


@njit(cache=True, error_model="numpy", parallel=True)
def _forward(peaks, offsets, widths, weights, steps, origin, voxels, masked, shape, options, rows):
    for item in prange(rows.shape[0]):
        study, kernel = item // options.n_kernels, item % options.n_kernels
        drawn = np.empty(shape[0] * shape[1] * shape[2], rows.dtype) if masked else rows[item]
        drawn[:] = 0
        volume = drawn.reshape(shape)
        for p in range(offsets[study], offsets[study + 1]):
            focus = _focus(peaks, widths, steps, origin, options, study, kernel, p)
            _draw(focus, weights[p] * focus.unit, steps, origin, options, volume)
        if masked:
            for i in range(len(voxels)):
                rows[item, i] = drawn[voxels[i]]


@njit(cache=True, error_model="numpy")
def _draw(focus, height, steps, origin, options, volume):
    x0, x1 = _span(focus.x, steps[0], origin[0], volume.shape[0], focus.radius2)
    y0, y1 = _span(focus.y, steps[1], origin[1], volume.shape[1], focus.radius2)
    z0, z1 = _span(focus.z, steps[2], origin[2], volume.shape[2], focus.radius2)
    if x0 == x1 or y0 == y1 or z0 == z1:
        return
    mm_x, gauss_x = _tables(focus.x, steps[0], origin[0], x0, x1, focus, options.flat)
    mm_y, gauss_y = _tables(focus.y, steps[1], origin[1], y0, y1, focus, options.flat)
    mm_z, gauss_z = _tables(focus.z, steps[2], origin[2], z0, z1, focus, options.flat)
    gauss, square_z = gauss_z.astype(volume.dtype), mm_z * mm_z
    limit = math.inf if options.box else focus.radius2  # a box covers all of its tables
    per = 0.5 / focus.sigma**2
    for i in range(x1 - x0):
        for j in range(y1 - y0):
            square = mm_x[i] * mm_x[i] + mm_y[j] * mm_y[j]
            if square > limit:
                continue
            row = volume[x0 + i, y0 + j, z0:z1]
            scale = height * gauss_x[i] * gauss_y[j]
            if focus.edge == 0:
                _combine(
                    row, volume.dtype.type(scale), gauss, square, square_z, limit, options.mode
                )
                continue
            base = -height * focus.edge * (1 + focus.end - per * square)
            rise = height * focus.edge * per
            values = (scale * gauss_z + (base + rise * square_z)).astype(volume.dtype)
            _combine(row, volume.dtype.type(1), values, square, square_z, limit, options.mode)


@njit(cache=True, error_model="numpy")
def _combine(row, scale, values, square, square_z, limit, mode):
    """Add scale * values to a row, in the mode's way, where the kernel covers its voxels."""
    nothing = scale - scale
    if mode == SUM:
        for k in range(len(row)):
            row[k] += scale * values[k] if square + square_z[k] <= limit else nothing
    elif mode == MAX:
        for k in range(len(row)):
            value = scale * values[k] if square + square_z[k] <= limit else nothing
            row[k] = value if value > row[k] else row[k]
    else:
        for k in range(len(row)):
            value = scale * values[k] if square + square_z[k] <= limit else nothing
            row[k] += value * (1 - row[k])


# ---- backward ------------------------------------------------------------------------------------


@njit(cache=True, error_model="numpy", parallel=True)
def _backward(peaks, offsets, widths, weights, steps, origin, shape, options, grad_out, grads):
    """Write to (P, K, 5): gradients of a peak's coordinates, weight and width."""
    for p in prange(len(peaks)):
        study = np.searchsorted(offsets, p, side="right") - 1
        for kernel in range(options.n_kernels):
            first, last = offsets[study], offsets[study + 1]
            foci = [
                _focus(peaks, widths, steps, origin, options, study, kernel, q)
                for q in range(first, last)
            ]
            sums = _moments(
                foci,
                p - first,
                weights[first:last],
                steps,
                origin,
                options,
                grad_out[study, kernel],
            )
            focus = foci[p - first]
            slope = weights[p] * focus.unit / focus.sigma**2
            grads[p, kernel, 3] = focus.unit * sums[0]
            stretch = sums[4] - sums[0] * focus.pull_square
            grads[p, kernel, 4] = slope / focus.sigma * stretch / FWHM_PER_SIGMA
            if not options.rounded:
                grads[p, kernel, 0] = slope * (sums[1] - sums[0] * focus.pull_x)
                grads[p, kernel, 1] = slope * (sums[2] - sums[0] * focus.pull_y)
                grads[p, kernel, 2] = slope * (sums[3] - sums[0] * focus.pull_z)


@njit(cache=True, error_model="numpy")
def _moments(foci, own, weights, steps, origin, options, grad):
    """Sum a peak's share of ``grad`` times its kernel, and its slope times d and |d|^2."""
    focus = foci[own]
    x0, x1 = _span(focus.x, steps[0], origin[0], grad.shape[0], focus.radius2)
    y0, y1 = _span(focus.y, steps[1], origin[1], grad.shape[1], focus.radius2)
    z0, z1 = _span(focus.z, steps[2], origin[2], grad.shape[2], focus.radius2)
    kernel, x, y, z, stretch = 0.0, 0.0, 0.0, 0.0, 0.0
    for i in range(x0, x1):
        for j in range(y0, y1):
            for k in range(z0, z1):
                at = (origin[0] + steps[0] * i, origin[1] + steps[1] * j, origin[2] + steps[2] * k)
                dx, dy, dz = at[0] - focus.x, at[1] - focus.y, at[2] - focus.z
                if not _covers(focus, options.box, dx, dy, dz):
                    continue
                flow = _share(foci, own, weights, at, options) * grad[i, j, k]
                square = dx * dx + dy * dy + dz * dz
                u = 0.5 * square / focus.sigma**2
                slope = math.exp(-u) - focus.edge
                kernel += flow * (slope - focus.edge * (focus.end - u))
                x += flow * slope * dx
                y += flow * slope * dy
                z += flow * slope * dz
                stretch += flow * slope * square
    return kernel, x, y, z, stretch


@njit(cache=True, error_model="numpy")
def _share(foci, own, weights, at, options):
    """Return the derivative of a voxel by the value of one of its peaks."""
    if options.mode == SUM:
        return 1.0
    if options.mode == UNION:
        rest = 1.0
        for q in range(len(foci)):
            if q != own:
                rest *= 1 - weights[q] * _value(foci[q], at, options.box)
        return rest
    value = weights[own] * _value(foci[own], at, options.box)
    for q in range(len(foci)):
        other = weights[q] * _value(foci[q], at, options.box)
        if other > value or (other == value and q < own):
            return 0.0
    return 1.0 if value > 0 else 0.0


@njit(cache=True, error_model="numpy")
def _value(focus, at, box):
    dx, dy, dz = at[0] - focus.x, at[1] - focus.y, at[2] - focus.z
    if not _covers(focus, box, dx, dy, dz):
        return 0.0
    u = 0.5 * (dx * dx + dy * dy + dz * dz) / focus.sigma**2
    return focus.unit * (math.exp(-u) - focus.edge * (1 + focus.end - u))
