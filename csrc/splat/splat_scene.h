// What forward and backward share: the foci of one volume, their tables, and their rows in one plane.
//
// The Gaussian is separable, so each focus gets three short tables (its distance to the voxels along
// x, y and z, and the exponential of each); a voxel then costs one multiplication. Tables along z are
// padded with zeros to whole blocks of kBlock, which is what the loops over a row run in.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

#include "common/checks.h"
#include "common/multiversion.h"
#include "splat/splat.h"

namespace atlas_kernels {

constexpr int kBlock = 8;
constexpr double kFwhmPerSigma = 2.3548200450309493;  // 2 sqrt(2 ln 2)

// Consecutive voxels [begin, end) of one axis.
struct Span {
  int64_t begin, end;
};

// One focus along one axis: the voxels it can reach; its tables start at `table`.
struct Reach {
  Span span;
  size_t table;
};

// What normalising adds to the gradient: sums over all voxels of an unbounded grid of the kernel's
// slope times d and |d|^2, divided by the sum of the kernel.
struct Pull {
  double axis[3] = {0, 0, 0}, square = 0;
};

struct Focus {
  int64_t peak, width;  // its places in `peaks` and `widths`
  double mm[3];         // where it is drawn
  double sigma, per, radius2;  // per: 1 / (2 sigma^2)
  double weight, unit;  // value = weight * unit * (gauss - tangent)
  double edge, end;     // tangent = edge * (1 + end - per * |d|^2); edge is 0 without taper
  Pull pull;
  Reach axis[3];
};

// The foci of one study at one width that reach some planes, with their tables.
template <typename T>
struct Scene {
  const SplatProblem& problem;
  Span planes{0, 0};
  std::vector<Focus> foci;
  std::vector<double> mm_tables;      // voxel centre - peak
  std::vector<double> square_tables;  // its square
  std::vector<T> gauss_tables;        // exp(-square / (2 sigma^2)); 1 for spheres
  std::vector<int64_t> bucket_starts, buckets;  // foci that reach each plane, in their order

  explicit Scene(const SplatProblem& given) : problem(given) {}

  const double* mm(const Focus& focus, int axis) const {
    return mm_tables.data() + focus.axis[axis].table;
  }
  const double* square(const Focus& focus, int axis) const {
    return square_tables.data() + focus.axis[axis].table;
  }
  const T* gauss(const Focus& focus, int axis) const {
    return gauss_tables.data() + focus.axis[axis].table;
  }

  // Numbers of the foci that reach plane x, from the first to behind the last.
  const int64_t* first_focus(int64_t x) const { return bucket(x); }
  const int64_t* last_focus(int64_t x) const { return bucket(x + 1); }

