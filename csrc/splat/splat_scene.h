// What forward and backward share: the foci of one volume, their tables, and their rows in one plane.
//
// The Gaussian is separable, so each focus gets three short tables (its distance to the voxels along
// x, y and z, and the exponential of each); a voxel then costs one multiplication. Behind each table
// come kMargin voxels that are infinitely far away, so that loops may run in whole blocks.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <type_traits>
#include <vector>

#include "common/checks.h"
#include "common/multiversion.h"
#include "common/parallel.h"
#include "common/scratch.h"
#include "splat/rows_avx512.h"
#include "splat/splat_focus.h"

namespace atlas_kernels {

constexpr int kBlock = 8;
constexpr int kMargin = 2 * kBlock;  // how far behind a table or a plane a loop may read

// Of one sigma, along each axis: exp(-step^2 / (2 sigma^2)) and its square.
struct Decay {
  double sigma = 0, half[3] = {0, 0, 0}, whole[3] = {0, 0, 0};
};

// One focus in one plane. Rows and voxels of a row are places in its tables along y and z; those left out
// are not covered.
struct Slice {
  int64_t start;           // of the first row's first voxel, in the plane
  int32_t focus;           // its number in the scene
  int32_t y_begin, y_end;  // rows
  int32_t first, n;        // n voxels of each, whole blocks, from `first` on
  float left, scale;       // as in QuickRows
  bool quick;              // QuickRows holds: floats decide like doubles which voxels are covered
};

// The same of all planes of one focus.
struct Slices {
  Scratch<int32_t> y_begin, y_end, first, n;
  Scratch<float> left, scale;
  Scratch<double> half;  // what is left of the radius, mm

  explicit Slices(int64_t planes)
      : y_begin(static_cast<size_t>(planes)),
        y_end(y_begin),
        first(y_begin),
        n(y_begin),
        left(y_begin.size()),
        scale(left),
        half(left.size()) {}
};

// The tables of one axis for one coordinate.
struct AxisTable {
  double mm, sigma, radius2;  // whose
  Span span;
  double centre;  // where the focus lies, counted in places of the table
  size_t table;   // where it starts
};

// The foci of one study at one width that reach some planes, with their tables. Peaks are mostly printed
// in whole millimetres, so many of them share tables: those found last are kept from study to study.
template <typename T>
struct Scene {
  const SplatProblem& problem;
  const bool wide = has_avx512();
  Span planes{0, 0};
  Scratch<Focus> foci;
  Scratch<double> mm_tables;      // voxel centre - peak
  Scratch<double> square_tables;  // its square
  Scratch<T> gauss_tables;        // exp(-square / (2 sigma^2)); 1 for spheres
  Scratch<float> square_floats;   // of a single-precision scene, the squares once more
  size_t room = 0;                // what is used of the tables
  Scratch<AxisTable> known[3];    // by a hash of the coordinate
  Decay decay;
  Slices of_focus;               // of the one that is being made
  Scratch<Slice> slices;         // plane by plane, in the order of the foci
  Scratch<size_t> slice_starts;  // of each plane

  explicit Scene(const SplatProblem& given) : problem(given), of_focus(given.shape[0]) {}

  const double* mm(const Focus& focus, int axis) const {
    return mm_tables.data() + focus.axis[axis].table;
  }
  const double* square(const Focus& focus, int axis) const {
    return square_tables.data() + focus.axis[axis].table;
  }
  const T* gauss(const Focus& focus, int axis) const {
    return gauss_tables.data() + focus.axis[axis].table;
  }

  const float* square_float(const Focus& focus, int axis) const {
    return square_floats.data() + focus.axis[axis].table;
  }

  const Focus& focus(const Slice& slice) const { return foci[static_cast<size_t>(slice.focus)]; }

  // Of plane x, from the first to behind the last.
  const Slice* first_slice(int64_t x) const { return slice(x); }
  const Slice* last_slice(int64_t x) const { return slice(x + 1); }

