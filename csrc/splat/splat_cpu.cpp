// splat on the CPU, forward.
//
// One pass over the output: each plane is drawn in a canvas that stays in cache and then streamed out
// whole, zeros included, past the cache. Memory is written once and never read.
//
// Loop order: volume (or slab of x-planes), plane, focus, row (x, y), z. Every plane is drawn in the
// order of its foci, so neither threads nor slabs change the bits.
//
// Work: O(B K X Y Z) for the streaming + O(K * foci * voxels in a support). Tables in double, rounded
// once, keep float32 within 1e-6 relative of float64 (for weights of one sign).
//
// Siblings: splat.h (contract), splat_scene.h (tables and rows), splat_backward_cpu.cpp.

#include <algorithm>
#include <type_traits>

#include "common/stream.h"
#include "splat/splat_scene.h"

namespace atlas_kernels {
namespace {

// What one thread draws in. `values` and `packed` are 0 outside of what is touched.
template <typename T, typename Out>
struct Canvas {
  Touched touched;
  std::vector<T> values;     // one plane
  std::vector<Out> packed;   // the same rounded, where Out is not T
  std::vector<Out> chosen;   // the same, of some voxels only
  RowTable table;
  static constexpr bool packs = !std::is_same_v<T, Out>;

  explicit Canvas(const SplatProblem& problem) : touched(problem.shape[1]), table(problem) {
    const size_t size = static_cast<size_t>(problem.shape[1] * problem.shape[2] + 2 * kBlock);
    values.assign(size, T(0));
    if (packs) packed.assign(size, Out{});
    if (problem.masked()) chosen.resize(size);
  }

