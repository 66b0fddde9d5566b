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

#include "common/parallel.h"
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
  Rows rows;                 // of one focus in the plane
  static constexpr bool packs = !std::is_same_v<T, Out>;

  explicit Canvas(const SplatProblem& problem) : touched(problem.shape[1]), rows(problem.shape[1]) {
    const size_t size = static_cast<size_t>(problem.shape[1] * problem.shape[2] + kBlock);
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

// Voxels of a block that the row does not cover get the value 0, which changes nothing in any mode.
template <SplatMode mode, bool taper, typename T>
ATLAS_INLINE void draw_focus(const Scene<T>& scene, const Focus& focus, int64_t x, Rows& rows, T* plane) {
  const T* gauss_z = scene.gauss(focus, 2);
  const double* square_z = scene.square(focus, 2);
  const Span ys = focus.axis[1].span;
  const int64_t row_length = scene.problem.shape[2];
  T* out = plane + ys.begin * row_length + focus.axis[2].span.begin;
  list_rows(scene, focus, x, rows);
  for (size_t j = 0; j < static_cast<size_t>(ys.end - ys.begin); ++j, out += row_length) {
    const int begin = rows.begin[j], end = rows.end[j];
    if (begin >= end) continue;
    const RowValues<T> values(focus, rows.xy2[j], rows.gauss_xy[j]);
    ATLAS_INDEPENDENT
    for (int i = rows.first; i < rows.last; ++i) {
      const T value = values.template at<taper>(gauss_z[i], square_z[i]);
      out[i] = combined<mode>(out[i], value * holds<T>(i, begin, end));
    }
  }
}

template <SplatMode mode, typename T>
ATLAS_INLINE void draw_in_mode(const Scene<T>& scene, int64_t x, Rows& rows, T* plane) {
  for (const int64_t* f = scene.first_focus(x); f != scene.last_focus(x); ++f) {
    const Focus& focus = scene.foci[static_cast<size_t>(*f)];
    if (focus.edge == 0) {
      draw_focus<mode, false>(scene, focus, x, rows, plane);
    } else {
      draw_focus<mode, true>(scene, focus, x, rows, plane);
    }
  }
}

template <typename T>
ATLAS_INLINE void draw_plane(const Scene<T>& scene, int64_t x, Rows& rows, T* plane) {
  const SplatMode mode = scene.problem.mode;
  if (mode == SplatMode::sum || scene.problem.count) {
    draw_in_mode<SplatMode::sum>(scene, x, rows, plane);
  } else if (mode == SplatMode::union_) {
    draw_in_mode<SplatMode::union_>(scene, x, rows, plane);
  } else {
    draw_in_mode<SplatMode::max>(scene, x, rows, plane);
  }
}

ATLAS_MULTIVERSION void draw(const Scene<float>& scene, int64_t x, Rows& rows, float* plane) {
  draw_plane(scene, x, rows, plane);
}
ATLAS_MULTIVERSION void draw(const Scene<double>& scene, int64_t x, Rows& rows, double* plane) {
  draw_plane(scene, x, rows, plane);
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
  draw(scene, x, canvas.rows, canvas.values.data());
  if constexpr (Canvas<T, Out>::packs) {
    canvas.touched.for_each(scene.problem.shape[2], [&](int64_t first, int64_t n) {
      pack(canvas.values.data() + first, canvas.packed.data() + first, n);
    });
  }
  return true;
}

template <typename T, typename Out>
void clear_canvas(const SplatProblem& problem, Canvas<T, Out>& canvas) {
  canvas.touched.for_each(problem.shape[2], [&](int64_t first, int64_t n) {
    std::fill_n(canvas.values.data() + first, n, T(0));
    if constexpr (Canvas<T, Out>::packs) std::fill_n(canvas.packed.data() + first, n, Out{});
  });
  canvas.touched.clear();
}

// Writes planes of one volume. `out` is where the volume starts.
template <typename T, typename Out>
void write_planes(const Scene<T>& scene, Canvas<T, Out>& canvas, Out* out) {
  const SplatProblem& problem = scene.problem;
  const int64_t plane_size = problem.shape[1] * problem.shape[2];
  const int64_t* end = problem.voxels + problem.n_voxels;
  for (int64_t x = scene.planes.begin; x < scene.planes.end; ++x) {
    const bool drawn = fill_canvas(scene, x, canvas);
    const Out* elements = canvas.elements();
    int64_t first = x * plane_size, n = plane_size;
    if (problem.masked()) {
      const int64_t* voxel = std::lower_bound(problem.voxels, end, first);
      n = std::lower_bound(voxel, end, first + plane_size) - voxel;
      if (drawn) {
        for (int64_t i = 0; i < n; ++i) canvas.chosen[static_cast<size_t>(i)] = elements[voxel[i] - first];
        elements = canvas.chosen.data();
      }
      first = voxel - problem.voxels;
    }
    stream_copy(out + first, drawn ? elements : nullptr, static_cast<size_t>(n) * sizeof(Out));
    if (drawn) clear_canvas(problem, canvas);
  }
}

}  // namespace

template <typename Out>
void splat_cpu(const SplatProblem& problem, Out* out, int threads) {
  using T = typename Arithmetic<Out>::type;
  check(problem, threads);
  const Cut cut(problem);
  const int64_t size = problem.n_elements();
  parallel_for(problem.n_studies * problem.n_kernels * cut.slabs, threads, [&](int64_t item) {
    const int64_t volume = item / cut.slabs, first = item % cut.slabs * cut.planes;
    Scene<T> scene(problem);
    set_scene(scene, volume / problem.n_kernels, volume % problem.n_kernels,
              {first, std::min(first + cut.planes, problem.shape[0])});
    Canvas<T, Out> canvas(problem);
    write_planes(scene, canvas, out + volume * size);
    stream_fence();
  });
}

template void splat_cpu(const SplatProblem&, float*, int);
template void splat_cpu(const SplatProblem&, double*, int);
template void splat_cpu(const SplatProblem&, BFloat16*, int);
template void splat_cpu(const SplatProblem&, Float16*, int);
template void splat_cpu(const SplatProblem&, uint8_t*, int);

}  // namespace atlas_kernels
