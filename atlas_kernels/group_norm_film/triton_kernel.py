"""group_norm_film in Triton, over views (N, V, C) whose channels or whose voxels lie side by side.

The channels of x may be some of a wider buffer (N, V, row). Every group is split over many
programs; what each of them found is put together in an order that depends on the shape alone:

    statistics   mean and squared deviations of a channel in a stretch of voxels (part), then of
                 groups, or of channels (merge)
    apply        one read, one write
    backward     sums of dz = dL/dz and dz (x - mean) in a stretch of voxels (sums), of channels and
                 groups (finish), over the samples (parameters); then dx (gradient), for which z is
                 computed again

Everything is computed in the dtype of the statistics: values are cast as soon as they are loaded.
Called by triton_launch.py.
"""

import triton
import triton.language as tl

# Of these numbers Triton need not compile a version for those that 16 divides, nor for 1.
PLAIN = ("parts", "blocks", "tiles", "groups")


# ---- kernels: where a program works --------------------------------------------------------------


@triton.jit
def _place(pid, parts, blocks, LAST: tl.constexpr):
    """Return a program's sample, part of the voxels and block of channels, in order of memory."""
    pid = pid.to(tl.int64)
    sample = pid // (parts * blocks)
    if LAST:
        block, part = pid % blocks, pid // blocks % parts
    else:
        part, block = pid % parts, pid // parts % blocks
    return sample, part, block


@triton.jit
def _widths(channels, row, EIGHT: tl.constexpr):
    """Return both so that the compiler, which looks for 16 alone, knows that 8 divides them."""
    if EIGHT:
        channels, row = channels // 8 * 8, row // 8 * 8
    return channels, row


@triton.jit
def _shift(sample, block, voxels, channels, LAST: tl.constexpr):
    """Return by how much a channel's first voxel misses the multiple of 16 where its tiles start.

    With it, a tile of voxels that lie side by side is read 16 bytes at a time for any V.
    """
    return sample * 0 if LAST else (sample * channels + block) * voxels % 16


