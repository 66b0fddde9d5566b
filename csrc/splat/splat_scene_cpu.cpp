// What normalises a focus, and its tables. See splat_scene.h.

#include "splat/splat_scene.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

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

// exp of a quadratic on a lattice: neighbours differ by a factor that itself changes by a constant
// factor, so two calls of exp make a table. Its error grows by one rounding a voxel and step.
ATLAS_INLINE void fill_by_decay(const SplatProblem& problem, const Focus& focus, int axis, int64_t n,
                                Decay& decay, const double* mm, float* gauss) {
  const double sigma2 = focus.sigma * focus.sigma, step = problem.spacing[axis];
  if (decay.sigma != focus.sigma) {
    decay.sigma = focus.sigma;
    for (int a = 0; a < 3; ++a) {
      decay.half[a] = std::exp(-0.5 * problem.spacing[a] * problem.spacing[a] / sigma2);
      decay.whole[a] = decay.half[a] * decay.half[a];
    }
  }
  const double half = decay.half[axis], whole = decay.whole[axis];
  const int64_t nearest = clamped(0.5 - mm[0] / step, 0, n - 1);
  const double tilt = std::exp(-mm[nearest] * step / sigma2);
  const double top = std::exp(-0.5 * mm[nearest] * mm[nearest] / sigma2);
  double value = top, factor = half * tilt;
  for (int64_t i = nearest; i < n; ++i, value *= factor, factor *= whole) gauss[i] = static_cast<float>(value);
  value = top * (factor = half / tilt);
  for (int64_t i = nearest - 1; i >= 0; --i) {
    gauss[i] = static_cast<float>(value);
    value *= factor *= whole;
  }
}

