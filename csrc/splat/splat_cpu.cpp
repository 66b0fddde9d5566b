// splat on the CPU, forward.
//
// One pass over the output: each plane is drawn in a canvas that stays in cache and then streamed out
// whole, zeros included, past the cache, and the canvas cleared on the way. Memory is written once and never read.
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

// What one thread draws in: one plane, and what leaves it next. `values` are 0 between planes.
template <typename T, typename Out>
struct Canvas {
  std::vector<char> drawn;   // for each row along y, whether foci reach it
  std::vector<T> values;     // one plane
  std::vector<T> chosen;     // of some voxels only
  std::vector<Out> rounded;  // a piece of either, where Out is not T
  Radii radii;

  explicit Canvas(const SplatProblem& problem) : radii(problem) {
    const size_t size = static_cast<size_t>(problem.shape[1] * problem.shape[2] + 2 * kBlock);
    drawn.resize(static_cast<size_t>(problem.shape[1]));
    values.assign(size, T(0));
    if (problem.masked()) chosen.resize(size);
    if (!std::is_same_v<T, Out>) rounded.resize(std::min<size_t>(size, 4096));
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
ATLAS_INLINE void draw_focus(const Scene<T>& scene, const Focus& focus, int64_t x, Radii& radii, T* plane) {
  for_each_row<taper>(scene, focus, x, radii, [&](const Row<T>& row, const auto& cover) ATLAS_INLINED {
    T* out = plane + row.start;
    ATLAS_INDEPENDENT
    for (int i = 0; i < (row.n & -kBlock); ++i) {
      out[i] = combined<mode>(out[i], kept(row.template at<taper>(i), cover(i)));
    }
  });
}

template <SplatMode mode, typename T>
ATLAS_INLINE void draw_in_mode(const Scene<T>& scene, int64_t x, Radii& radii, T* plane) {
  for (const int64_t* f = scene.first_focus(x); f != scene.last_focus(x); ++f) {
    const Focus& focus = scene.foci[static_cast<size_t>(*f)];
    if (focus.edge == 0) {
      draw_focus<mode, false>(scene, focus, x, radii, plane);
    } else {
      draw_focus<mode, true>(scene, focus, x, radii, plane);
    }
  }
}

template <typename T>
ATLAS_INLINE void draw_plane(const Scene<T>& scene, int64_t x, Radii& radii, T* plane) {
  const SplatMode mode = scene.problem.mode;
  if (mode == SplatMode::sum || scene.problem.count) {
    draw_in_mode<SplatMode::sum>(scene, x, radii, plane);
  } else if (mode == SplatMode::union_) {
    draw_in_mode<SplatMode::union_>(scene, x, radii, plane);
  } else {
    draw_in_mode<SplatMode::max>(scene, x, radii, plane);
  }
}

ATLAS_MULTIVERSION void draw(const Scene<float>& scene, int64_t x, Radii& radii, float* plane) {
  draw_plane(scene, x, radii, plane);
}
ATLAS_MULTIVERSION void draw(const Scene<double>& scene, int64_t x, Radii& radii, double* plane) {
  draw_plane(scene, x, radii, plane);
}

// Rounds n values, and leaves zeros in their place.
template <typename T, typename Out>
ATLAS_INLINE void round_values(T* ATLAS_RESTRICT values, Out* ATLAS_RESTRICT rounded, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    store(values[i], rounded[i]);
    values[i] = 0;
  }
}

ATLAS_MULTIVERSION void round_off(float* values, BFloat16* rounded, int64_t n) {
  round_values(values, rounded, n);
}
ATLAS_MULTIVERSION void round_off(float* values, Float16* rounded, int64_t n) {
  round_values(values, rounded, n);
}
ATLAS_MULTIVERSION void round_off(float* values, uint8_t* rounded, int64_t n) {
  round_values(values, rounded, n);
}

// Streams n values, rounded, and leaves zeros in their place.
template <typename T, typename Out>
void put_values(T* values, int64_t n, Canvas<T, Out>& canvas, Stream& stream) {
  if constexpr (std::is_same_v<T, Out>) {
    stream.drain(values, static_cast<size_t>(n) * sizeof(T));
  } else {
    const int64_t piece = static_cast<int64_t>(canvas.rounded.size());
    for (int64_t i = 0; i < n; i += piece) {
      const int64_t here = std::min(piece, n - i);
      round_off(values + i, canvas.rounded.data(), here);
      stream.put(canvas.rounded.data(), static_cast<size_t>(here) * sizeof(Out));
    }
  }
}

// Draws plane x into the canvas.
template <typename T, typename Out>
void fill_canvas(const Scene<T>& scene, int64_t x, Canvas<T, Out>& canvas) {
  std::fill(canvas.drawn.begin(), canvas.drawn.end(), false);
  for (const int64_t* f = scene.first_focus(x); f != scene.last_focus(x); ++f) {
    const Span y = scene.foci[static_cast<size_t>(*f)].axis[1].span;
    std::fill(canvas.drawn.begin() + y.begin, canvas.drawn.begin() + y.end, true);
  }
  draw(scene, x, canvas.radii, canvas.values.data());
}

// The elements of a plane that the mask holds, in its order; leaves the canvas empty.
template <typename T, typename Out>
void put_chosen(const SplatProblem& problem, int64_t x, Canvas<T, Out>& canvas, Stream& stream) {
  const int64_t plane_size = problem.shape[1] * problem.shape[2], start = x * plane_size;
  const int64_t* end = problem.voxels + problem.n_voxels;
  const int64_t* first = std::lower_bound(problem.voxels, end, start);
  const int64_t* last = std::lower_bound(first, end, start + plane_size);
  if (std::find(canvas.drawn.begin(), canvas.drawn.end(), true) == canvas.drawn.end()) {
    return stream.put_zeros(static_cast<size_t>(last - first) * sizeof(Out));
  }
  T *values = canvas.values.data(), *chosen = canvas.chosen.data();
  for (const int64_t* voxel = first; voxel < last; ++voxel) *chosen++ = values[*voxel - start];
  std::fill_n(values, plane_size, T(0));
  put_values(canvas.chosen.data(), last - first, canvas, stream);
}

// Rows that no focus reaches are not read.
template <typename T, typename Out>
void put_plane(const SplatProblem& problem, Canvas<T, Out>& canvas, Stream& stream) {
  const int64_t n = problem.shape[1], row = problem.shape[2];
  const char* drawn = canvas.drawn.data();
  for (int64_t y = 0, next; y < n; y = next) {
    next = std::find(drawn + y, drawn + n, !drawn[y]) - drawn;
    if (drawn[y]) {
      put_values(canvas.values.data() + y * row, (next - y) * row, canvas, stream);
    } else {
      stream.put_zeros(static_cast<size_t>((next - y) * row) * sizeof(Out));
    }
  }
}

// Draws the scene's planes and streams them to `out`.
template <typename T, typename Out>
void write_planes(const Scene<T>& scene, Canvas<T, Out>& canvas, Out* out) {
  Stream stream(out);
  for (int64_t x = scene.planes.begin; x < scene.planes.end; ++x) {
    fill_canvas(scene, x, canvas);
    if (scene.problem.masked()) {
      put_chosen(scene.problem, x, canvas, stream);
    } else {
      put_plane(scene.problem, canvas, stream);
    }
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
