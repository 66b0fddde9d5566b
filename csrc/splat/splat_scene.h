// What forward and backward share: the foci of one volume, their tables, and their rows in one plane.
//
// The Gaussian is separable, so each focus gets three short tables (its distance to the voxels along
// x, y and z, and the exponential of each); a voxel then costs one multiplication. Tables along z
// are padded to whole blocks of kBlock, which is what the loops over a row run in: with voxels that are
// infinitely far away.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "common/checks.h"
#include "common/multiversion.h"
#include "splat/splat_focus.h"

namespace atlas_kernels {

constexpr int kBlock = 8;

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
    scene.square_tables.resize(reach.table + padded, HUGE_VAL);
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

template <typename T>
int nearest(const Scene<T>& scene, const Focus& focus, int axis) {
  const double* square = scene.square(focus, axis);
  const Span span = focus.axis[axis].span;
  return static_cast<int>(std::min_element(square, square + (span.end - span.begin)) - square);
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
    focus.nearest_y = nearest(scene, focus, 1);
    focus.nearest_z = nearest(scene, focus, 2);
    scene.foci.push_back(focus);
  }
  fill_buckets(scene);
}

// ---- the rows of one focus in one plane -------------------------------------------------------

// What a plane's rows (x, y) of one focus have in common. A voxel is covered where xy2, its row's
// squared distance, and its z2 add up to at most `limit`: the comparison that defines the support.
struct Rows {
  double x2, gauss_x;
  double limit;       // a box covers all of its tables
  double nearest_z2;  // a row further away than this allows covers nothing
  int first, n;       // n voxels, whole blocks, of the z table from `first` hold all that are covered
};

template <typename T>
ATLAS_INLINE Rows plane_rows(const Scene<T>& scene, const Focus& focus, int64_t x) {
  const int64_t i = x - focus.axis[0].span.begin;
  const double *y2 = scene.square(focus, 1), *z2 = scene.square(focus, 2);
  const int size = static_cast<int>(focus.axis[2].span.end - focus.axis[2].span.begin);
  Rows rows{scene.square(focus, 0)[i], static_cast<double>(scene.gauss(focus, 0)[i]), HUGE_VAL,
            z2[focus.nearest_z], 0, 0};
  int last = (size + kBlock - 1) & -kBlock;
  if (scene.problem.support != SplatSupport::box) {
    rows.limit = focus.radius2;
    // Of the longest row; of each block, the voxel nearest to the focus.
    const double xy2 = rows.x2 + y2[focus.nearest_y];
    while (rows.first + kBlock <= focus.nearest_z && xy2 + z2[rows.first + kBlock - 1] > rows.limit) {
      rows.first += kBlock;
    }
    while (last - kBlock > focus.nearest_z && xy2 + z2[last - kBlock] > rows.limit) last -= kBlock;
  }
  rows.n = last - rows.first;
  return rows;
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
  static constexpr int32_t kNever = INT32_MAX;
  std::vector<int32_t> begin, end;
  int64_t first_y, last_y;  // rows outside are untouched

  explicit Touched(int64_t n)
      : begin(static_cast<size_t>(n), kNever), end(begin.size(), 0), first_y(n), last_y(0) {}

  void add(const Focus& focus) {
    const Span y = focus.axis[1].span, z = focus.axis[2].span;
    const int32_t z_begin = static_cast<int32_t>(z.begin);
    const int32_t z_end = z_begin + ((static_cast<int32_t>(z.end - z.begin) + kBlock - 1) & -kBlock);
    int32_t *begins = begin.data() + y.begin, *ends = end.data() + y.begin;
    for (int64_t i = 0; i < y.end - y.begin; ++i) {
      begins[i] = std::min(begins[i], z_begin);
      ends[i] = std::max(ends[i], z_end);
    }
    first_y = std::min(first_y, y.begin);
    last_y = std::max(last_y, y.end);
  }

  bool any() const { return first_y < last_y; }

  // Calls visit(first voxel in the plane, number of voxels).
  template <typename Visit>
  ATLAS_INLINE void for_each(int64_t row_length, const Visit& visit) const {
    for (int64_t y = first_y; y < last_y; ++y) {
      const int32_t from = begin[static_cast<size_t>(y)], to = end[static_cast<size_t>(y)];
      if (from < to) visit(y * row_length + from, to - from);
    }
  }

  void clear() {
    for (int64_t y = first_y; y < last_y; ++y) {
      begin[static_cast<size_t>(y)] = kNever;
      end[static_cast<size_t>(y)] = 0;
    }
    first_y = static_cast<int64_t>(begin.size());
    last_y = 0;
  }
};

// ---- how the work is cut ----------------------------------------------------------------------

// The unit of work is a volume where there are many, and a slab of planes where there are few. The cut
// does not depend on the number of threads, hence neither do the bits of a gradient. Threads take
// several units at a time and keep their memory between them.
struct Cut {
  int64_t planes, slabs, units;  // planes a slab, slabs a volume, slabs in all
  int64_t share, items;          // units an item of parallel_for, items

  Cut(const SplatProblem& problem, int threads) {
    constexpr int64_t kManyVolumes = 16, kSlabPlanes = 16, kSharesPerThread = 8;
    const int64_t volumes = problem.n_studies * problem.n_kernels;
    planes = volumes >= kManyVolumes ? problem.shape[0] : kSlabPlanes;
    slabs = (problem.shape[0] + planes - 1) / planes;
    units = volumes * slabs;
    share = std::max<int64_t>(1, units / (kSharesPerThread * threads));
    items = (units + share - 1) / share;
  }

  Span units_of(int64_t item) const { return {item * share, std::min(units, (item + 1) * share)}; }

  Span planes_of(const SplatProblem& problem, int64_t unit) const {
    const int64_t first = unit % slabs * planes;
    return {first, std::min(first + planes, problem.shape[0])};
  }
};

}  // namespace atlas_kernels
