"""The first two Triton kernels of splat: they describe the foci, which are peaks at a width.

    focus        where each peak is drawn at each width, how far it reaches, how high it is
    normalize    the sum of each kernel over a grid without bounds, where it must become 1

The others, in triton_kernel.py, read what these write. Called by triton_launch.py.
"""

import triton
import triton.language as tl

# Of these numbers Triton need not compile a version for those that 16 divides, nor for 1.
PLAIN = ("peaks", "foci", "kernels", "studies", "search", "total", "elements", "nx", "ny", "nz")

FWHM_PER_SIGMA = tl.constexpr(2.3548200450309493)  # 2 sqrt(2 ln 2)
LATTICE_REACH = tl.constexpr(10.0)  # sigmas, as in reference.py
INFINITE = tl.constexpr(float("inf"))

# A focus (a peak at a width) has a row of float64 numbers: x, y, z in mm, then
RECORD = tl.constexpr(16)
REACH2, SIGMA, WEIGHT = tl.constexpr(3), tl.constexpr(4), tl.constexpr(5)
UNIT = tl.constexpr(6)  # value = weight * unit * (gauss - tangent)
PULL = tl.constexpr(7)  # what normalising takes off the gradient: along x, y, z and of |d|^2
# and, in `boxes` (6, K P), the first and last voxels along x, y, z that it may cover.


# ---- records ------------------------------------------------------------------------------------


@triton.jit
def study_of(offsets, p, studies, search):
    """Return the study of a peak: the last that starts no later."""
    low = p * 0
    high = low + studies
    for _ in range(search):
        middle = (low + high) // 2
        starts = tl.load(offsets + middle) <= p
        low = tl.where(starts, middle, low)
        high = tl.where(starts, high, middle)
    return low


@triton.jit
def members(offsets, study, peaks):
    """Return the first peak of a study and the one after its last; both exist."""
    first = tl.minimum(tl.maximum(tl.load(offsets + study), 0), peaks)
    return first, tl.minimum(tl.maximum(tl.load(offsets + study + 1), first), peaks)


@triton.jit
def _rounded(x):
    """Half to even; from 2^51 on a float64 has no halves."""
    big: tl.constexpr = 6755399441055744.0  # 1.5 * 2^52
    return tl.where(tl.abs(x) < 2251799813685248.0, (x + big) - big, x)


@triton.jit
def _axis(mm, origin, step, size, reach, ROUNDED: tl.constexpr):
    """Return where a focus is drawn, and the voxels of a bounded axis that it may cover."""
    place = (mm - origin) / step
    if ROUNDED:
        place = _rounded(place)
        mm = origin + step * place
    half = tl.abs(reach / step)
    half += 1e-3 + 1e-12 * (tl.abs(place) + half)  # division only guesses
    first = tl.minimum(tl.maximum(tl.ceil(place - half), 0.0), size.to(tl.float64))
    last = tl.minimum(tl.maximum(tl.floor(place + half), -1.0), (size - 1).to(tl.float64))
    return mm, first.to(tl.int32), last.to(tl.int32)