  const Out* elements() const {
    if constexpr (packs) {
      return packed.data();
    } else {
      return values.data();
    }
  }
};

template <SplatMode mode, typename T>
ATLAS_INLINE T combined(T before, T value) {
  if constexpr (mode == SplatMode::sum) return before + value;
  if constexpr (mode == SplatMode::union_) return before + value * (1 - before);
  return value > before ? value : before;
}

// Voxels of a block that are not covered get the value 0, which changes nothing in any mode.
template <SplatMode mode, bool taper, typename T>
ATLAS_INLINE void draw_focus(const Scene<T>& scene, const Focus& focus, int64_t x, RowTable& table,
                             T* plane) {
  for_each_row<taper>(scene, focus, x, table, [&](const Row<T>& row, const auto& cover, auto n) ATLAS_INLINED {
    T* out = plane + row.start;
    ATLAS_INDEPENDENT
    for (int i = 0; i < n; ++i) {
      out[i] = combined<mode>(out[i], kept(row.template at<taper>(i), cover(i)));
    }
  });
}

template <SplatMode mode, typename T>
ATLAS_INLINE void draw_in_mode(const Scene<T>& scene, int64_t x, RowTable& table, T* plane) {
  for_each_focus(scene, x, [&](const Focus& focus, auto taper) ATLAS_INLINED {
    draw_focus<mode, decltype(taper)::value>(scene, focus, x, table, plane);
  });
}

template <typename T>
ATLAS_INLINE void draw_plane(const Scene<T>& scene, int64_t x, RowTable& table, T* plane) {
  const SplatMode mode = scene.problem.mode;
  if (mode == SplatMode::sum || scene.problem.count) {
    draw_in_mode<SplatMode::sum>(scene, x, table, plane);
  } else if (mode == SplatMode::union_) {
    draw_in_mode<SplatMode::union_>(scene, x, table, plane);
  } else {
    draw_in_mode<SplatMode::max>(scene, x, table, plane);
  }
}

ATLAS_MULTIVERSION void draw(const Scene<float>& scene, int64_t x, RowTable& table, float* plane) {
  draw_plane(scene, x, table, plane);
}
ATLAS_MULTIVERSION void draw(const Scene<double>& scene, int64_t x, RowTable& table, double* plane) {
  draw_plane(scene, x, table, plane);
}

template <typename T, typename Out>
ATLAS_INLINE void pack_row(const T* ATLAS_RESTRICT values, Out* ATLAS_RESTRICT packed, int64_t n) {
  for (int64_t i = 0; i < n; ++i) store(values[i], packed[i]);
}

ATLAS_MULTIVERSION void pack(const float* values, BFloat16* packed, int64_t n) {
  pack_row(values, packed, n);
}
ATLAS_MULTIVERSION void pack(const float* values, Float16* packed, int64_t n) {
  pack_row(values, packed, n);
}
ATLAS_MULTIVERSION void pack(const float* values, uint8_t* packed, int64_t n) {
  pack_row(values, packed, n);
}

// Draws plane x into the canvas; false if it is empty.
template <typename T, typename Out>
bool fill_canvas(const Scene<T>& scene, int64_t x, Canvas<T, Out>& canvas) {
  for (const int64_t* f = scene.first_focus(x); f != scene.last_focus(x); ++f) {
    canvas.touched.add(scene.foci[static_cast<size_t>(*f)]);
  }
  if (!canvas.touched.any()) return false;
  draw(scene, x, canvas.table, canvas.values.data());
  if constexpr (Canvas<T, Out>::packs) {
    canvas.touched.for_each(scene.problem.shape[2], [&](int64_t first, int64_t n) {
      pack(canvas.values.data() + first, canvas.packed.data() + first, n);
    });
  }
  return true;
}

// In whole blocks, which costs less than counting; what is cleared too much is 0 already, or will be.
template <typename T, typename Out>
ATLAS_INLINE void clear_rows(int64_t row_length, Canvas<T, Out>& canvas) {
  canvas.touched.for_each(row_length, [&](int64_t first, int64_t n) {
    for (int64_t i = first; i < first + n; i += kBlock) {
      std::fill_n(canvas.values.data() + i, kBlock, T(0));
      if constexpr (Canvas<T, Out>::packs) std::fill_n(canvas.packed.data() + i, kBlock, Out{});
    }
  });
  canvas.touched.clear();
}

// The elements of a plane that the mask holds, in its order: [*n of them].
template <typename T, typename Out>
const Out* choose_elements(const SplatProblem& problem, int64_t x, Canvas<T, Out>& canvas, size_t* n) {
  const int64_t plane_size = problem.shape[1] * problem.shape[2], start = x * plane_size;
  const int64_t* end = problem.voxels + problem.n_voxels;
  const int64_t* first = std::lower_bound(problem.voxels, end, start);
  const int64_t* last = std::lower_bound(first, end, start + plane_size);
  Out* chosen = canvas.chosen.data();
  for (const int64_t* voxel = first; voxel < last; ++voxel) *chosen++ = canvas.elements()[*voxel - start];
  *n = static_cast<size_t>(last - first);
  return canvas.chosen.data();
}

// A plane in three pieces, of which the first and the last are empty rows and need not be read.
template <typename T, typename Out>
void put_plane(const SplatProblem& problem, const Canvas<T, Out>& canvas, Stream& stream) {
  const int64_t rows = problem.shape[1], bytes = problem.shape[2] * static_cast<int64_t>(sizeof(Out));
  const int64_t first = std::min(canvas.touched.first_y, rows);
  const int64_t last = std::max(first, std::min(canvas.touched.last_y, rows));
  stream.put(nullptr, static_cast<size_t>(first * bytes));
  stream.put(canvas.elements() + first * problem.shape[2], static_cast<size_t>((last - first) * bytes));
  stream.put(nullptr, static_cast<size_t>((rows - last) * bytes));
}

// Draws the scene's planes and streams them to `out`.
template <typename T, typename Out>
void write_planes(const Scene<T>& scene, Canvas<T, Out>& canvas, Out* out) {
  const SplatProblem& problem = scene.problem;
  Stream stream(out);
  for (int64_t x = scene.planes.begin; x < scene.planes.end; ++x) {
    const bool drawn = fill_canvas(scene, x, canvas);
    if (problem.masked()) {
      size_t n;
      const Out* elements = choose_elements(problem, x, canvas, &n);
      stream.put(drawn ? elements : nullptr, n * sizeof(Out));
    } else {
      put_plane(problem, canvas, stream);
    }
    if (drawn) clear_rows(problem.shape[2], canvas);
  }
}

// Where in a volume of the output plane x begins.
int64_t first_element(const SplatProblem& problem, int64_t x) {
  const int64_t voxel = x * problem.shape[1] * problem.shape[2];
  if (!problem.masked()) return voxel;
  return std::lower_bound(problem.voxels, problem.voxels + problem.n_voxels, voxel) - problem.voxels;
}

}  // namespace

template <typename Out>
void splat_cpu(const SplatProblem& problem, Out* out, int threads) {
  using T = typename Arithmetic<Out>::type;
  check(problem, threads);
  const Cut cut(problem);
  for_each_unit<T, Canvas<T, Out>>(problem, cut, threads, [&](auto& scene, auto& canvas, int64_t unit) {
    const int64_t volume = unit / cut.slabs;
    const int64_t first = volume * problem.n_elements() + first_element(problem, scene.planes.begin);
    write_planes(scene, canvas, out + first);
  });
}

template void splat_cpu(const SplatProblem&, float*, int);
template void splat_cpu(const SplatProblem&, double*, int);
template void splat_cpu(const SplatProblem&, BFloat16*, int);
template void splat_cpu(const SplatProblem&, Float16*, int);
template void splat_cpu(const SplatProblem&, uint8_t*, int);

}  // namespace atlas_kernels