@triton.jit
def _offsets(sample, lanes, c, voxels, channels, row, LAST: tl.constexpr):
    """Return where the numbers of a tile are, lanes along 0 and channels along 1."""
    if LAST:
        offsets = (sample * voxels + lanes)[:, None] * row + c[None, :]
    else:  # the multiplication by 16 tells the compiler that addresses are aligned
        offsets = ((sample * channels + c) * voxels // 16 * 16)[None, :] + lanes[:, None]
    return offsets


@triton.jit
def _tile(sample, start, c, voxels, channels, shift, LAST: tl.constexpr, SIZE: tl.constexpr):
    """Return the lanes of a tile, which numbers of it exist, and whether all do."""
    lanes = start + tl.arange(0, SIZE)
    v = lanes - shift
    mask = ((v >= 0) & (v < voxels))[:, None] & (c < channels)[None, :]
    # Channels side by side are read by vectors under a mask too, so there it need not be known.
    whole = (start >= shift) & (start - shift + SIZE <= voxels) & (not LAST)
    return lanes, mask, whole


@triton.jit
def _load(pointers, mask, whole, number: tl.constexpr):
    if whole:  # noqa: SIM108 - the other form would do both
        value = tl.load(pointers)
    else:
        value = tl.load(pointers, mask=mask, other=0)
    return value.to(number)


@triton.jit
def _store(pointers, value, mask, whole):
    value = value.to(pointers.dtype.element_ty)
    if whole:
        tl.store(pointers, value)
    else:
        tl.store(pointers, value, mask=mask)


# ---- kernels: what a number needs to know of its channel -----------------------------------------


@triton.jit
def _film(gamma, sample, c, channels, gamma_row, number: tl.constexpr):
    """Return 1 + gamma of the channels."""
    film = tl.full(c.shape, 1, number)
    if gamma is not None:
        film += tl.load(gamma + sample * gamma_row + c, mask=c < channels, other=0).to(number)
    return film


@triton.jit
def _gain(weight, film, c, channels, number: tl.constexpr):
    """Return weight * (1 + gamma)."""
    if weight is not None:
        film *= tl.load(weight + c, mask=c < channels, other=0).to(number)
    return film


@triton.jit
def _affine(
    mean, rstd, weight, bias, gamma, beta, gamma_row, beta_row, sample, c, channels, groups
):  # fmt: skip
    """Return mean, scale and shift: z = (x - mean) * scale + shift."""
    number: tl.constexpr = mean.dtype.element_ty
    group, real = sample * groups + c // (channels // groups), c < channels
    film = _film(gamma, sample, c, channels, gamma_row, number)
    scale = _gain(weight, film, c, channels, number) * tl.load(rstd + group, mask=real, other=0)
    shift = tl.zeros(c.shape, number)
    if bias is not None:
        shift = film * tl.load(bias + c, mask=real, other=0).to(number)
    if beta is not None:
        shift += tl.load(beta + sample * beta_row + c, mask=real, other=0).to(number)
    return tl.load(mean + group, mask=real, other=0), scale, shift


@triton.jit
def _pull_back(dy, z, SILU: tl.constexpr):
    """Return dL/dz."""
    if SILU:
        s = tl.sigmoid(z)
        dy = dy * (s + s * (z - z * s))
    return dy


# ---- kernels: forward ----------------------------------------------------------------------------


@triton.jit(do_not_specialize=PLAIN)
def part_kernel(
    x, means, squares, counts, voxels, channels, row, parts, blocks, tiles,
    LAST: tl.constexpr, EIGHT: tl.constexpr, SIZE: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Write mean, sum of squared deviations and number of a part's voxels, (N, parts, C) each.

    Deviations from the part's first voxel, tile by tile in two steps, joined as by Chan, Golub &
    LeVeque 1983.
    """
    channels, row = _widths(channels, row, EIGHT)
    number: tl.constexpr = means.dtype.element_ty
    sample, part, block = _place(tl.program_id(0), parts, blocks, LAST)
    c = block * CHANNELS + tl.arange(0, CHANNELS)
    shift = _shift(sample, block, voxels, channels, LAST)
    first = part * tiles * SIZE
    begin = tl.maximum(first - shift, 0)
    there = (c < channels) & (begin < voxels)
    if LAST:
        pivots = x + (sample * voxels + begin) * row + c
    else:
        pivots = x + (sample * channels + c) * voxels + begin
    pivot = tl.load(pivots, mask=there, other=0).to(number)
    mean = tl.zeros([CHANNELS], number)  # less the pivot
    m2 = tl.zeros([CHANNELS], number)
    for tile in range(tiles):
        start = first + tile * SIZE
        lanes, mask, whole = _tile(sample, start, c, voxels, channels, shift, LAST, SIZE)
        pointers = x + _offsets(sample, lanes, c, voxels, channels, row, LAST)
        from_pivot = tl.where(mask, _load(pointers, mask, whole, number) - pivot[None, :], 0)
        end = tl.minimum(start - shift + SIZE, voxels)
        held = tl.maximum(end - tl.maximum(start - shift, 0), 0).to(number)
        seen = tl.maximum(end - begin, 0).to(number)
        here = tl.sum(from_pivot, 0) / tl.maximum(held, 1)
        deviation = tl.where(mask, from_pivot - here[None, :], 0)
        delta, weight = here - mean, held / tl.maximum(seen, 1)
        mean += delta * weight
        m2 += tl.sum(deviation * deviation, 0) + delta * delta * (weight * (seen - held))
    to = (sample * parts + part) * channels + c
    total = tl.maximum(tl.minimum(first - shift + tiles * SIZE, voxels) - begin, 0)
    tl.store(means + to, mean + pivot, mask=c < channels)
    tl.store(squares + to, m2, mask=c < channels)
    tl.store(counts + to, tl.zeros([CHANNELS], number) + total.to(number), mask=c < channels)


@triton.jit(do_not_specialize=PLAIN, do_not_specialize_on_alignment=["means", "squares", "counts"])
def merge_kernel(
    means, squares, counts, mean, second, voxels, channels, row, groups, parts,
    EPS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """Join the parts of all channels of one group: its mean, and m2, or rstd where EPS is given."""
    number: tl.constexpr = mean.dtype.element_ty
    sample, group = tl.program_id(0).to(tl.int64) // groups, tl.program_id(0) % groups
    size = channels // groups
    entries, base = size * parts, sample * parts * row + group * size
    total = (size * voxels).to(number)
    pivot = tl.load(means + base)
    middle = tl.zeros([SIZE], number)
    m2 = tl.zeros([SIZE], number)
    for start in range(0, entries, SIZE):
        i = start + tl.arange(0, SIZE)
        at, real = base + i // size * row + i % size, i < entries
        share = tl.zeros([SIZE], number) + voxels
        if counts is not None:
            share = tl.load(counts + at, mask=real, other=0)
        middle += share / total * (tl.load(means + at, mask=real, other=pivot) - pivot)
    off = tl.sum(middle, 0)
    for start in range(0, entries, SIZE):
        i = start + tl.arange(0, SIZE)
        at, real = base + i // size * row + i % size, i < entries
        share = tl.where(real, tl.zeros([SIZE], number) + voxels, 0)
        if counts is not None:
            share = tl.load(counts + at, mask=real, other=0)
        delta = tl.load(means + at, mask=real, other=pivot) - pivot - off
        m2 += tl.load(squares + at, mask=real, other=0) + share * (delta * delta)
    spread = tl.sum(m2, 0)
    if EPS is not None:
        spread = 1 / tl.sqrt(spread / total + EPS)
    tl.store(mean + tl.program_id(0), pivot + off)
    tl.store(second + tl.program_id(0), spread)


@triton.jit(do_not_specialize=PLAIN)
def apply_kernel(
    x, y, mean, rstd, weight, bias, gamma, beta, gamma_row, beta_row,
    voxels, channels, row, groups, parts, blocks,
    SILU: tl.constexpr, LAST: tl.constexpr, EIGHT: tl.constexpr, SIZE: tl.constexpr,
    CHANNELS: tl.constexpr,
):  # fmt: skip
    """Write y. Programs go backwards, since the end of x is still in the second-level cache."""
    channels, row = _widths(channels, row, EIGHT)
    number: tl.constexpr = mean.dtype.element_ty
    pid = tl.num_programs(0) - 1 - tl.program_id(0)
    sample, part, block = _place(pid, parts, blocks, LAST)
    c = block * CHANNELS + tl.arange(0, CHANNELS)
    shift = _shift(sample, block, voxels, channels, LAST)
    lanes, mask, whole = _tile(sample, part * SIZE, c, voxels, channels, shift, LAST, SIZE)
    pointers = x + _offsets(sample, lanes, c, voxels, channels, row, LAST)
    value = _load(pointers, mask, whole, number)
    center, scale, bend = _affine(
        mean, rstd, weight, bias, gamma, beta, gamma_row, beta_row, sample, c, channels, groups
    )
    z = (value - center[None, :]) * scale[None, :] + bend[None, :]
    if SILU:
        z *= tl.sigmoid(z)
    _store(y + _offsets(sample, lanes, c, voxels, channels, channels, LAST), z, mask, whole)


# ---- kernels: backward ---------------------------------------------------------------------------


@triton.jit(do_not_specialize=PLAIN)
def sums_kernel(
    dy, x, ones, twos, mean, rstd, weight, bias, gamma, beta, gamma_row, beta_row,
    voxels, channels, row, groups, parts, blocks, tiles,
    SILU: tl.constexpr, LAST: tl.constexpr, EIGHT: tl.constexpr, SIZE: tl.constexpr,
    CHANNELS: tl.constexpr,
):  # fmt: skip
    """Write the sums of dz and of dz (x - mean) over a part's voxels, (N, parts, C) each."""
    channels, row = _widths(channels, row, EIGHT)
    number: tl.constexpr = mean.dtype.element_ty
    sample, part, block = _place(tl.program_id(0), parts, blocks, LAST)
    c = block * CHANNELS + tl.arange(0, CHANNELS)
    shift = _shift(sample, block, voxels, channels, LAST)
    center, scale, bend = _affine(
        mean, rstd, weight, bias, gamma, beta, gamma_row, beta_row, sample, c, channels, groups
    )
    one = tl.zeros([SIZE, CHANNELS], number)
    two = tl.zeros([SIZE, CHANNELS], number)
    for tile in range(tiles):
        start = (part * tiles + tile) * SIZE
        lanes, mask, whole = _tile(sample, start, c, voxels, channels, shift, LAST, SIZE)
        of_x = _offsets(sample, lanes, c, voxels, channels, row, LAST)
        of_dy = _offsets(sample, lanes, c, voxels, channels, channels, LAST)
        d = _load(x + of_x, mask, whole, number) - center[None, :]
        pulled = _load(dy + of_dy, mask, whole, number)
        pulled = _pull_back(pulled, d * scale[None, :] + bend[None, :], SILU)
        one += tl.where(mask, pulled, 0)
        two += tl.where(mask, pulled * d, 0)
    to = (sample * parts + part) * channels + c
    tl.store(ones + to, tl.sum(one, 0), mask=c < channels)
    tl.store(twos + to, tl.sum(two, 0), mask=c < channels)


@triton.jit(do_not_specialize=PLAIN)
def finish_kernel(
    ones, twos, d_beta, normed, d_gamma, offset, slope, mean, rstd, weight, bias, gamma, gamma_row,
    voxels, channels, groups, parts, SIZE: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Add the parts of one group's channels up, (N, C); offset and slope of the group, (N, G).

    dx = rstd * gain * dz - offset - (x - mean) * slope
    """
    number: tl.constexpr = mean.dtype.element_ty
    sample, group = tl.program_id(0).to(tl.int64) // groups, tl.program_id(0) % groups
    size, spread = channels // groups, tl.load(rstd + tl.program_id(0))
    back = tl.zeros([CHANNELS], number)
    back_normed = tl.zeros([CHANNELS], number)
    for first in range(0, size, CHANNELS):
        c = group * size + first + tl.arange(0, CHANNELS)
        real = first + tl.arange(0, CHANNELS) < size
        one = tl.zeros([SIZE, CHANNELS], number)
        two = tl.zeros([SIZE, CHANNELS], number)
        for start in range(0, parts, SIZE):
            part = start + tl.arange(0, SIZE)
            at = (sample * parts + part)[:, None] * channels + c[None, :]
            mask = (part < parts)[:, None] & real[None, :]
            one += tl.load(ones + at, mask=mask, other=0)
            two += tl.load(twos + at, mask=mask, other=0)
        first_sum, second_sum = tl.sum(one, 0), tl.sum(two, 0) * spread
        tl.store(d_beta + sample * channels + c, first_sum, mask=real)
        tl.store(normed + sample * channels + c, second_sum, mask=real)
        if d_gamma is not None:
            d_film = _gain(weight, second_sum, c, channels, number)
            if bias is not None:
                d_film += first_sum * tl.load(bias + c, mask=real, other=0).to(number)
            tl.store(d_gamma + sample * channels + c, d_film, mask=real)
        gain = _gain(
            weight, _film(gamma, sample, c, channels, gamma_row, number), c, channels, number
        )
        back += tl.where(real, gain * first_sum, 0)
        back_normed += tl.where(real, gain * second_sum, 0)
    of_mean = spread / (size * voxels).to(number)
    tl.store(offset + tl.program_id(0), tl.sum(back, 0) * of_mean)
    tl.store(slope + tl.program_id(0), tl.sum(back_normed, 0) * of_mean * spread)


@triton.jit
def parameters_kernel(
    d_beta, normed, d_weight, d_bias, gamma, gamma_row, samples, channels, CHANNELS: tl.constexpr
):  # fmt: skip
    """Add the samples up: the gradients of weight and bias, (C)."""
    number: tl.constexpr = normed.dtype.element_ty
    c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    weight = tl.zeros([CHANNELS], number)
    bias = tl.zeros([CHANNELS], number)
    for n in range(samples):
        sample = tl.zeros([], tl.int64) + n
        film = _film(gamma, sample, c, channels, gamma_row, number)
        at = sample * channels + c
        weight += film * tl.load(normed + at, mask=c < channels, other=0)
        bias += film * tl.load(d_beta + at, mask=c < channels, other=0)
    tl.store(d_weight + c, weight, mask=c < channels)
    tl.store(d_bias + c, bias, mask=c < channels)


@triton.jit(do_not_specialize=PLAIN)
def gradient_kernel(
    dy, x, dx, offset, slope, mean, rstd, weight, bias, gamma, beta, gamma_row, beta_row,
    voxels, channels, row, groups, parts, blocks,
    ADD: tl.constexpr, SILU: tl.constexpr, LAST: tl.constexpr, EIGHT: tl.constexpr,
    SIZE: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Write dx, or add it to what is there. Backwards, as apply_kernel."""
    channels, row = _widths(channels, row, EIGHT)
    number: tl.constexpr = mean.dtype.element_ty
    pid = tl.num_programs(0) - 1 - tl.program_id(0)
    sample, part, block = _place(pid, parts, blocks, LAST)
    c = block * CHANNELS + tl.arange(0, CHANNELS)
    shift = _shift(sample, block, voxels, channels, LAST)
    lanes, mask, whole = _tile(sample, part * SIZE, c, voxels, channels, shift, LAST, SIZE)
    of_x = _offsets(sample, lanes, c, voxels, channels, row, LAST)
    of_dy = _offsets(sample, lanes, c, voxels, channels, channels, LAST)
    d = _load(x + of_x, mask, whole, number)
    pulled = _load(dy + of_dy, mask, whole, number)
    center, scale, bend = _affine(
        mean, rstd, weight, bias, gamma, beta, gamma_row, beta_row, sample, c, channels, groups
    )
    d -= center[None, :]
    pulled = _pull_back(pulled, d * scale[None, :] + bend[None, :], SILU)
    group = sample * groups + c // (channels // groups)
    less = tl.load(offset + group, mask=c < channels, other=0)
    lean = tl.load(slope + group, mask=c < channels, other=0)
    result = (scale[None, :] * pulled - less[None, :]) - d * lean[None, :]
    if ADD:
        result += _load(dx + of_x, mask, whole, number)
    _store(dx + of_x, result, mask, whole)