 private:
  const Slice* slice(int64_t x) const {
    return slices.data() + slice_starts[static_cast<size_t>(x - planes.begin)];
  }
};

// Sets focus.unit and focus.pull so that the kernel sums to 1 over the voxels of an unbounded grid.
void normalize_focus(const SplatProblem& problem, Focus& focus);

// The greatest squared distance that is covered: a box covers all of its tables.
inline double limit_of(const SplatProblem& problem, const Focus& focus) {
  return problem.support == SplatSupport::box ? HUGE_VAL : focus.radius2;
}

void check(const SplatProblem& problem, int threads);

// Makes `scene` that of another study and width, between two planes; its vectors keep their memory.
void set_scene(Scene<float>& scene, int64_t study, int64_t kernel, Span planes);
void set_scene(Scene<double>& scene, int64_t study, int64_t kernel, Span planes);

// ---- the rows of one focus in one plane -------------------------------------------------------

template <int n>
using Count = std::integral_constant<int, n>;

// Which voxels of a row are covered: by definition, or `quick`, see QuickRows.
template <bool quick>
struct Cover {
  const double* z2;
  double xy2, limit;
  ATLAS_INLINE int operator()(int i) const { return xy2 + z2[i] <= limit; }
};
template <>
struct Cover<true> {
  const float* z2;
  float limit;
  ATLAS_INLINE int operator()(int i) const { return z2[i] <= limit; }
};

ATLAS_INLINE QuickRows quick_rows(const Scene<float>& scene, const Focus& focus, const Slice& slice) {
  return {slice.y_end - slice.y_begin,
          slice.start,
          scene.problem.shape[2],
          slice.n,
          slice.left,
          slice.scale,
          scene.square_float(focus, 1) + slice.y_begin,
          scene.gauss(focus, 1) + slice.y_begin,
          scene.square_float(focus, 2) + slice.first,
          scene.gauss(focus, 2) + slice.first};
}

// One row, from `start` in the plane on; the values of a focus there are scale * gauss[i] + base + rise *
// z2[i]. Forward and backward must agree to the bit on who wins a maximum, so both take them from here.
template <typename T>
struct Row {
  int64_t start, j;  // j: its place in the y table
  const T* gauss;
  const double* z2;
  T scale, base, rise;

  template <bool taper>
  ATLAS_INLINE T at(int i) const {
    if constexpr (taper) return scale * gauss[i] + (base + rise * static_cast<T>(z2[i]));
    return scale * gauss[i];
  }
};

// Calls visit(focus, slice, taper) for each focus that reaches plane x, in their order; `taper` is a
// constant.
template <typename T, typename Visit>
ATLAS_INLINE void for_each_focus(const Scene<T>& scene, int64_t x, const Visit& visit) {
  for (const Slice* slice = scene.first_slice(x); slice != scene.last_slice(x); ++slice) {
    const Focus& focus = scene.focus(*slice);
    if (focus.edge == 0) {
      visit(focus, *slice, std::false_type());
    } else {
      visit(focus, *slice, std::true_type());
    }
  }
}

// Calls visit(row, cover, n) for each of the rows; `n`, its voxels, is an int or a constant.
template <typename N, typename Visit>
ATLAS_INLINE void for_quick_rows(const QuickRows& rows, int64_t first, N n, const Visit& visit) {
  Row<float> row{rows.start, first, rows.gauss_z, nullptr, 0, 0, 0};
  for (int64_t j = 0; j < rows.rows; ++j, ++row.j, row.start += rows.row_length) {
    row.scale = rows.scale * rows.gauss_y[j];
    visit(row, Cover<true>{rows.z2, rows.left - rows.y2[j]}, n);
  }
}

// The same by definition: a voxel is covered where xy2, its row's squared distance, and its z2 add up to
// at most the limit.
template <bool taper, typename T, typename Visit>
ATLAS_INLINE void for_rows(const Scene<T>& scene, const Focus& focus, const Slice& slice, int64_t x,
                           const Visit& visit) {
  const int64_t i = x - focus.axis[0].span.begin;
  const double x2 = scene.square(focus, 0)[i], gauss_x = static_cast<double>(scene.gauss(focus, 0)[i]);
  const double limit = limit_of(scene.problem, focus), height = focus.weight * focus.unit;
  const double* y2 = scene.square(focus, 1);
  const T* gauss_y = scene.gauss(focus, 1);
  Row<T> row{slice.start, slice.y_begin, scene.gauss(focus, 2) + slice.first,
             scene.square(focus, 2) + slice.first, 0, 0, 0};
  for (; row.j < slice.y_end; ++row.j, row.start += scene.problem.shape[2]) {
    const double xy2 = x2 + y2[row.j], gauss_xy = gauss_x * static_cast<double>(gauss_y[row.j]);
    row.scale = static_cast<T>(height * gauss_xy);
    if constexpr (taper) {
      row.base = static_cast<T>(-height * focus.edge * (1 + focus.end - xy2 * focus.per));
      row.rise = static_cast<T>(height * focus.edge * focus.per);
    }
    visit(row, Cover<false>{row.z2, xy2, limit}, slice.n & -kBlock);
  }
}

// Calls visit(row, cover, n) for each row of a focus in plane x: n voxels, whole blocks. Three blocks,
// usual at 12 mm, are a constant; for fewer the compiler does worse with one. Or else it calls quick(rows)
// for all of them, which returns whether it took them.
template <bool taper, typename T, typename Visit, typename Quick>
ATLAS_INLINE void for_each_row(const Scene<T>& scene, const Focus& focus, const Slice& slice, int64_t x,
                               const Visit& visit, const Quick& quick) {
  if constexpr (!taper && std::is_same_v<T, float>) {
    if (slice.quick) {
      const QuickRows rows = quick_rows(scene, focus, slice);
      if (quick(rows)) return;
      if (rows.n == 3 * kBlock) return for_quick_rows(rows, slice.y_begin, Count<3 * kBlock>(), visit);
      return for_quick_rows(rows, slice.y_begin, rows.n & -kBlock, visit);
    }
  }
  for_rows<taper>(scene, focus, slice, x, visit);
}

// ---- how the work is cut ----------------------------------------------------------------------

// The unit of work is a volume where there are many, and a slab of planes where there are few. The cut
// does not depend on the number of threads, hence neither do the bits of a gradient.
struct Cut {
  int64_t planes, slabs, units;  // planes a slab, slabs a volume, slabs in all

