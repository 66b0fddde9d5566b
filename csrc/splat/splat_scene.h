// What forward and backward share: the foci of one volume, their tables, and their rows in one plane.
//
// The Gaussian is separable, so each focus gets three short tables (its distance to the voxels along
// x, y and z, and the exponential of each); a voxel then costs one multiplication. Tables along y
// and z are padded to whole blocks of kBlock, which is what loops over them run in: with voxels that
// are infinitely far away.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "common/checks.h"
#include "common/multiversion.h"
#include "common/parallel.h"
#include "splat/splat_focus.h"

namespace atlas_kernels {

constexpr int kBlock = 8;

// Of one sigma, along each axis: exp(-step^2 / (2 sigma^2)) and its square.
struct Decay {
  double sigma = 0, half[3] = {0, 0, 0}, whole[3] = {0, 0, 0};
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
  std::vector<float> z2_floats;       // of a single-precision scene, the squares along z
  Decay decay;
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

  const float* z2_float(const Focus& focus) const { return z2_floats.data() + focus.z2_floats; }

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

// Fills the tables of one axis over `span`: distances, their squares and gauss, all in double. Returns
// the place of the voxel nearest to the focus. With `decay`, which is kept from call to call, gauss is
// quick to have and right to a few roundings, which float does not see.
int64_t gauss_table(const SplatProblem& problem, const Focus& focus, int axis, Span span, Decay* decay,
                    double* mm, double* square, double* gauss);

// Whether distances to a focus are such that floats tell the covered voxels from the others: squares of
// whole eighths of a millimetre, which floats hold exactly, and none of them near to radius2. So it is
// for most peaks as they are printed.
bool floats_decide(const SplatProblem& problem, const Focus& focus);

void check(const SplatProblem& problem, int threads);

template <typename T>
void add_tables(Scene<T>& scene, Focus& focus, std::vector<double>& gauss) {
  constexpr bool exact = sizeof(T) == sizeof(double);
  for (int axis = 0; axis < 3; ++axis) {
    Reach& reach = focus.axis[axis];
    const size_t n = static_cast<size_t>(reach.span.end - reach.span.begin);
    const size_t padded = axis ? (n + kBlock - 1) / kBlock * kBlock : n;
    reach.table = scene.mm_tables.size();
    scene.mm_tables.resize(reach.table + padded);
    scene.square_tables.resize(reach.table + padded, HUGE_VAL);
    scene.gauss_tables.resize(reach.table + padded);
    gauss.resize(n);
    focus.nearest[axis] = static_cast<int>(
        gauss_table(scene.problem, focus, axis, reach.span, exact ? nullptr : &scene.decay,
                    scene.mm_tables.data() + reach.table, scene.square_tables.data() + reach.table,
                    gauss.data()));
    for (size_t i = 0; i < n; ++i) {
      scene.gauss_tables[reach.table + i] = static_cast<T>(gauss[i]);
    }
  }
}

// What RowTable needs.
template <typename T>
void add_z2_floats(Scene<T>& scene, Focus& focus) {
  if (!std::is_same_v<T, float>) return;
  const Span span = focus.axis[2].span;
  const size_t n = static_cast<size_t>(span.end - span.begin);
  const double* z2 = scene.square(focus, 2);
  focus.centre_z = static_cast<float>(-scene.mm(focus, 2)[0] / scene.problem.spacing[2]);
  focus.floats_decide = floats_decide(scene.problem, focus);
  focus.z2_floats = scene.z2_floats.size();
  scene.z2_floats.resize(focus.z2_floats + (n + kBlock - 1) / kBlock * kBlock, HUGE_VALF);
  for (size_t i = 0; i < n; ++i) scene.z2_floats[focus.z2_floats + i] = static_cast<float>(z2[i]);
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
  scene.z2_floats.clear();
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
    add_z2_floats(scene, focus);
    scene.foci.push_back(focus);
  }
  fill_buckets(scene);
}

// ---- the rows of one focus in one plane -------------------------------------------------------

// What a plane's rows (x, y) of one focus have in common. A voxel is covered where xy2, its row's
// squared distance, and its z2 add up to at most `limit`: the comparison that defines the support.
struct Rows {
  double x2, gauss_x;
  double limit;  // a box covers all of its tables
  Span y;        // places in the y table of the rows with a covered voxel
  int first, n;  // n voxels, whole blocks, of the z table from `first` hold all that are covered
};

template <typename T>
ATLAS_INLINE Rows plane_rows(const Scene<T>& scene, const Focus& focus, int64_t x) {
  const int64_t i = x - focus.axis[0].span.begin;
  const double *y2 = scene.square(focus, 1), *z2 = scene.square(focus, 2);
  const int size = static_cast<int>(focus.axis[2].span.end - focus.axis[2].span.begin);
  Rows rows{scene.square(focus, 0)[i], static_cast<double>(scene.gauss(focus, 0)[i]), HUGE_VAL,
            {0, focus.axis[1].span.end - focus.axis[1].span.begin}, 0, 0};
  int last = (size + kBlock - 1) & -kBlock;
  if (scene.problem.support != SplatSupport::box) {
    rows.limit = focus.radius2;
    const double nearest_z2 = z2[focus.nearest[2]];
    int before = 0, after = 0;  // rows without a covered voxel; counted, since they lie at the ends
    const int64_t middle = focus.nearest[1];
    for (int64_t j = 0; j < middle; ++j) before += rows.x2 + y2[j] + nearest_z2 > rows.limit;
    for (int64_t j = middle; j < rows.y.end; ++j) after += rows.x2 + y2[j] + nearest_z2 > rows.limit;
    rows.y = {before, rows.y.end - after};
    // Of the longest row; of each block, the voxel nearest to the focus.
    const double xy2 = rows.x2 + y2[focus.nearest[1]];
    while (rows.first + kBlock <= focus.nearest[2] && xy2 + z2[rows.first + kBlock - 1] > rows.limit) {
      rows.first += kBlock;
    }
    while (last - kBlock > focus.nearest[2] && xy2 + z2[last - kBlock] > rows.limit) last -= kBlock;
  }
  rows.n = last - rows.first;
  return rows;
}

template <int n>
using Count = std::integral_constant<int, n>;

// Which voxels of a row are covered: by definition, or `quick`, see RowTable.
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

// What the rows of a focus in one plane need of floats alone, made for all of them at once: the greatest
// z2 that is covered, so that covering costs one comparison of floats a voxel, where the definition takes
// a sum and a comparison of doubles; and the value where z is 0.
class RowTable {
 public:
  explicit RowTable(const SplatProblem& problem)
      : limits_(static_cast<size_t>(problem.shape[1] + kBlock)), scales_(limits_.size()) {}