// Distances to a focus over `span` of one axis, their squares and gauss, all of it in double but that a
// float's gauss, which does not see a few roundings, is made the quick way.
template <typename T>
ATLAS_INLINE void fill_axis(const SplatProblem& problem, const Focus& focus, int axis, Span span, Decay& decay,
                            double* ATLAS_RESTRICT mm, double* ATLAS_RESTRICT square, T* ATLAS_RESTRICT gauss) {
  const int64_t n = span.end - span.begin;
  for (int64_t i = 0; i < n; ++i) {
    mm[i] = offset_mm(problem, axis, span.begin + i, focus.mm[axis]);
    square[i] = mm[i] * mm[i];
  }
  const double sigma2 = focus.sigma * focus.sigma, step = problem.spacing[axis];
  const bool steep = step * step > 500 * sigma2;  // from voxel to voxel, further than a double reaches
  if (problem.mode == SplatMode::sphere) {
    std::fill_n(gauss, n, T(1));
  } else if (std::is_same_v<T, double> || steep) {
    for (int64_t i = 0; i < n; ++i) gauss[i] = static_cast<T>(std::exp(-0.5 * square[i] / sigma2));
  } else if constexpr (std::is_same_v<T, float>) {
    if (n > 0) fill_by_decay(problem, focus, axis, n, decay, mm, gauss);
  }
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
    Decay none;
    fill_axis(problem, focus, axis, span, none, mm.data(), square.data(), gauss.data());
    nearest = static_cast<size_t>(std::min_element(square.begin(), square.end()) - square.begin());
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

// ---- a scene ----------------------------------------------------------------------------------

// Whether distances to a focus are such that floats tell the covered voxels from the others: squares of
// whole eighths of a millimetre, which floats hold exactly, and none of them near to radius2. So it is
// for most peaks as they are printed.
ATLAS_INLINE bool floats_decide(const SplatProblem& problem, const Focus& focus) {
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

// Of each plane of a focus, of which these are the tables along x.
template <typename T>
ATLAS_INLINE void find_slices(const SplatProblem& problem, const Focus& focus, const double* x2,
                              const T* gauss, Slices& slices) {
  const auto size = [&](int axis) { return focus.axis[axis].span.end - focus.axis[axis].span.begin; };
  const double limit = limit_of(problem, focus), height = focus.weight * focus.unit;
  const int64_t planes = size(0);
  // A little more than what is left of the radius: rounding must not leave out a covered voxel.
  double* ATLAS_RESTRICT half = slices.half.data();
  for (int64_t i = 0; i < planes; ++i) {
    const double more = limit - x2[i] + 1e-12 * limit;
    half[i] = std::sqrt(more > 0 ? more : 0);
  }
  const auto find_ends = [&](int axis, int32_t* ATLAS_RESTRICT begin, int32_t* ATLAS_RESTRICT end) ATLAS_INLINED {
    const double centre = focus.centre[axis], per = 1 / std::abs(problem.spacing[axis]);
    const double last = static_cast<double>(size(axis));
    const int32_t n = static_cast<int32_t>(size(axis));
    for (int64_t i = 0; i < planes; ++i) {  // the casts round up, counted from the end, and down
      const double low = last - centre + half[i] * per, high = centre + half[i] * per + 1;
      begin[i] = n - static_cast<int32_t>(low < 0 ? 0 : low > last ? last : low);
      end[i] = static_cast<int32_t>(high < 0 ? 0 : high > last ? last : high);
    }
  };
  find_ends(1, slices.y_begin.data(), slices.y_end.data());
  find_ends(2, slices.first.data(), slices.n.data());
  int32_t *ATLAS_RESTRICT first = slices.first.data(), *ATLAS_RESTRICT n = slices.n.data();
  for (int64_t i = 0; i < planes; ++i) n[i] = (n[i] - first[i] + kBlock - 1) & -kBlock;
  float *ATLAS_RESTRICT left = slices.left.data(), *ATLAS_RESTRICT scale = slices.scale.data();
  for (int64_t i = 0; i < planes; ++i) {
    left[i] = static_cast<float>(limit - x2[i]);
    scale[i] = static_cast<float>(height * static_cast<double>(gauss[i]));
  }
}

// Makes the tables of one axis, behind all others.
template <typename T>
ATLAS_INLINE AxisTable make_table(Scene<T>& scene, const Focus& focus, int axis) {
  const SplatProblem& problem = scene.problem;
  const Span within = axis == 0 ? scene.planes : Span{0, problem.shape[axis]};
  const Span span = reach_span(problem, axis, focus.mm[axis], focus.radius2, within);
  AxisTable made{focus.mm[axis], focus.sigma, focus.radius2, span, 0, scene.room};
  if (span.begin >= span.end) return made;
  const size_t n = static_cast<size_t>(span.end - span.begin);
  scene.room += n + kMargin;
  if (scene.mm_tables.size() < scene.room) {
    scene.mm_tables.resize(2 * scene.room);
    scene.square_tables.resize(2 * scene.room);
    scene.gauss_tables.resize(2 * scene.room);
    if (std::is_same_v<T, float>) scene.square_floats.resize(2 * scene.room);
  }
  double *mm = scene.mm_tables.data() + made.table, *square = scene.square_tables.data() + made.table;
  T* gauss = scene.gauss_tables.data() + made.table;
  fill_axis(problem, focus, axis, span, scene.decay, mm, square, gauss);
  std::fill_n(mm + n, kMargin, 0.0);
  std::fill_n(square + n, kMargin, HUGE_VAL);
  std::fill_n(gauss + n, kMargin, T(0));
  if constexpr (std::is_same_v<T, float>) {
    float* floats = scene.square_floats.data() + made.table;
    for (size_t i = 0; i < n + kMargin; ++i) floats[i] = static_cast<float>(square[i]);
  }
  made.centre = -mm[0] / problem.spacing[axis];
  return made;
}

constexpr int kHashBits = 8;

template <typename T>
ATLAS_INLINE const AxisTable& find_table(Scene<T>& scene, const Focus& focus, int axis) {
  uint64_t bits;
  std::memcpy(&bits, &focus.mm[axis], sizeof bits);
  AxisTable& known = scene.known[axis][bits * 0x9e3779b97f4a7c15u >> (64 - kHashBits)];
  const bool same = known.mm == focus.mm[axis] && known.sigma == focus.sigma && known.radius2 == focus.radius2;
  if (!same) known = make_table(scene, focus, axis);
  return known;
}

template <typename T>
ATLAS_INLINE void forget_tables(Scene<T>& scene) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (auto& known : scene.known) known.assign(size_t(1) << kHashBits, AxisTable{nan, 0, 0, {0, 0}, 0, 0});
  scene.room = 0;
}

// Finds the foci that reach the scene's planes, and their tables.
template <typename T>
ATLAS_INLINE void find_foci(Scene<T>& scene, int64_t study, int64_t kernel) {
  const SplatProblem& problem = scene.problem;
  scene.foci.clear();
  for (int64_t p = problem.offsets[study]; p < problem.offsets[study + 1]; ++p) {
    Focus focus = make_focus(problem, study, kernel, p);
    bool visible = true;
    for (int axis = 0; axis < 3 && visible; ++axis) {
      const AxisTable& table = find_table(scene, focus, axis);
      focus.axis[axis] = {table.span, table.table};
      focus.centre[axis] = table.centre;
      visible = table.span.begin < table.span.end;
    }
    if (!visible) continue;
    if (problem.normalize != SplatNormalize::peak) normalize_focus(problem, focus);
    focus.floats_decide = std::is_same_v<T, float> && floats_decide(problem, focus);
    scene.foci.push_back(focus);
  }
}

// Whether floats decide in one plane like doubles which voxels are covered. They hold places to 1e-4.
ATLAS_INLINE bool floats_decide(const Scene<float>& scene, const Focus& focus, const Slice& slice) {
  if (focus.floats_decide || slice.left == HUGE_VALF) return true;
  const float per_step = static_cast<float>(1 / std::abs(scene.problem.spacing[2]));
  const float centre = static_cast<float>(focus.centre[2]);
  const float* y2 = scene.square_float(focus, 1);
  const auto to_whole = [](float place) ATLAS_INLINED {
    constexpr float kWhole = 0x1.8p23f;
    return std::abs((place + kWhole - kWhole) - place);
  };
  int unsure = 0;  // what is left below 0, by rounding, is unsure too
  for (int j = slice.y_begin; j < slice.y_end; ++j) {
    const float reach = std::sqrt(slice.left - y2[j]) * per_step;
    const float off = std::min(to_whole(centre + reach), to_whole(centre - reach));
    unsure += !((off > 1e-3f) & (reach < 1000));
  }
  return !unsure;
}
ATLAS_INLINE bool floats_decide(const Scene<double>&, const Focus&, const Slice&) { return false; }

template <typename T>
ATLAS_INLINE void fill_slices(Scene<T>& scene) {
  Scratch<size_t>& starts = scene.slice_starts;
  starts.assign(static_cast<size_t>(scene.planes.end - scene.planes.begin) + 2, 0);  // shifted while filling
  const auto plane = [&](int64_t x) { return starts.data() + (x - scene.planes.begin); };
  for (const Focus& focus : scene.foci) {
    for (int64_t x = focus.axis[0].span.begin; x < focus.axis[0].span.end; ++x) ++plane(x)[2];
  }
  for (size_t i = 2; i < starts.size(); ++i) starts[i] += starts[i - 1];
  scene.slices.resize(starts.back());
  const Slices& of = scene.of_focus;
  const int64_t row_length = scene.problem.shape[2];
  int32_t number = 0;
  for (const Focus& focus : scene.foci) {
    const int64_t begin = focus.axis[0].span.begin, n = focus.axis[0].span.end - begin;
    const int64_t corner = focus.axis[1].span.begin * row_length + focus.axis[2].span.begin;
    find_slices(scene.problem, focus, scene.square(focus, 0), scene.gauss(focus, 0), scene.of_focus);
    for (size_t i = 0; i < static_cast<size_t>(n); ++i) {
      Slice& slice = scene.slices[plane(begin)[i + 1]++];
      const int64_t start = corner + of.y_begin[i] * row_length + of.first[i];
      slice = {start, number, of.y_begin[i], of.y_end[i], of.first[i], of.n[i], of.left[i], of.scale[i], false};
      slice.quick = focus.edge == 0 && floats_decide(scene, focus, slice);
    }
    ++number;
  }
}

template <typename T>
ATLAS_INLINE void make_scene(Scene<T>& scene, int64_t study, int64_t kernel, Span planes) {
  constexpr size_t kMost = size_t(1) << 14;  // numbers of each table that are kept: of the second cache
  const bool other_planes = scene.planes.begin != planes.begin || scene.planes.end != planes.end;
  scene.planes = planes;
  if (other_planes || scene.room > kMost) forget_tables(scene);
  find_foci(scene, study, kernel);
  fill_slices(scene);
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

ATLAS_MULTIVERSION void set_scene(Scene<float>& scene, int64_t study, int64_t kernel, Span planes) {
  make_scene(scene, study, kernel, planes);
}
ATLAS_MULTIVERSION void set_scene(Scene<double>& scene, int64_t study, int64_t kernel, Span planes) {
  make_scene(scene, study, kernel, planes);
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
  require(problem.offsets[problem.n_studies] == problem.n_peaks, "splat: offsets must end at the number of peaks");
  const auto finite = [](double value) { return std::isfinite(value); };
  const auto width = [](double value) { return std::isfinite(value) && value > 0; };
  require(std::all_of(problem.peaks, problem.peaks + 3 * problem.n_peaks, finite), "splat: peaks must be finite");
  require(!problem.weights || std::all_of(problem.weights, problem.weights + problem.n_peaks, finite),
          "splat: weights must be finite");
  require(std::all_of(problem.widths, problem.widths + problem.n_widths(), width),
          "splat: widths must be positive and finite");
  const int64_t size = problem.shape[0] * problem.shape[1] * problem.shape[2];
  for (int64_t i = 0; i < problem.n_voxels; ++i) {
    const int64_t before = i ? problem.voxels[i - 1] : -1, voxel = problem.voxels[i];
    require(before < voxel && voxel < size, "splat: voxels must ascend inside the grid");
  }
}

}  // namespace atlas_kernels