@triton.jit(do_not_specialize=PLAIN)
def focus_kernel(
    peaks_mm, offsets, widths, weights, records, boxes, peaks, foci, studies, search, nx, ny, nz,
    origin_x: tl.float64, origin_y: tl.float64, origin_z: tl.float64,
    step_x: tl.float64, step_y: tl.float64, step_z: tl.float64,
    truncate: tl.float64, unit: tl.float64,
    OF: tl.constexpr, SPHERE: tl.constexpr, ROUNDED: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """Describe the foci, kernel by kernel. One with a bad number reaches everything, with NaN."""
    f = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    real = f < foci
    f = tl.where(real, f, 0)
    kernel = f // peaks
    p = f - kernel * peaks
    if OF == "kernels":
        owner = kernel
    elif OF == "studies":
        owner = study_of(offsets, p, studies, search)
    else:
        owner = p
    width = tl.load(widths + owner, mask=real, other=1).to(tl.float64)
    x = tl.load(peaks_mm + 3 * p, mask=real, other=0).to(tl.float64)
    y = tl.load(peaks_mm + 3 * p + 1, mask=real, other=0).to(tl.float64)
    z = tl.load(peaks_mm + 3 * p + 2, mask=real, other=0).to(tl.float64)
    weight = tl.full([SIZE], 1, tl.float64)
    if weights is not None:
        weight = tl.load(weights + p, mask=real, other=0).to(tl.float64)
    good = (tl.abs(x) < INFINITE) & (tl.abs(y) < INFINITE) & (tl.abs(z) < INFINITE)
    good = good & (tl.abs(weight) < INFINITE) & (width > 0) & (width < INFINITE)
    x, y, z = tl.where(good, x, 0), tl.where(good, y, 0), tl.where(good, z, 0)
    width = tl.where(good, width, 1)
    sigma = width / FWHM_PER_SIGMA
    reach = width if SPHERE else sigma * truncate
    x, x_first, x_last = _axis(x, origin_x, step_x, nx, reach, ROUNDED)
    y, y_first, y_last = _axis(y, origin_y, step_y, ny, reach, ROUNDED)
    z, z_first, z_last = _axis(z, origin_z, step_z, nz, reach, ROUNDED)
    seen = (x_first <= x_last) & (y_first <= y_last) & (z_first <= z_last)

    to = records + f * RECORD
    tl.store(to, x, mask=real)
    tl.store(to + 1, y, mask=real)
    tl.store(to + 2, z, mask=real)
    tl.store(to + REACH2, tl.where(good, reach * reach, INFINITE), mask=real)
    tl.store(to + SIGMA, sigma, mask=real)
    tl.store(to + WEIGHT, tl.where(good, weight, float("nan")), mask=real)
    tl.store(to + UNIT, tl.zeros([SIZE], tl.float64) + unit, mask=real)
    for i in tl.static_range(4):
        tl.store(to + PULL + i, tl.zeros([SIZE], tl.float64), mask=real)
    tl.store(boxes + f, tl.where(good, x_first, 0), mask=real)
    tl.store(boxes + foci + f, tl.where(good, tl.where(seen, x_last, -1), nx - 1), mask=real)
    tl.store(boxes + 2 * foci + f, tl.where(good, y_first, 0), mask=real)
    tl.store(boxes + 3 * foci + f, tl.where(good, y_last, ny - 1), mask=real)
    tl.store(boxes + 4 * foci + f, tl.where(good, z_first, 0), mask=real)
    tl.store(boxes + 5 * foci + f, tl.where(good, z_last, nz - 1), mask=real)


@triton.jit
def covered_by(dx, dy, dz, square, reach2, BOX: tl.constexpr):
    """Say which voxels a focus covers, as reference.py does."""
    if BOX:
        covered = (dx * dx <= reach2) & (dy * dy <= reach2) & (dz * dz <= reach2)
    else:
        covered = square <= reach2
    return covered


@triton.jit
def kernel_of(gauss, u, EDGE: tl.constexpr, END: tl.constexpr):
    """Return the kernel, less the factor `unit`, and its slope."""
    slope = gauss
    if EDGE > 0:
        slope = gauss - EDGE
        gauss = slope - EDGE * (END - u)
    return gauss, slope


@triton.jit
def _lattice(mm, origin, step, reach):
    """Return the voxel nearest to a focus on an axis without ends, and how many to each side."""
    return _rounded((mm - origin) / step), tl.floor(tl.abs(reach / step)).to(tl.int32) + 1


@triton.jit(do_not_specialize=PLAIN)
def normalize_kernel(
    records, boxes, foci,
    origin_x: tl.float64, origin_y: tl.float64, origin_z: tl.float64,
    step_x: tl.float64, step_y: tl.float64, step_z: tl.float64,
    truncate: tl.float64, diagonal: tl.float64, voxel_mm3: tl.float64,
    BOX: tl.constexpr, EDGE: tl.constexpr, END: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Put into a record what makes its kernel sum to 1; `diagonal` is that of two voxels, mm."""
    f = tl.program_id(0).to(tl.int64)
    record = records + f * RECORD
    px, py, pz = tl.load(record), tl.load(record + 1), tl.load(record + 2)
    reach2, sigma = tl.load(record + REACH2), tl.load(record + SIGMA)
    reach = tl.minimum(sigma * truncate, tl.maximum(sigma * LATTICE_REACH, diagonal))
    x_mid, rx = _lattice(px, origin_x, step_x, reach)
    y_mid, ry = _lattice(py, origin_y, step_y, reach)
    z_mid, rz = _lattice(pz, origin_z, step_z, reach)
    rows = (2 * rx + 1) * (2 * ry + 1)
    # What lies outside of the grid, or is bad, needs no sum.
    seen = (reach2 < INFINITE) | (truncate == INFINITE)
    seen = seen & (tl.load(boxes + f) <= tl.load(boxes + foci + f))
    rows = tl.where(seen, rows, 0)
    rate = -0.5 / (sigma * sigma)
    total = tl.zeros([ROWS, COLUMNS], tl.float64)
    of_x = tl.zeros([ROWS, COLUMNS], tl.float64)
    of_y = tl.zeros([ROWS, COLUMNS], tl.float64)
    of_z = tl.zeros([ROWS, COLUMNS], tl.float64)
    of_square = tl.zeros([ROWS, COLUMNS], tl.float64)
    for start in range(0, rows, ROWS):
        row = start + tl.arange(0, ROWS)
        i = row // (2 * ry + 1)
        j = row - i * (2 * ry + 1)
        dx = (origin_x + step_x * (x_mid + (i - rx).to(tl.float64)))[:, None] - px
        dy = (origin_y + step_y * (y_mid + (j - ry).to(tl.float64)))[:, None] - py
        gauss_xy = tl.exp((dx * dx + dy * dy) * rate)
        for begin in range(0, 2 * rz + 1, COLUMNS):
            k = begin + tl.arange(0, COLUMNS)
            dz = (origin_z + step_z * (z_mid + (k - rz).to(tl.float64)))[None, :] - pz
            square = dx * dx + dy * dy + dz * dz
            covered = covered_by(dx, dy, dz, square, reach2, BOX)
            covered = covered & (row < rows)[:, None] & (k < 2 * rz + 1)[None, :]
            gauss = gauss_xy * tl.exp(dz * dz * rate)
            value, slope = kernel_of(gauss, square * -rate, EDGE, END)
            slope = tl.where(covered, slope, 0)
            total += tl.where(covered, value, 0)
            of_x += slope * dx
            of_y += slope * dy
            of_z += slope * dz
            of_square += slope * square
    whole = tl.sum(total)
    drawn = whole > 0  # else no voxel is in reach
    whole = tl.where(drawn, whole, 1)
    tl.store(record + UNIT, 1 / (whole * voxel_mm3))
    tl.store(record + PULL, tl.sum(of_x) / whole)
    tl.store(record + PULL + 1, tl.sum(of_y) / whole)
    tl.store(record + PULL + 2, tl.sum(of_z) / whole)
    tl.store(record + PULL + 3, tl.sum(of_square) / whole)