 private:
  const int64_t* bucket(int64_t x) const {
    return buckets.data() + bucket_starts[static_cast<size_t>(x - planes.begin)];
  }
};

inline double offset_mm(const SplatProblem& problem, int axis, int64_t voxel, double peak) {
  return (problem.origin[axis] + problem.spacing[axis] * static_cast<double>(voxel)) - peak;
}

// Voxels [begin, end) that the kernel covers along one axis, of those `within`. Division only finds a
// first guess: the ends are decided by the comparison that defines the support, as in the reference.
Span reach_span(const SplatProblem& problem, int axis, double peak, double radius2, Span within);

// The focus of peak number `peak`, without its tables.
Focus make_focus(const SplatProblem& problem, int64_t study, int64_t kernel, int64_t peak);

// Sets focus.unit and focus.pull so that the kernel sums to 1 over the voxels of an unbounded grid.
void normalize_focus(const SplatProblem& problem, Focus& focus);

// Fills sizes, span and distances of one axis, and gauss in double, on [begin, begin + n).
void gauss_table(const SplatProblem& problem, const Focus& focus, int axis, Span span, bool exact,
                 double* mm, double* square, double* gauss);

void check(const SplatProblem& problem, int threads);

template <typename T>
void add_tables(Scene<T>& scene, Focus& focus, std::vector<double>& gauss) {
  for (int axis = 0; axis < 3; ++axis) {
    Reach& reach = focus.axis[axis];
    const size_t n = static_cast<size_t>(reach.span.end - reach.span.begin);
    const size_t padded = axis == 2 ? (n + kBlock - 1) / kBlock * kBlock : n;
    reach.table = scene.mm_tables.size();
    scene.mm_tables.resize(reach.table + padded);
    scene.square_tables.resize(reach.table + padded);
    scene.gauss_tables.resize(reach.table + padded);
    gauss.resize(n);
    gauss_table(scene.problem, focus, axis, reach.span, sizeof(T) == sizeof(double),
                scene.mm_tables.data() + reach.table, scene.square_tables.data() + reach.table,
                gauss.data());
    for (size_t i = 0; i < n; ++i) {
      scene.gauss_tables[reach.table + i] = static_cast<T>(gauss[i]);
    }
  }
}

template <typename T>
void fill_buckets(Scene<T>& scene) {
  const size_t planes = static_cast<size_t>(scene.planes.end - scene.planes.begin);
  std::vector<int64_t>& starts = scene.bucket_starts;
  starts.assign(planes + 2, 0);  // shifted by one while filling
  const auto for_each_plane = [&](const auto& visit) {
    for (size_t f = 0; f < scene.foci.size(); ++f) {
      const Span xs = scene.foci[f].axis[0].span;
      for (int64_t x = xs.begin; x < xs.end; ++x) {
        visit(static_cast<size_t>(x - scene.planes.begin), static_cast<int64_t>(f));
      }
    }
  };
  for_each_plane([&](size_t plane, int64_t) { ++starts[plane + 2]; });
  for (size_t plane = 2; plane < starts.size(); ++plane) starts[plane] += starts[plane - 1];
  scene.buckets.resize(static_cast<size_t>(starts.back()));
  for_each_plane([&](size_t plane, int64_t f) {
    scene.buckets[static_cast<size_t>(starts[plane + 1]++)] = f;
  });
}

// Makes `scene` that of another study and width; its vectors keep their memory.
template <typename T>
void set_scene(Scene<T>& scene, int64_t study, int64_t kernel, Span planes) {
  const SplatProblem& problem = scene.problem;
  scene.planes = planes;
  scene.foci.clear();
  scene.mm_tables.clear();
  scene.square_tables.clear();
  scene.gauss_tables.clear();
  std::vector<double> gauss;
  for (int64_t p = problem.offsets[study]; p < problem.offsets[study + 1]; ++p) {
    Focus focus = make_focus(problem, study, kernel, p);
    bool visible = true;
    for (int axis = 0; axis < 3 && visible; ++axis) {
      const Span within = axis == 0 ? planes : Span{0, problem.shape[axis]};
      Span& span = focus.axis[axis].span;
      span = reach_span(problem, axis, focus.mm[axis], focus.radius2, within);
      visible = span.begin < span.end;
    }
    if (!visible) continue;
    if (problem.normalize != SplatNormalize::peak) normalize_focus(problem, focus);
    add_tables(scene, focus, gauss);
    scene.foci.push_back(focus);
  }
  fill_buckets(scene);
}

// ---- the rows of one focus in one plane -------------------------------------------------------

// The rows (x, y) of one focus in one plane, y by y from the focus's first: each covers the voxels
// [begin, end) of the z table, none where begin >= end.
struct Rows {
  std::vector<double> xy2, gauss_xy;  // squared distance in the plane, and exp of it
  std::vector<int32_t> begin, end;
  int first, last;  // whole blocks [first, last) of the z table hold all that any row covers

  explicit Rows(int64_t n)
      : xy2(static_cast<size_t>(n)), gauss_xy(xy2), begin(xy2.size()), end(xy2.size()), first(0), last(0) {}
};

// Where along z a ball ends: a guess from the square root, put right by the comparison that defines
// the support. Without branches, so that rows are found several at a time.
struct BallEnds {
  double start, step, peak;  // of the z axis, mm, at the start of its table
  double first, centre, per_mm, last, radius2;

  BallEnds(const SplatProblem& problem, double peak_z, Span span, double given_radius2)
      : start(problem.origin[2]),
        step(problem.spacing[2]),
        peak(peak_z),
        first(static_cast<double>(span.begin)),
        centre((peak_z - (start + step * first)) / step),
        per_mm(1 / std::abs(step)),
        last(static_cast<double>(span.end - span.begin)),
        radius2(given_radius2) {}

  // 1 if a ball covers voxel `i` of the row, 0 if not; the same arithmetic as offset_mm.
  ATLAS_INLINE double covers(double xy2, double i) const {
    const double d = (start + step * (first + i)) - peak;
    return xy2 + d * d <= radius2 ? 1.0 : 0.0;
  }

  ATLAS_INLINE void find(double xy2, int32_t& begin, int32_t& end) const {
    const double rest = radius2 - xy2, half = std::sqrt(rest > 0 ? rest : 0.0) * per_mm;
    const double low = centre - half, high = centre + half;
    double b = floor_within(low) + 1, e = floor_within(high) + 1;
    b -= covers(xy2, b - 1);
    b += 1 - covers(xy2, b);
    e += covers(xy2, e);
    e -= 1 - covers(xy2, e - 1);
    begin = static_cast<int32_t>(b > 0 ? b : 0.0);
    end = static_cast<int32_t>(e < last ? e : last);
  }