  float limit(int64_t row) const { return limits_[static_cast<size_t>(row)]; }
  float scale(int64_t row) const { return scales_[static_cast<size_t>(row)]; }

  // In whole blocks of rows: tables along y are padded too. False if a voxel is too near to the edge for
  // both to decide alike: then no limit holds.
  ATLAS_INLINE bool find(const Scene<float>& scene, const Focus& focus, const Rows& rows) {
    const int64_t n = focus.axis[1].span.end - focus.axis[1].span.begin, padded = (n + kBlock - 1) & -kBlock;
    const double *y2 = scene.square(focus, 1), left = rows.limit - rows.x2;
    const double height = focus.weight * focus.unit, gauss_x = rows.gauss_x;
    const float* ATLAS_RESTRICT gauss_y = scene.gauss(focus, 1);
    float *ATLAS_RESTRICT limits = limits_.data(), *ATLAS_RESTRICT scales = scales_.data();
    for (int64_t j = 0; j < padded; ++j) {
      scales[j] = static_cast<float>(height * (gauss_x * static_cast<double>(gauss_y[j])));
    }
    if (!(left < HUGE_VAL)) {
      std::fill_n(limits, n, HUGE_VALF);
      return true;
    }
    for (int64_t j = 0; j < padded; ++j) limits[j] = static_cast<float>(left - y2[j]);
    return focus.floats_decide || sure(scene, focus, rows);
  }

 private:
  // Floats hold places to 1e-4.
  ATLAS_INLINE bool sure(const Scene<float>& scene, const Focus& focus, const Rows& rows) const {
    const float per_step = static_cast<float>(1 / std::abs(scene.problem.spacing[2]));
    const float centre = focus.centre_z;
    int unsure = 0;  // a limit below 0, by rounding, is unsure too
    for (int64_t j = rows.y.begin; j < rows.y.end; ++j) {
      const float reach = std::sqrt(limits_[static_cast<size_t>(j)]) * per_step;
      const float off = std::min(to_whole(centre + reach), to_whole(centre - reach));
      unsure += !((off > 1e-3f) & (reach < 1000));
    }
    return !unsure;
  }

  // How far a place is from the nearest whole number.
  static ATLAS_INLINE float to_whole(float place) {
    constexpr float kWhole = 0x1.8p23f;
    return std::abs((place + kWhole - kWhole) - place);
  }