  explicit Cut(const SplatProblem& problem) {
    constexpr int64_t kManyVolumes = 16, kSlabPlanes = 16;
    const int64_t volumes = problem.n_studies * problem.n_kernels;
    planes = volumes >= kManyVolumes ? problem.shape[0] : kSlabPlanes;
    slabs = (problem.shape[0] + planes - 1) / planes;
    units = volumes * slabs;
  }

  Span planes_of(const SplatProblem& problem, int64_t unit) const {
    const int64_t first = unit % slabs * planes;
    return {first, std::min(first + planes, problem.shape[0])};
  }
};

// Units of the studies with most peaks first: so the last ones to be done are small.
inline Scratch<int64_t> units_by_size(const SplatProblem& problem, const Cut& cut) {
  const auto peaks = [&](int64_t unit) {
    const int64_t study = unit / cut.slabs / problem.n_kernels;
    return problem.offsets[study + 1] - problem.offsets[study];
  };
  Scratch<int64_t> units(static_cast<size_t>(cut.units));
  std::iota(units.begin(), units.end(), 0);
  std::stable_sort(units.begin(), units.end(), [&](int64_t a, int64_t b) { return peaks(a) > peaks(b); });
  return units;
}

// Calls work(scene, canvas, unit) for each unit, with the scene of its planes. Each thread makes one
// scene and one canvas, and takes the next unit when it is done with one.
template <typename T, typename Canvas, typename Work>
void for_each_unit(const SplatProblem& problem, const Cut& cut, int threads, const Work& work) {
  const Scratch<int64_t> units = units_by_size(problem, cut);
  std::atomic<int64_t> next{0};
  parallel_for(std::min<int64_t>(threads, cut.units), threads, [&](int64_t) {
    Scene<T> scene(problem);
    Canvas canvas(problem);
    for (int64_t i; (i = next.fetch_add(1)) < cut.units;) {
      const int64_t unit = units[static_cast<size_t>(i)], volume = unit / cut.slabs;
      set_scene(scene, volume / problem.n_kernels, volume % problem.n_kernels,
                cut.planes_of(problem, unit));
      work(scene, canvas, unit);
    }
  });
}

}  // namespace atlas_kernels
