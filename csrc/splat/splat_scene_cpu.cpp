// What normalises a focus, and its tables. See splat_scene.h.

#include "splat/splat_scene.h"

namespace atlas_kernels {
namespace {

// Running sums along z, so that a row of any length costs two look-ups: of gauss * (1, d, d^2) and of
// the same without gauss.
struct Sums {
  double gauss = 0, gauss_d = 0, gauss_dd = 0, one = 0, d = 0, dd = 0;
};

Sums difference(const Sums& a, const Sums& b) {
  return {a.gauss - b.gauss, a.gauss_d - b.gauss_d, a.gauss_dd - b.gauss_dd,
          a.one - b.one,     a.d - b.d,             a.dd - b.dd};
}

struct Axis {
  std::vector<double> mm, square, gauss;
  size_t nearest = 0;
  std::vector<Sums> sums;  // sums[i] of the voxels before i

  Axis(const SplatProblem& problem, const Focus& focus, int axis, double radius2) {
    constexpr int64_t kFar = int64_t(1) << 40;
    const Span span = reach_span(problem, axis, focus.mm[axis], radius2, {-kFar, kFar});
    const size_t n = static_cast<size_t>(span.end - span.begin);
    mm.resize(n);
    square.resize(n);
    gauss.resize(n);
    nearest = static_cast<size_t>(
        gauss_table(problem, focus, axis, span, nullptr, mm.data(), square.data(), gauss.data()));
    sums.resize(n + 1);
    for (size_t i = 0; i < n; ++i) {
      const double g = gauss[i], d = mm[i], dd = square[i];
      const Sums& s = sums[i];
      sums[i + 1] = {s.gauss + g, s.gauss_d + g * d, s.gauss_dd + g * dd, s.one + 1, s.d + d, s.dd + dd};
    }
  }
};

// Sums over the whole support of the kernel, and of its slope times d and |d|^2.
struct Totals {
  double kernel = 0, axis[3] = {0, 0, 0}, square = 0;
};

Totals sum_box(const Axis (&axes)[3]) {
  const Sums &x = axes[0].sums.back(), &y = axes[1].sums.back(), &z = axes[2].sums.back();
  return {x.gauss * y.gauss * z.gauss,
          {x.gauss_d * y.gauss * z.gauss, x.gauss * y.gauss_d * z.gauss, x.gauss * y.gauss * z.gauss_d},
          x.gauss_dd * y.gauss * z.gauss + x.gauss * y.gauss_dd * z.gauss +
              x.gauss * y.gauss * z.gauss_dd};
}

Totals sum_ball(const Focus& focus, const Axis (&axes)[3]) {
  const Axis &x = axes[0], &y = axes[1], &z = axes[2];
  const double per = focus.per;
  Totals total;
  for (size_t i = 0; i < x.mm.size(); ++i) {
    size_t begin = z.nearest, end = begin;  // a ball's rows grow and shrink little by little
    for (size_t j = 0; j < y.mm.size(); ++j) {
      const double xy2 = x.square[i] + y.square[j], gauss_xy = x.gauss[i] * y.gauss[j];
      const auto covered = [&](size_t k) { return xy2 + z.square[k] <= focus.radius2; };
      if (z.square.empty() || !covered(z.nearest)) continue;
      begin = std::min(begin, z.nearest);
      end = std::max(end, z.nearest + 1);
      while (begin > 0 && covered(begin - 1)) --begin;
      while (!covered(begin)) ++begin;
      while (end < z.square.size() && covered(end)) ++end;
      while (!covered(end - 1)) --end;
      const Sums s = difference(z.sums[end], z.sums[begin]);
      // slope = gauss - edge; kernel = slope - edge * (end - |d|^2 / (2 sigma^2))
      const double slope = gauss_xy * s.gauss - focus.edge * s.one;
      const double slope_dd = gauss_xy * s.gauss_dd - focus.edge * s.dd;
      total.kernel += slope - focus.edge * ((focus.end - per * xy2) * s.one - per * s.dd);
      total.axis[0] += x.mm[i] * slope;
      total.axis[1] += y.mm[j] * slope;
      total.axis[2] += gauss_xy * s.gauss_d - focus.edge * s.d;
      total.square += xy2 * slope + slope_dd;
    }
  }
  return total;
}

// exp of a quadratic on a lattice: neighbours differ by a factor that itself changes by a constant
// factor, so two calls of exp make a table. Its error grows by one rounding a voxel and step.
void fill_by_decay(const SplatProblem& problem, const Focus& focus, int axis, int64_t n, int64_t nearest,
                   Decay& decay, const double* mm, double* gauss) {
  const double sigma2 = focus.sigma * focus.sigma;
  if (decay.sigma != focus.sigma) {
    decay.sigma = focus.sigma;
    for (int a = 0; a < 3; ++a) {
      decay.half[a] = std::exp(-0.5 * problem.spacing[a] * problem.spacing[a] / sigma2);
      decay.whole[a] = decay.half[a] * decay.half[a];
    }
  }
  const double half = decay.half[axis], whole = decay.whole[axis];
  const double tilt = std::exp(-mm[nearest] * problem.spacing[axis] / sigma2);
  gauss[nearest] = std::exp(-0.5 * mm[nearest] * mm[nearest] / sigma2);
  double factor = half * tilt;
  for (int64_t i = nearest; i + 1 < n; ++i, factor *= whole) gauss[i + 1] = gauss[i] * factor;
  factor = half / tilt;
  for (int64_t i = nearest; i > 0; --i, factor *= whole) gauss[i - 1] = gauss[i] * factor;
}

}  // namespace

void normalize_focus(const SplatProblem& problem, Focus& focus) {
  constexpr double kNothingBeyond = 40;  // sigmas: a Gaussian is less there than a double can hold
  const bool box = problem.support == SplatSupport::box || problem.truncate > kNothingBeyond;
  const double reach = std::min(problem.truncate, kNothingBeyond) * focus.sigma;
  const double radius2 = problem.truncate > kNothingBeyond ? reach * reach : focus.radius2;
  const Axis axes[3] = {Axis(problem, focus, 0, radius2), Axis(problem, focus, 1, radius2),
                        Axis(problem, focus, 2, radius2)};
  const Totals total = box ? sum_box(axes) : sum_ball(focus, axes);
  const double kernel = total.kernel > 0 ? total.kernel : 1;  // no voxel within reach: no value
  focus.unit = 1 / kernel;
  for (int axis = 0; axis < 3; ++axis) focus.pull.axis[axis] = total.axis[axis] / kernel;
  focus.pull.square = total.square / kernel;
  if (problem.normalize == SplatNormalize::mm3) {
    focus.unit /= std::abs(problem.spacing[0] * problem.spacing[1] * problem.spacing[2]);
  }
}

int64_t gauss_table(const SplatProblem& problem, const Focus& focus, int axis, Span span, Decay* decay,
                    double* mm, double* square, double* gauss) {
  const int64_t n = span.end - span.begin;
  int64_t nearest = 0;
  for (int64_t i = 0; i < n; ++i) {
    mm[i] = offset_mm(problem, axis, span.begin + i, focus.mm[axis]);
    square[i] = mm[i] * mm[i];
    if (square[i] < square[nearest]) nearest = i;
  }
  const double sigma2 = focus.sigma * focus.sigma, step = problem.spacing[axis];
  const bool steep = step * step > 500 * sigma2;  // from voxel to voxel, further than a double reaches
  if (problem.mode == SplatMode::sphere) {
    std::fill_n(gauss, n, 1.0);
  } else if (!decay || steep) {
    for (int64_t i = 0; i < n; ++i) gauss[i] = std::exp(-0.5 * square[i] / sigma2);
  } else if (n > 0) {
    fill_by_decay(problem, focus, axis, n, nearest, *decay, mm, gauss);
  }
  return nearest;
}

bool floats_decide(const SplatProblem& problem, const Focus& focus) {
  constexpr double kExact = 1 << 24;  // whole numbers up to it are floats
  const auto is_whole = [](double value) { return std::abs(value) < kExact && value == std::rint(value); };
  for (int axis = 0; axis < 3; ++axis) {
    const bool eighths = is_whole(8 * problem.spacing[axis]) &&
                         is_whole(8 * (problem.origin[axis] - focus.mm[axis]));
    if (!eighths) return false;
  }
  const double radius2 = 64 * focus.radius2;  // of squares in 64ths of mm^2
  const double gap = std::abs(radius2 - std::rint(radius2));
  return radius2 < kExact / 2 && (gap == 0 || gap > 4 * radius2 / kExact);
}

void check(const SplatProblem& problem, int threads) {
  require(problem.n_studies >= 0 && problem.n_kernels >= 0, "splat: negative number of studies or widths");
  require(problem.widths_of == SplatWidths::kernels || problem.n_kernels == 1,
          "splat: widths of studies or peaks give one volume a study");
  require(threads >= 1, "splat: threads must be at least 1");
  for (int axis = 0; axis < 3; ++axis) {
    require(problem.shape[axis] > 0, "splat: the grid has an empty axis");
    require(problem.spacing[axis] != 0, "splat: the grid has a zero spacing");
  }
  require(problem.offsets[0] == 0, "splat: offsets must start at 0");
  for (int64_t b = 0; b < problem.n_studies; ++b) {
    require(problem.offsets[b] <= problem.offsets[b + 1], "splat: offsets must not decrease");
  }
  const int64_t size = problem.shape[0] * problem.shape[1] * problem.shape[2];
  for (int64_t i = 0; i < problem.n_voxels; ++i) {
    const int64_t before = i ? problem.voxels[i - 1] : -1, voxel = problem.voxels[i];
    require(before < voxel && voxel < size, "splat: voxels must ascend inside the grid");
  }
}

}  // namespace atlas_kernels