 private:
  ATLAS_INLINE double floor_within(double value) const {  // within -1 .. last
    value = value > -1 ? value : -1.0;
    value = value < last ? value : last;
    return static_cast<double>(static_cast<int32_t>(value + 1)) - 1;
  }
};

template <typename T>
ATLAS_INLINE void list_rows(const Scene<T>& scene, const Focus& focus, int64_t x, Rows& rows) {
  const Span xs = focus.axis[0].span, ys = focus.axis[1].span, zs = focus.axis[2].span;
  const double x2 = scene.square(focus, 0)[x - xs.begin];
  const double gauss_x = static_cast<double>(scene.gauss(focus, 0)[x - xs.begin]);
  const double* y2 = scene.square(focus, 1);
  const T* gauss_y = scene.gauss(focus, 1);
  const bool ball = scene.problem.support != SplatSupport::box;
  const int n = static_cast<int>(zs.end - zs.begin), count = static_cast<int>(ys.end - ys.begin);
  const BallEnds ends(scene.problem, focus.mm[2], zs, focus.radius2);
  double *xy2 = rows.xy2.data(), *gauss_xy = rows.gauss_xy.data();
  int32_t *begin = rows.begin.data(), *end = rows.end.data();
  ATLAS_INDEPENDENT
  for (int j = 0; j < count; ++j) {
    xy2[j] = x2 + y2[j];
    gauss_xy[j] = gauss_x * static_cast<double>(gauss_y[j]);
  }
  int first = 0, last = n;
  if (ball) {
    ATLAS_INDEPENDENT
    for (int j = 0; j < count; ++j) ends.find(xy2[j], begin[j], end[j]);
    first = n;
    last = 0;
    for (int j = 0; j < count; ++j) {
      const bool empty = begin[j] >= end[j];
      first = std::min(first, empty ? n : begin[j]);
      last = std::max(last, empty ? 0 : end[j]);
    }
  } else {
    std::fill_n(begin, count, 0);
    std::fill_n(end, count, n);
  }
  rows.first = first & -kBlock;
  rows.last = (last + kBlock - 1) & -kBlock;
}

// 1 for a covered voxel of a row and 0 for another: a factor, as compilers make a branch, which does
// not vectorise, of a choice.
template <typename T>
ATLAS_INLINE T holds(int i, int begin, int end) {
  return static_cast<T>(static_cast<int>(i >= begin) & static_cast<int>(i < end));
}

// The values of one row: scale * gauss_z[i] + base + rise * z2[i]. Forward and backward must agree to
// the bit on who wins a maximum, so both take them from here.
template <typename T>
struct RowValues {
  T scale, base, rise;

  ATLAS_INLINE RowValues(const Focus& focus, double xy2, double gauss_xy) {
    const double height = focus.weight * focus.unit;
    scale = static_cast<T>(height * gauss_xy);
    base = static_cast<T>(-height * focus.edge * (1 + focus.end - xy2 * focus.per));
    rise = static_cast<T>(height * focus.edge * focus.per);
  }

  template <bool taper>
  ATLAS_INLINE T at(T gauss, double z2) const {
    if constexpr (taper) return scale * gauss + (base + rise * static_cast<T>(z2));
    return scale * gauss;
  }
};

// ---- the rows of a plane that any focus reaches ------------------------------------------------

// For each y the voxels [begin, end) along z that were drawn to, so that only they are converted and
// cleared. Widened to whole blocks, hence perhaps past the row's end, into the row after it.
struct Touched {
  std::vector<Span> rows;
  Span ys;  // rows outside are untouched

  explicit Touched(int64_t n) : rows(static_cast<size_t>(n), Span{0, 0}), ys{n, 0} {}

  ATLAS_INLINE void add(const Focus& focus) {
    const Span y = focus.axis[1].span, z = focus.axis[2].span;
    const int64_t end = z.begin + (z.end - z.begin + kBlock - 1) / kBlock * kBlock;
    for (int64_t i = y.begin; i < y.end; ++i) {
      Span& row = rows[static_cast<size_t>(i)];
      const bool fresh = row.begin == row.end;
      row.begin = fresh || z.begin < row.begin ? z.begin : row.begin;
      row.end = fresh || end > row.end ? end : row.end;
    }
    ys = {std::min(ys.begin, y.begin), std::max(ys.end, y.end)};
  }

  bool any() const { return ys.begin < ys.end; }

  // Calls visit(first voxel in the plane, number of voxels).
  template <typename Visit>
  void for_each(int64_t row_length, const Visit& visit) const {
    for (int64_t y = ys.begin; y < ys.end; ++y) {
      const Span row = rows[static_cast<size_t>(y)];
      if (row.begin < row.end) visit(y * row_length + row.begin, row.end - row.begin);
    }
  }

  void clear() {
    for (int64_t y = ys.begin; y < ys.end; ++y) rows[static_cast<size_t>(y)] = {0, 0};
    ys = {static_cast<int64_t>(rows.size()), 0};
  }
};

// ---- how the work is cut ----------------------------------------------------------------------

// A volume is one item of work where there are many, and a slab of planes where there are few. The
// cut does not depend on the number of threads, hence neither do the bits of a gradient.
struct Cut {
  int64_t planes, slabs;  // planes a slab, slabs a volume

  explicit Cut(const SplatProblem& problem) {
    constexpr int64_t kManyVolumes = 16, kSlabPlanes = 16;
    const bool many = problem.n_studies * problem.n_kernels >= kManyVolumes;
    planes = many ? problem.shape[0] : kSlabPlanes;
    slabs = (problem.shape[0] + planes - 1) / planes;
  }
};

}  // namespace atlas_kernels
