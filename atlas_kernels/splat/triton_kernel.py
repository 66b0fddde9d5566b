"""splat in Triton, as a gather: a program owns some of the output and looks for what reaches it.

    splat        a stretch of the flat output, over all volumes: the study's peaks in their order
    rank         where in a masked volume each voxel is
    moments      one peak at one width: its gradients, from the voxels of its own box
    widths       the gradients of a width that many peaks share, in their order

Which voxels a peak covers is decided in float64, by the comparison of reference.py, so no
multiplication may be fused with an addition. Nothing is atomic and nothing waits. The foci are
described by triton_focus.py. Called by triton_launch.py.
Siblings: reference.py (the specification), csrc/splat/splat_cpu.cpp. Maths: docs/kernels/splat.md.
"""

import triton
import triton.language as tl

from .triton_focus import (
    FWHM_PER_SIGMA,
    PLAIN,
    PULL,
    REACH2,
    RECORD,
    SIGMA,
    UNIT,
    WEIGHT,
    covered_by,
    kernel_of,
    members,
    study_of,
)

LOG2_E = tl.constexpr(1.4426950408889634)
CULLED = tl.constexpr(32)  # peaks whose boxes are compared at a time


# ---- one focus at some voxels --------------------------------------------------------------------


@triton.jit
def _gauss(square, rate, number: tl.constexpr):
    """exp(rate * square), where |rate * square| is exact to float64 before it is rounded."""
    if number == tl.float64:
        gauss = tl.exp(square * rate)
    else:
        gauss = tl.exp2((square * (rate * LOG2_E)).to(tl.float32))
    return gauss


@triton.jit
def _evaluate(
    record, x, y, z, number: tl.constexpr,
    SPHERE: tl.constexpr, BOX: tl.constexpr, EDGE: tl.constexpr, END: tl.constexpr,
):  # fmt: skip
    """Return the values of a focus at places in mm, 0 where it does not cover them."""
    dx, dy, dz = x - tl.load(record), y - tl.load(record + 1), z - tl.load(record + 2)
    square = dx * dx + dy * dy + dz * dz
    covered = covered_by(dx, dy, dz, square, tl.load(record + REACH2), BOX)
    height = (tl.load(record + WEIGHT) * tl.load(record + UNIT)).to(number)
    if SPHERE:
        value = tl.where(covered, height, 0)
    else:
        sigma = tl.load(record + SIGMA)
        rate = -0.5 / (sigma * sigma)
        gauss = _gauss(square, rate, number)
        kernel, _ = kernel_of(gauss, (square * -rate).to(number), EDGE, END)
        value = tl.where(covered, height * kernel, 0)
    return value


@triton.jit
def _hits(boxes, foci, at, first, last, x0, x1, y0, y1, z0, z1):
    """Compare the boxes of up to 32 foci with one of voxels: a bit is set where they meet."""
    lane = tl.arange(0, CULLED)
    real = first + lane < last
    box = boxes + at + first + lane
    hit = real & (tl.load(box, mask=real, other=0) <= x1)
    hit = hit & (tl.load(box + foci, mask=real, other=-1) >= x0)
    hit = hit & (tl.load(box + 2 * foci, mask=real, other=0) <= y1)
    hit = hit & (tl.load(box + 3 * foci, mask=real, other=-1) >= y0)
    hit = hit & (tl.load(box + 4 * foci, mask=real, other=0) <= z1)
    hit = hit & (tl.load(box + 5 * foci, mask=real, other=-1) >= z0)
    return tl.sum(hit.to(tl.uint32) << lane.to(tl.uint32), 0)


@triton.jit
def _lowest(bits):
    """Return which bit is the lowest that is set: the exponent of a float of that bit alone."""
    alone = (bits ^ (bits & (bits - 1))).to(tl.float32)
    return (alone.to(tl.int32, bitcast=True) >> 23) - 127


# ---- forward -------------------------------------------------------------------------------------


@triton.jit
def _combine(value, new, MODE: tl.constexpr):
    if MODE == "sum":
        value += new
    elif MODE == "union":  # 1 - (1 - value) (1 - new) without cancellation
        value += new * (1 - value)
    else:  # a NaN stays
        value = tl.where((new > value) | (new != new), new, value)
    return value


@triton.jit
def _numbers(voxels, v, inside, index: tl.constexpr):
    """Return which voxels of the grid the numbers of a volume are of."""
    if voxels is not None:
        v = tl.load(voxels + v, mask=inside, other=0).to(index)
    return v


@triton.jit
def _double(n):
    """Return n >= 0 as float64: its bits below those of 2^52, which is faster than a conversion."""
    bits = n.to(tl.int64) | 0x4330000000000000
    return bits.to(tl.float64, bitcast=True) - 4503599627370496.0