  std::vector<float> limits_, scales_;
};

// One row, from `start` in the plane on; the values of a focus there are scale * gauss[i] + base + rise *
// z2[i]. Forward and backward must agree to the bit on who wins a maximum, so both take them from here.
template <typename T>
struct Row {
  int64_t start, j;  // j: its place in the y table
  int first;         // the place of its first voxel in the z table
  const T* gauss;
  const double* z2;
  T scale, base, rise;

  template <bool taper>
  ATLAS_INLINE T at(int i) const {
    if constexpr (taper) return scale * gauss[i] + (base + rise * static_cast<T>(z2[i]));
    return scale * gauss[i];
  }
};

// Calls visit(focus, taper) for each focus that reaches plane x, in their order; `taper` is a constant.
template <typename T, typename Visit>
ATLAS_INLINE void for_each_focus(const Scene<T>& scene, int64_t x, const Visit& visit) {
  for (const int64_t* f = scene.first_focus(x); f != scene.last_focus(x); ++f) {
    const Focus& focus = scene.foci[static_cast<size_t>(*f)];
    if (focus.edge == 0) {
      visit(focus, std::false_type());
    } else {
      visit(focus, std::true_type());
    }
  }
}

// Calls visit(row, cover, n) for each of the rows; `n`, its voxels, is an int or a constant.
template <bool taper, bool quick, typename T, typename N, typename Visit>
ATLAS_INLINE void for_rows(const Scene<T>& scene, const Focus& focus, const Rows& rows,
                           const RowTable& table, N n, const Visit& visit) {
  const T* gauss_y = scene.gauss(focus, 1);
  const double *y2 = scene.square(focus, 1), height = focus.weight * focus.unit;
  const int64_t row_length = scene.problem.shape[2];
  Row<T> row{};
  row.start = (focus.axis[1].span.begin + rows.y.begin) * row_length;
  row.start += focus.axis[2].span.begin + rows.first;
  row.first = rows.first;
  row.gauss = scene.gauss(focus, 2) + rows.first;
  row.z2 = scene.square(focus, 2) + rows.first;
  for (row.j = rows.y.begin; row.j < rows.y.end; ++row.j, row.start += row_length) {
    if constexpr (quick) {
      row.scale = table.scale(row.j);
      visit(row, Cover<true>{scene.z2_float(focus) + rows.first, table.limit(row.j)}, n);
    } else {
      const double xy2 = rows.x2 + y2[row.j], gauss_xy = rows.gauss_x * static_cast<double>(gauss_y[row.j]);
      row.scale = static_cast<T>(height * gauss_xy);
      if constexpr (taper) {
        row.base = static_cast<T>(-height * focus.edge * (1 + focus.end - xy2 * focus.per));
        row.rise = static_cast<T>(height * focus.edge * focus.per);
      }
      visit(row, Cover<false>{row.z2, xy2, rows.limit}, n);
    }
  }
}

// Calls visit(row, cover, n) for each row of a focus in plane x that holds covered voxels: n of them,
// whole blocks. Three of them, usual at 12 mm, are a constant; for fewer the compiler does worse with one.
template <bool taper, typename T, typename Visit>
ATLAS_INLINE void for_each_row(const Scene<T>& scene, const Focus& focus, int64_t x, RowTable& table,
                               const Visit& visit) {
  const Rows rows = plane_rows(scene, focus, x);
  if constexpr (!taper && std::is_same_v<T, float>) {
    if (table.find(scene, focus, rows)) {
      if (rows.n == 3 * kBlock) return for_rows<taper, true>(scene, focus, rows, table, Count<3 * kBlock>(), visit);
      return for_rows<taper, true>(scene, focus, rows, table, rows.n & -kBlock, visit);
    }
  }
  for_rows<taper, false>(scene, focus, rows, table, rows.n & -kBlock, visit);
}

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

// Calls work(scene, canvas, unit) for each unit, with the scene of its planes. Each thread makes one
// scene and one canvas, and takes the next unit when it is done with one.
template <typename T, typename Canvas, typename Work>
void for_each_unit(const SplatProblem& problem, const Cut& cut, int threads, const Work& work) {
  std::atomic<int64_t> next{0};
  parallel_for(std::min<int64_t>(threads, cut.units), threads, [&](int64_t) {
    Scene<T> scene(problem);
    Canvas canvas(problem);
    for (int64_t unit; (unit = next.fetch_add(1)) < cut.units;) {
      const int64_t volume = unit / cut.slabs;
      set_scene(scene, volume / problem.n_kernels, volume % problem.n_kernels,
                cut.planes_of(problem, unit));
      work(scene, canvas, unit);
    }
  });
}

}  // namespace atlas_kernels
