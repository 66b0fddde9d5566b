// splat on the CPU, backward.
//
// A focus's gradient is made of a few sums over its voxels, so only the rows that foci reach are read.
// Each plane is drawn once more where the mode asks for it: `max` for who wins each voxel, `union` for
// the product that the other foci leave. Then each focus gathers its sums, column by column of z: the
// factors of x and y are constant along a row, those of z wait until the plane is done, so that the
// loop over a row has no sum across its lanes and vectorises without changing bits.
//
// Loop order: volume (or slab of x-planes), plane, focus, row (x, y), z. Sums of slabs are added in a
// fixed order at the end; no atomics. Planes are added up in double, the rows of one in the precision of
// the volumes.
//
// Siblings: splat.h (contract), splat_scene.h (tables and rows), splat_cpu.cpp (forward).

#include <algorithm>
#include <limits>
#include <type_traits>

#include "splat/splat_scene.h"

namespace atlas_kernels {
namespace {

// Sums over the voxels of a focus of what arrives there (grad_out times the share that this focus has
// in the voxel) times the kernel, and times its slope and 1, d, |d|^2.
struct Moments {
  double kernel = 0, x = 0, y = 0, z = 0, square = 0;
};

// One plane of what foci leave to each other; neutral outside of what is touched.
template <typename T>
struct Board {
  Touched touched;
  std::vector<T> value;  // max: the greatest value. union: the product of rests
  std::vector<T> grad;   // grad_out, where it cannot be read in place
  std::vector<T> columns;
  RowTable table;
  const T neutral;

  explicit Board(const SplatProblem& problem)
      : touched(problem.shape[1]),
        table(problem),
        neutral(problem.mode == SplatMode::union_ ? T(1) : T(0)) {
    const size_t size = static_cast<size_t>(problem.shape[1] * problem.shape[2] + 2 * kBlock);
    if (problem.mode != SplatMode::sum) value.assign(size, neutral);
    grad.assign(size, T(0));
  }