@triton.jit(do_not_specialize=("total", "elements", "peaks", "foci"))
def splat_kernel(
    out, offsets, voxels, records, boxes, total, elements, peaks, foci, kernels,
    origin_x: tl.float64, origin_y: tl.float64, origin_z: tl.float64,
    step_x: tl.float64, step_y: tl.float64, step_z: tl.float64,
    NY: tl.constexpr, NZ: tl.constexpr,  # every voxel is divided by them
    MODE: tl.constexpr, SPHERE: tl.constexpr, BOX: tl.constexpr,
    EDGE: tl.constexpr, END: tl.constexpr, index: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """Write a stretch of the flat output, which may be of several volumes, once."""
    number: tl.constexpr = tl.float64 if out.dtype.element_ty == tl.float64 else tl.float32
    start = tl.program_id(0).to(tl.int64) * SIZE
    stop = tl.minimum(start + SIZE, total)
    flat = start + tl.arange(0, SIZE)
    value = tl.zeros([SIZE], number)
    volume = start // elements
    while volume * elements < stop:
        base = volume * elements
        v_first = tl.maximum(start - base, 0)
        v_last = tl.minimum(stop - base, elements) - 1
        if voxels is not None:
            v_first = tl.load(voxels + v_first)
            v_last = tl.load(voxels + v_last)
        row0, row1 = v_first.to(index) // NZ, v_last.to(index) // NZ
        x0, x1 = row0 // NY, row1 // NY
        y0 = tl.where(x0 == x1, row0 - x0 * NY, 0)
        y1 = tl.where(x0 == x1, row1 - x1 * NY, NY - 1)
        study = volume // kernels
        at = (volume - study * kernels) * peaks
        first, last = members(offsets, study, peaks)
        for begin in range(first, last, CULLED):
            bits = _hits(boxes, foci, at, begin, last, x0, x1, y0, y1, 0, NZ - 1)
            if bits != 0:
                v = (flat - base).to(index)
                inside = (v >= 0) & (v < elements)
                v = _numbers(voxels, v, inside, index)
                row = v // NZ
                plane = row // NY
                x = origin_x + step_x * _double(plane)
                x = tl.where(inside, x, float("nan"))  # which no peak covers
                y = origin_y + step_y * _double(row - plane * NY)
                z = origin_z + step_z * _double(v - row * NZ)
                while bits != 0:
                    record = records + (at + begin + _lowest(bits)) * RECORD
                    new = _evaluate(record, x, y, z, number, SPHERE, BOX, EDGE, END)
                    value = _combine(value, new, MODE)
                    bits = bits & (bits - 1)
        volume += 1
    if out.dtype.element_ty == tl.uint8:
        value = tl.where(value == value, tl.minimum(value, 255), 0)
    if stop - start == SIZE:  # a store under a mask is not of vectors
        tl.store(out + flat, value.to(out.dtype.element_ty))
    else:
        tl.store(out + flat, value.to(out.dtype.element_ty), mask=flat < total)


# ---- backward ------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=PLAIN)
def rank_kernel(voxels, ranks, elements, total, SIZE: tl.constexpr):
    """Write where each voxel of a mask is in the output; the others keep what is there."""
    i = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    v = tl.load(voxels + i, mask=i < elements, other=-1)
    tl.store(ranks + v, i, mask=(v >= 0) & (v < total))


@triton.jit
def _share(
    share, own, x, y, z, p, boxes, records, at, first, last, foci, x0, x1, y0, y1, z0, z1,
    number: tl.constexpr, MODE: tl.constexpr, BOX: tl.constexpr, EDGE: tl.constexpr,
    END: tl.constexpr,
):  # fmt: skip
    """Take from a peak's share what the others of its study leave it."""
    for begin in range(first, last, CULLED):
        bits = _hits(boxes, foci, at, begin, last, x0, x1, y0, y1, z0, z1)
        while bits != 0:
            q = begin + _lowest(bits)
            if q != p:
                record = records + (at + q) * RECORD
                other = _evaluate(record, x, y, z, number, False, BOX, EDGE, END)
                if MODE == "union":
                    share *= 1 - other
                elif q < p:  # the lowest index wins a tie
                    share = tl.where(other >= own, 0, share)
                else:
                    share = tl.where(other > own, 0, share)
            bits = bits & (bits - 1)
    return share


@triton.jit(do_not_specialize=PLAIN)
def moments_kernel(
    grad_out, offsets, ranks, records, boxes, grad_peaks, grad_weights, grad_widths,
    elements, peaks, foci, kernels, studies, search, ny, nz,
    origin_x: tl.float64, origin_y: tl.float64, origin_z: tl.float64,
    step_x: tl.float64, step_y: tl.float64, step_z: tl.float64,
    MODE: tl.constexpr, BOX: tl.constexpr, EDGE: tl.constexpr, END: tl.constexpr,
    ROUNDED: tl.constexpr, index: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Write the gradients of one peak's coordinates, weight and width, (K, P, 3) and (K, P)."""
    number: tl.constexpr = tl.float64 if grad_out.dtype.element_ty == tl.float64 else tl.float32
    f = tl.program_id(0).to(tl.int64)
    kernel = f // peaks
    p = f - kernel * peaks
    study = study_of(offsets, p, studies, search)
    first, last = members(offsets, study, peaks)
    record = records + f * RECORD
    px, py, pz = tl.load(record), tl.load(record + 1), tl.load(record + 2)
    reach2, sigma = tl.load(record + REACH2), tl.load(record + SIGMA)
    weight, unit = tl.load(record + WEIGHT), tl.load(record + UNIT)
    height = (weight * unit).to(number)
    rate = -0.5 / (sigma * sigma)
    x0, x1 = tl.load(boxes + f), tl.load(boxes + foci + f)
    y0, y1 = tl.load(boxes + 2 * foci + f), tl.load(boxes + 3 * foci + f)
    z0, z1 = tl.load(boxes + 4 * foci + f), tl.load(boxes + 5 * foci + f)
    deep = (y1 - y0 + 1).to(index)
    # A peak of no study has no gradient, and that of a bad number is NaN as its weight is.
    real = (p >= first) & (p < last) & (weight == weight)
    rows = tl.where(real, (x1 - x0 + 1) * deep, 0)
    grad_out += (study * kernels + kernel) * elements

    total = tl.zeros([ROWS, COLUMNS], tl.float64)
    of_x = tl.zeros([ROWS, COLUMNS], tl.float64)
    of_y = tl.zeros([ROWS, COLUMNS], tl.float64)
    of_z = tl.zeros([ROWS, COLUMNS], tl.float64)
    of_square = tl.zeros([ROWS, COLUMNS], tl.float64)
    for start in range(0, rows, ROWS):
        row = start + tl.arange(0, ROWS)
        i = row // deep
        vx, vy = x0 + i, y0 + row - i * deep
        x = (origin_x + step_x * vx.to(tl.float64))[:, None]
        y = (origin_y + step_y * vy.to(tl.float64))[:, None]
        for begin in range(z0, z1 + 1, COLUMNS):
            vz = begin + tl.arange(0, COLUMNS)
            z = (origin_z + step_z * vz.to(tl.float64))[None, :]
            dx, dy, dz = x - px, y - py, z - pz
            square = dx * dx + dy * dy + dz * dz
            covered = covered_by(dx, dy, dz, square, reach2, BOX)
            covered = covered & (row < rows)[:, None] & (vz <= z1)[None, :]
            at = (vx.to(tl.int64) * ny + vy)[:, None] * nz + vz[None, :]
            if ranks is None:
                held = covered
            else:
                at = tl.load(ranks + at, mask=covered, other=-1)
                held = covered & (at >= 0)
            flow = tl.load(grad_out + at, mask=held, other=0).to(number)
            gauss = _gauss(square, rate, number)
            value, slope = kernel_of(gauss, (square * -rate).to(number), EDGE, END)
            if MODE != "sum":
                own = height * value
                share = tl.full([ROWS, COLUMNS], 1, number)
                if MODE == "max":
                    share = tl.where(own > 0, share, 0)
                plane0 = x0 + start // deep
                plane1 = tl.minimum(x0 + (start + ROWS - 1) // deep, x1)
                flow *= _share(
                    share, own, x, y, z, p, boxes, records, kernel * peaks, first, last, foci,
                    plane0, plane1, y0, y1, begin, tl.minimum(begin + COLUMNS - 1, z1),
                    number, MODE, BOX, EDGE, END,
                )  # fmt: skip
            flow = tl.where(covered, flow, 0).to(tl.float64)
            total += flow * value.to(tl.float64)
            sloped = flow * slope.to(tl.float64)
            of_x += sloped * dx
            of_y += sloped * dy
            of_z += sloped * dz
            of_square += sloped * square

    whole = unit * tl.sum(total)
    lean = weight / (sigma * sigma)
    to = grad_peaks + f * 3
    if ROUNDED:
        for i in tl.static_range(3):
            tl.store(to + i, 0.0)
    else:
        tl.store(to, lean * (unit * tl.sum(of_x) - whole * tl.load(record + PULL)))
        tl.store(to + 1, lean * (unit * tl.sum(of_y) - whole * tl.load(record + PULL + 1)))
        tl.store(to + 2, lean * (unit * tl.sum(of_z) - whole * tl.load(record + PULL + 2)))
    tl.store(grad_weights + f, tl.where(weight == weight, whole, float("nan")))
    stretch = unit * tl.sum(of_square) - whole * tl.load(record + PULL + 3)
    tl.store(grad_widths + f, lean / sigma * stretch / FWHM_PER_SIGMA)


@triton.jit(do_not_specialize=PLAIN)
def widths_kernel(each, grad, offsets, peaks, STUDIES: tl.constexpr, SIZE: tl.constexpr):
    """Add the gradients of a kernel's or a study's width up, (K, P) or (1, P)."""
    owner = tl.program_id(0).to(tl.int64)
    first, last, at = owner * 0, owner * 0 + peaks, owner * peaks
    if STUDIES:
        first, last = members(offsets, owner, peaks)
        at = owner * 0
    total = tl.zeros([SIZE], tl.float64)
    for begin in range(first, last, SIZE):
        p = begin + tl.arange(0, SIZE)
        total += tl.load(each + at + p, mask=p < last, other=0)
    tl.store(grad + owner, tl.sum(total))