  void clear(const SplatProblem& problem) {
    if (problem.mode != SplatMode::sum) {
      touched.for_each(problem.shape[2], [&](int64_t first, int64_t n) {
        std::fill_n(value.data() + first, n, neutral);
      });
    }
    touched.clear();
  }
};

// What a focus of this value leaves to the others of a union. Where that is nothing, a power of two
// stands for it, so that the others' product can be had again by division: of all but itself to the
// bit, and so little that it counts for nothing where a second focus leaves nothing.
template <typename T>
ATLAS_INLINE T rest_of(T value) {
  constexpr T kNothing = sizeof(T) == sizeof(float) ? T(0x1p-60f) : T(0x1p-300);
  const T rest = 1 - value;
  return rest + kept(kNothing, rest == 0);
}

template <SplatMode mode, bool taper, typename T>
ATLAS_INLINE void mark_focus(const Scene<T>& scene, const Focus& focus, int64_t x, Board<T>& board) {
  const auto visit = [&](const Row<T>& row, const auto& cover, auto n) ATLAS_INLINED {
    T* best = board.value.data() + row.start;
    ATLAS_INDEPENDENT
    for (int i = 0; i < n; ++i) {
      const T value = kept(row.template at<taper>(i), cover(i));
      if constexpr (mode == SplatMode::union_) {
        best[i] *= rest_of(value);
      } else {
        best[i] = value > best[i] ? value : best[i];
      }
    }
  };
  for_each_row<taper>(scene, focus, x, board.table, visit);
}

// 1 where a focus has the maximum, which it then takes away, so that the first of equals has it.
template <typename T>
ATLAS_INLINE int wins(T value, T& best) {
  const int won = (value == best) & (value > 0);
  best += kept(std::numeric_limits<T>::infinity(), won);
  return won;
}

// Columns: sums over the rows of one plane, for each z, of what arrives times gauss_xy (1, dy, dy^2),
// and for a taper the same without gauss_xy.
constexpr int kColumns = 6;

template <SplatMode mode, bool taper, typename T>
ATLAS_INLINE void gather_rows(const Scene<T>& scene, const Focus& focus, int64_t x, Board<T>& board,
                              const T* grad, size_t stride) {
  const double *mm_y = scene.mm(focus, 1), *y2 = scene.square(focus, 1);
  const T* gauss_y = scene.gauss(focus, 1);
  const double gauss_x = static_cast<double>(scene.gauss(focus, 0)[x - focus.axis[0].span.begin]);
  T* columns = board.columns.data();
  T* board_values = board.value.data();
  const auto visit = [&](const Row<T>& row, const auto& cover, auto n) ATLAS_INLINED {
    T *sum = columns + row.first, *sum_y = sum + stride, *sum_yy = sum_y + stride;
    T *flat = sum_yy + stride, *flat_y = flat + stride, *flat_yy = flat_y + stride;
    const T* here = grad + row.start;
    T* best = board_values + (mode == SplatMode::sum ? 0 : row.start);  // a sum has no board
    const double g = gauss_x * static_cast<double>(gauss_y[row.j]), dy = mm_y[row.j], yy = y2[row.j];
    const T one = static_cast<T>(g), one_y = static_cast<T>(g * dy), one_yy = static_cast<T>(g * yy);
    const T of_y = static_cast<T>(dy), of_yy = static_cast<T>(yy);
    ATLAS_INDEPENDENT
    for (int i = 0; i < n; ++i) {
      T flow = here[i];
      int counts = cover(i);
      if constexpr (mode == SplatMode::max) {
        counts = wins(kept(row.template at<taper>(i), counts), best[i]);
      }
      if constexpr (mode == SplatMode::union_) flow *= best[i] / rest_of(row.template at<taper>(i));
      flow = kept(flow, counts);
      sum[i] += one * flow;
      sum_y[i] += one_y * flow;
      sum_yy[i] += one_yy * flow;
      if constexpr (taper) {
        flat[i] += flow;
        flat_y[i] += of_y * flow;
        flat_yy[i] += of_yy * flow;
      }
    }
  };
  for_each_row<taper>(scene, focus, x, board.table, visit);
}

// Closes a plane: the factors of z, and those of x.
template <bool taper, typename T>
void close_columns(const Scene<T>& scene, const Focus& focus, int64_t x, size_t stride,
                   std::vector<T>& columns, Moments& moments) {
  const int64_t place = x - focus.axis[0].span.begin;
  const double dx = scene.mm(focus, 0)[place], x2 = scene.square(focus, 0)[place];
  const double *dz = scene.mm(focus, 2), *z2 = scene.square(focus, 2);
  const T* gauss = scene.gauss(focus, 2);
  const size_t n = static_cast<size_t>(focus.axis[2].span.end - focus.axis[2].span.begin);
  const double per = focus.per;
  for (size_t i = 0; i < n; ++i) {
    const auto column = [&](size_t c) { return static_cast<double>(columns[c * stride + i]); };
    const double g = static_cast<double>(gauss[i]);
    double one = g * column(0), y = g * column(1), yy = g * column(2), left = 0;
    if constexpr (taper) {
      one -= focus.edge * column(3);
      y -= focus.edge * column(4);
      yy -= focus.edge * column(5);
      // kernel = slope - edge * (end - |d|^2 / (2 sigma^2))
      left = focus.edge * ((focus.end - per * (x2 + z2[i])) * column(3) - per * column(5));
    }
    moments.kernel += one - left;
    moments.x += dx * one;
    moments.y += y;
    moments.z += dz[i] * one;
    moments.square += (x2 + z2[i]) * one + yy;
  }
  std::fill(columns.begin(), columns.end(), T(0));
}

template <SplatMode mode, bool taper, typename T>
ATLAS_INLINE void gather_focus(const Scene<T>& scene, const Focus& focus, int64_t x, Board<T>& board,
                               const T* grad, Moments* moments) {
  const int64_t n = focus.axis[2].span.end - focus.axis[2].span.begin;
  const size_t stride = static_cast<size_t>((n + kBlock - 1) / kBlock * kBlock);
  board.columns.resize(kColumns * stride);
  gather_rows<mode, taper>(scene, focus, x, board, grad, stride);
  close_columns<taper>(scene, focus, x, stride, board.columns, moments[focus.peak]);
}

template <SplatMode mode, typename T>
ATLAS_INLINE void gather_in_mode(const Scene<T>& scene, int64_t x, Board<T>& board, const T* grad,
                                 Moments* moments) {
  if constexpr (mode != SplatMode::sum) {
    for_each_focus(scene, x, [&](const Focus& focus, auto taper) ATLAS_INLINED {
      mark_focus<mode, decltype(taper)::value>(scene, focus, x, board);
    });
  }
  for_each_focus(scene, x, [&](const Focus& focus, auto taper) ATLAS_INLINED {
    gather_focus<mode, decltype(taper)::value>(scene, focus, x, board, grad, moments);
  });
}

template <typename T>
ATLAS_INLINE void gather_plane(const Scene<T>& scene, int64_t x, Board<T>& board, const T* grad,
                               Moments* moments) {
  switch (scene.problem.mode) {
    case SplatMode::max:
      return gather_in_mode<SplatMode::max>(scene, x, board, grad, moments);
    case SplatMode::union_:
      return gather_in_mode<SplatMode::union_>(scene, x, board, grad, moments);
    default:
      return gather_in_mode<SplatMode::sum>(scene, x, board, grad, moments);
  }
}

ATLAS_MULTIVERSION void gather(const Scene<float>& scene, int64_t x, Board<float>& board,
                               const float* grad, Moments* moments) {
  gather_plane(scene, x, board, grad, moments);
}
ATLAS_MULTIVERSION void gather(const Scene<double>& scene, int64_t x, Board<double>& board,
                               const double* grad, Moments* moments) {
  gather_plane(scene, x, board, grad, moments);
}

// grad_out of plane x with kBlock readable elements after it: in place, or else in the board, of what
// is touched there. `grad_out` is where the volume starts.
template <typename T, typename Out>
const T* grad_plane(const SplatProblem& problem, const Out* grad_out, int64_t x, Board<T>& board) {
  const int64_t plane_size = problem.shape[1] * problem.shape[2], start = x * plane_size;
  if (problem.masked()) {
    const int64_t* end = problem.voxels + problem.n_voxels;
    std::fill(board.grad.begin(), board.grad.end(), T(0));
    for (auto* v = std::lower_bound(problem.voxels, end, start); v < end && *v < start + plane_size; ++v) {
      board.grad[static_cast<size_t>(*v - start)] = to_float(grad_out[v - problem.voxels]);
    }
    return board.grad.data();
  }
  if constexpr (std::is_same_v<T, Out>) {
    if (x + 1 < problem.shape[0] && plane_size >= kBlock) return grad_out + start;
  }
  board.touched.for_each(problem.shape[2], [&](int64_t first, int64_t n) {
    n = std::min(n, plane_size - first);
    for (int64_t i = 0; i < n; ++i) {
      board.grad[static_cast<size_t>(first + i)] = to_float(grad_out[start + first + i]);
    }
  });
  return board.grad.data();
}

// Adds to `moments`, by peak, what the scene's planes give. `grad_out` is where the volume starts.
template <typename T, typename Out>
void gather_planes(const Scene<T>& scene, Board<T>& board, const Out* grad_out, Moments* moments) {
  for (int64_t x = scene.planes.begin; x < scene.planes.end; ++x) {
    for (const int64_t* f = scene.first_focus(x); f != scene.last_focus(x); ++f) {
      board.touched.add(scene.foci[static_cast<size_t>(*f)]);
    }
    if (!board.touched.any()) continue;
    gather(scene, x, board, grad_plane(scene.problem, grad_out, x, board), moments);
    board.clear(scene.problem);
  }
}

// Adds the moments of all layers (a slab of planes at one width) in their order.
void add_layers(const SplatProblem& problem, int64_t slabs, const std::vector<Moments>& moments,
                double* grad_peaks, double* grad_weights, double* grad_widths) {
  const int64_t n_peaks = problem.offsets[problem.n_studies];
  std::fill_n(grad_peaks, 3 * n_peaks, 0.0);
  std::fill_n(grad_weights, n_peaks, 0.0);
  const bool of_peaks = problem.widths_of == SplatWidths::peaks;
  const bool of_studies = problem.widths_of == SplatWidths::studies;
  std::fill_n(grad_widths, of_peaks ? n_peaks : of_studies ? problem.n_studies : problem.n_kernels, 0.0);
  for (int64_t layer = 0; layer < problem.n_kernels * slabs; ++layer) {
    for (int64_t study = 0; study < problem.n_studies; ++study) {
      for (int64_t p = problem.offsets[study]; p < problem.offsets[study + 1]; ++p) {
        const Moments& sum = moments[static_cast<size_t>(layer * n_peaks + p)];
        if (sum.kernel == 0 && sum.square == 0) continue;  // reaches nothing: spare the normalising
        Focus focus = make_focus(problem, study, layer / slabs, p);
        if (problem.normalize != SplatNormalize::peak) normalize_focus(problem, focus);
        const double height = focus.weight * focus.unit, slope = height / (focus.sigma * focus.sigma);
        const Pull& pull = focus.pull;
        grad_weights[p] += focus.unit * sum.kernel;
        grad_widths[focus.width] +=
            slope / focus.sigma * (sum.square - sum.kernel * pull.square) / kFwhmPerSigma;
        if (problem.centre == SplatCentre::voxel) continue;
        grad_peaks[3 * p] += slope * (sum.x - sum.kernel * pull.axis[0]);
        grad_peaks[3 * p + 1] += slope * (sum.y - sum.kernel * pull.axis[1]);
        grad_peaks[3 * p + 2] += slope * (sum.z - sum.kernel * pull.axis[2]);
      }
    }
  }
}

}  // namespace

template <typename Out>
void splat_backward_cpu(const SplatProblem& problem, const Out* grad_out, double* grad_peaks,
                        double* grad_weights, double* grad_widths, int threads) {
  using T = typename Arithmetic<Out>::type;
  check(problem, threads);
  require(problem.mode != SplatMode::sphere, "splat: mode 'sphere' has no gradient");
  const Cut cut(problem);
  const int64_t n_peaks = problem.offsets[problem.n_studies];
  // A focus and a layer meet in one entry, so no two units write to the same place.
  std::vector<Moments> moments(static_cast<size_t>(problem.n_kernels * cut.slabs * n_peaks));
  for_each_unit<T, Board<T>>(problem, cut, threads, [&](auto& scene, auto& board, int64_t unit) {
    const int64_t volume = unit / cut.slabs, kernel = volume % problem.n_kernels;
    const int64_t layer = kernel * cut.slabs + unit % cut.slabs;
    gather_planes(scene, board, grad_out + volume * problem.n_elements(), moments.data() + layer * n_peaks);
  });
  add_layers(problem, cut.slabs, moments, grad_peaks, grad_weights, grad_widths);
}

template void splat_backward_cpu(const SplatProblem&, const float*, double*, double*, double*, int);
template void splat_backward_cpu(const SplatProblem&, const double*, double*, double*, double*, int);
template void splat_backward_cpu(const SplatProblem&, const BFloat16*, double*, double*, double*, int);
template void splat_backward_cpu(const SplatProblem&, const Float16*, double*, double*, double*, int);

}  // namespace atlas_kernels
