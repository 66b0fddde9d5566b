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

// The same, summed in kBlock lanes: voxel i of a row goes to lane i % kBlock.
struct LaneMoments {
  double kernel[kBlock] = {}, x[kBlock] = {}, y[kBlock] = {}, z[kBlock] = {}, square[kBlock] = {};

  Moments sum() const {
    Moments sum;
    for (int lane = 0; lane < kBlock; ++lane) {
      sum.kernel += kernel[lane];
      sum.x += x[lane];
      sum.y += y[lane];
      sum.z += z[lane];
      sum.square += square[lane];
    }
    return sum;
  }
};

// For each y the voxels [begin, end) along z that foci of a plane reach, so that only they are read and
// cleared. Widened to whole blocks, hence perhaps past the row's end, into the row after it.
struct Touched {
  static constexpr int32_t kNever = INT32_MAX;
  Scratch<int32_t> begin, end;
  int64_t first_y, last_y;  // rows outside are untouched

  explicit Touched(int64_t n)
      : begin(static_cast<size_t>(n), kNever), end(begin.size(), 0), first_y(n), last_y(0) {}

  ATLAS_INLINE void add(const Focus& focus) {
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

ATLAS_MULTIVERSION void touch(const Focus* foci, const Slice* first, const Slice* last, Touched& touched) {
  for (; first != last; ++first) touched.add(foci[first->focus]);
}

template <typename T>
ATLAS_INLINE void set_all_touched(const Touched& touched, int64_t row_length, T value, T* plane) {
  touched.for_each(row_length, [&](int64_t first, int64_t n) ATLAS_INLINED {
    for (int64_t i = first; i < first + n; i += kBlock) std::fill_n(plane + i, kBlock, value);
  });
}
ATLAS_MULTIVERSION void set_touched(const Touched& touched, int64_t row_length, float value, float* plane) {
  set_all_touched(touched, row_length, value, plane);
}
ATLAS_MULTIVERSION void set_touched(const Touched& touched, int64_t row_length, double value, double* plane) {
  set_all_touched(touched, row_length, value, plane);
}

// Columns: sums over the rows of one plane, for each z, of what arrives times gauss_y (1, dy, dy^2), and
// for a taper the same without gauss_y.
constexpr int kColumns = 6;

// The factors of the rows (y) of one focus: gauss_y (1, dy, dy^2), each in a table `stride` long.
template <typename T>
struct RowFactors {
  const T* first;
  int64_t stride;
  const T* table(int power) const { return first + power * stride; }
  RowFactors from(int64_t row) const { return {first + row, stride}; }
};

// What a thread works on. One plane of what foci leave to each other, neutral outside of what is
// touched; the columns of one focus; the factors and moments of all of the scene's.
template <typename T>
struct Board {
  Touched touched;
  Scratch<T> value;  // max: the greatest value. union: the product of rests
  Scratch<T> grad;   // grad_out, where it cannot be read in place
  Scratch<T> columns, factors;
  Scratch<LaneMoments> lanes;
  const T neutral;
  const int64_t stride;  // of columns

  explicit Board(const SplatProblem& problem)
      : touched(problem.shape[1]),
        columns(static_cast<size_t>(kColumns * (problem.shape[2] + kMargin))),
        neutral(problem.mode == SplatMode::union_ ? T(1) : T(0)),
        stride(problem.shape[2] + kMargin) {
    const size_t size = static_cast<size_t>(problem.shape[1] * problem.shape[2] + kMargin);
    if (problem.mode != SplatMode::sum) value.assign(size, neutral);
    grad.assign(size, T(0));
  }

  void clear(const SplatProblem& problem) {
    if (problem.mode != SplatMode::sum) set_touched(touched, problem.shape[2], neutral, value.data());
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

// Rows lie too far apart for the processor to see the next one coming, and what a focus reads in this plane
// it mostly reads in the next one too. An address beyond the end does no harm.
template <typename T>
ATLAS_INLINE void prefetch(const T* address) {
#if defined(__GNUC__)
  __builtin_prefetch(address);
#endif
}

#if defined(ATLAS_AVX512)
ATLAS_AVX512 inline __m512 rest_of(__m512 value) {
  const __m512 rest = _mm512_sub_ps(_mm512_set1_ps(1), value);
  const __mmask16 nothing = _mm512_cmp_ps_mask(rest, _mm512_setzero_ps(), _CMP_EQ_OQ);
  return _mm512_mask_add_ps(rest, nothing, rest, _mm512_set1_ps(0x1p-60f));
}

template <SplatMode mode, int vectors>
ATLAS_AVX512 inline void mark_vectors(const QuickRows& rows, int at, const float* grad, float* board) {
  __m512 z2[vectors], gauss[vectors];
  for (int v = 0; v < vectors; ++v) {
    z2[v] = _mm512_loadu_ps(rows.z2 + at + 16 * v);
    gauss[v] = _mm512_loadu_ps(rows.gauss_z + at + 16 * v);
  }
  const float *y2 = rows.y2, *gauss_y = rows.gauss_y;
  const __m512 all_left = _mm512_set1_ps(rows.left), height = _mm512_set1_ps(rows.scale);
  const int64_t n_rows = rows.rows, row_length = rows.row_length;
  const float* here = grad + rows.start + at;
  float* best = board + rows.start + at;
  for (int64_t j = 0; j < n_rows; ++j, best += row_length, here += row_length) {
    const __m512 left = _mm512_sub_ps(all_left, _mm512_set1_ps(y2[j]));
    const __m512 scale = _mm512_mul_ps(height, _mm512_set1_ps(gauss_y[j]));
    for (int v = 0; v < vectors; ++v) {
      prefetch(here + 16 * v);
      const __mmask16 covered = _mm512_cmp_ps_mask(z2[v], left, _CMP_LE_OQ);
      const __m512 value = _mm512_maskz_mul_ps(covered, scale, gauss[v]);
      const __m512 before = _mm512_loadu_ps(best + 16 * v);
      if constexpr (mode == SplatMode::union_) {
        _mm512_storeu_ps(best + 16 * v, _mm512_mul_ps(before, rest_of(value)));
      } else {
        _mm512_storeu_ps(best + 16 * v, _mm512_max_ps(value, before));
      }
    }
  }
}

template <SplatMode mode>
ATLAS_AVX512 void mark_wide(const QuickRows& rows, const float* grad, float* board) {
  for (int at = 0; at < rows.n; at += 32) {
    rows.n - at > 16 ? mark_vectors<mode, 2>(rows, at, grad, board)
                     : mark_vectors<mode, 1>(rows, at, grad, board);
  }
}
#else
template <SplatMode mode>
void mark_wide(const QuickRows&, const float*, float*) {}
#endif

template <SplatMode mode, bool taper, typename T>
ATLAS_INLINE void mark_focus(const Scene<T>& scene, const Focus& focus, const Slice& slice, int64_t x,
                             Board<T>& board, const T* grad) {
  const auto mark_row = [&](const Row<T>& row, const auto& cover, auto n) ATLAS_INLINED {
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
  for_each_row<taper>(scene, focus, slice, x, mark_row, [&](const QuickRows& rows) ATLAS_INLINED {
    if constexpr (std::is_same_v<T, float>) {
      if (scene.wide) mark_wide<mode>(rows, grad, board.value.data());
    }
    return scene.wide;
  });
}

// 1 where a focus has the maximum, which it then takes away, so that the first of equals has it.
template <typename T>
ATLAS_INLINE int wins(T value, T& best) {
  const int won = (value == best) & (value > 0);
  best += kept(std::numeric_limits<T>::infinity(), won);
  return won;
}

#if defined(ATLAS_AVX512)
template <SplatMode mode, int vectors>
ATLAS_AVX512 inline void gather_vectors(const QuickRows& rows, int at, const float* grad, int64_t plane_size,
                                        float* board, const RowFactors<float>& factors, float* columns,
                                        int64_t stride) {
  __m512 z2[vectors], gauss[vectors], sum[vectors], sum_y[vectors], sum_yy[vectors];
  for (int v = 0; v < vectors; ++v) {
    z2[v] = _mm512_loadu_ps(rows.z2 + at + 16 * v);
    gauss[v] = _mm512_loadu_ps(rows.gauss_z + at + 16 * v);
    sum[v] = sum_y[v] = sum_yy[v] = _mm512_setzero_ps();
  }
  const float *one = factors.table(0), *one_y = factors.table(1), *one_yy = factors.table(2);
  const float* here = grad + rows.start + at;
  float* best = mode == SplatMode::sum ? nullptr : board + rows.start + at;
  const float *y2 = rows.y2, *gauss_y = rows.gauss_y;
  const __m512 all_left = _mm512_set1_ps(rows.left), height = _mm512_set1_ps(rows.scale);
  const int64_t n_rows = rows.rows, row_length = rows.row_length;
  for (int64_t j = 0; j < n_rows; ++j, here += row_length) {
    const __m512 left = _mm512_sub_ps(all_left, _mm512_set1_ps(y2[j]));
    const __m512 scale = _mm512_mul_ps(height, _mm512_set1_ps(gauss_y[j]));
    for (int v = 0; v < vectors; ++v) {
      prefetch(here + plane_size + 16 * v);
      __mmask16 counts = _mm512_cmp_ps_mask(z2[v], left, _CMP_LE_OQ);
      __m512 share = _mm512_set1_ps(1);
      if constexpr (mode != SplatMode::sum) {
        const __m512 value = _mm512_mul_ps(scale, gauss[v]);
        const __m512 kept_by_others = _mm512_loadu_ps(best + 16 * v);
        if constexpr (mode == SplatMode::max) {
          counts = _mm512_mask_cmp_ps_mask(counts, value, kept_by_others, _CMP_EQ_OQ);
          counts = _mm512_mask_cmp_ps_mask(counts, value, _mm512_setzero_ps(), _CMP_GT_OQ);
          const __m512 taken = _mm512_set1_ps(std::numeric_limits<float>::infinity());
          _mm512_storeu_ps(best + 16 * v, _mm512_mask_mov_ps(kept_by_others, counts, taken));
        } else {
          share = _mm512_div_ps(kept_by_others, rest_of(value));
        }
      }
      __m512 flow = _mm512_maskz_loadu_ps(counts, here + 16 * v);
      if constexpr (mode == SplatMode::union_) flow = _mm512_maskz_mul_ps(counts, flow, share);
      sum[v] = _mm512_add_ps(sum[v], _mm512_mul_ps(_mm512_set1_ps(one[j]), flow));
      sum_y[v] = _mm512_add_ps(sum_y[v], _mm512_mul_ps(_mm512_set1_ps(one_y[j]), flow));
      sum_yy[v] = _mm512_add_ps(sum_yy[v], _mm512_mul_ps(_mm512_set1_ps(one_yy[j]), flow));
    }
    if constexpr (mode != SplatMode::sum) best += row_length;
  }
  for (int v = 0; v < vectors; ++v) {
    float* to = columns + at + 16 * v;
    _mm512_storeu_ps(to, sum[v]);
    _mm512_storeu_ps(to + stride, sum_y[v]);
    _mm512_storeu_ps(to + 2 * stride, sum_yy[v]);
  }
}

template <SplatMode mode>
ATLAS_AVX512 void gather_wide(const QuickRows& rows, const float* grad, int64_t plane_size, float* board,
                              const RowFactors<float>& factors, float* columns, int64_t stride) {
  for (int at = 0; at < rows.n; at += 32) {
    rows.n - at > 16 ? gather_vectors<mode, 2>(rows, at, grad, plane_size, board, factors, columns, stride)
                     : gather_vectors<mode, 1>(rows, at, grad, plane_size, board, factors, columns, stride);
  }
}
#else
template <SplatMode mode>
void gather_wide(const QuickRows&, const float*, int64_t, float*, const RowFactors<float>&, float*, int64_t) {}
#endif

// Adds to the columns what the rows of one focus in a plane give.
template <SplatMode mode, bool taper, typename T>
ATLAS_INLINE void gather_rows(const Scene<T>& scene, const Focus& focus, const Slice& slice, int64_t x,
                              Board<T>& board, const RowFactors<T>& factors, const T* grad) {
  const double *mm_y = scene.mm(focus, 1), *y2 = scene.square(focus, 1);
  T *columns = board.columns.data(), *board_values = board.value.data();
  const int64_t stride = board.stride, plane_size = scene.problem.shape[1] * scene.problem.shape[2];
  const auto gather_row = [&](const Row<T>& row, const auto& cover, auto n) ATLAS_INLINED {
    T *sum = columns, *sum_y = sum + stride, *sum_yy = sum_y + stride;
    T *flat = sum_yy + stride, *flat_y = flat + stride, *flat_yy = flat_y + stride;
    const T* here = grad + row.start;
    prefetch(here + plane_size);
    prefetch(here + plane_size + n - 1);
    T* best = board_values + (mode == SplatMode::sum ? 0 : row.start);  // a sum has no board
    const T one = factors.table(0)[row.j], one_y = factors.table(1)[row.j], one_yy = factors.table(2)[row.j];
    const T of_y = static_cast<T>(mm_y[row.j]), of_yy = static_cast<T>(y2[row.j]);
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
  for_each_row<taper>(scene, focus, slice, x, gather_row, [&](const QuickRows& rows) ATLAS_INLINED {
    if constexpr (std::is_same_v<T, float>) {
      if (scene.wide) {
        gather_wide<mode>(rows, grad, plane_size, board_values, factors.from(slice.y_begin), columns, stride);
      }
    }
    return scene.wide;
  });
}

// Closes a plane: the factors of z, and those of x. Leaves zeros in the columns.
template <bool taper, typename T>
ATLAS_INLINE void close_columns(const Scene<T>& scene, const Focus& focus, const Slice& slice, int64_t x,
                                T* ATLAS_RESTRICT columns, int64_t stride, LaneMoments& moments) {
  const int64_t place = x - focus.axis[0].span.begin;
  const double dx = scene.mm(focus, 0)[place], x2 = dx * dx, per = focus.per;
  const double gauss_x = static_cast<double>(scene.gauss(focus, 0)[place]);
  const double* mm_z = scene.mm(focus, 2) + slice.first;
  const T* gauss = scene.gauss(focus, 2) + slice.first;
  LaneMoments lanes = moments;
  for (int block = 0; block < slice.n; block += kBlock) {
    for (int lane = 0; lane < kBlock; ++lane) {
      const int i = block + lane;
      const auto column = [&](int c) ATLAS_INLINED { return static_cast<double>(columns[c * stride + i]); };
      const double g = gauss_x * static_cast<double>(gauss[i]), dz = mm_z[i], z2 = dz * dz;
      double one = g * column(0), y = g * column(1), yy = g * column(2), left = 0;
      if constexpr (taper) {
        one -= focus.edge * column(3);
        y -= focus.edge * column(4);
        yy -= focus.edge * column(5);
        // kernel = slope - edge * (end - |d|^2 / (2 sigma^2))
        left = focus.edge * ((focus.end - per * (x2 + z2)) * column(3) - per * column(5));
      }
      lanes.kernel[lane] += one - left;
      lanes.x[lane] += dx * one;
      lanes.y[lane] += y;
      lanes.z[lane] += dz * one;
      lanes.square[lane] += (x2 + z2) * one + yy;
    }
  }
  moments = lanes;
  for (int c = 0; c < (taper ? kColumns : 3); ++c) std::fill_n(columns + c * stride, slice.n, T(0));
}

template <SplatMode mode, bool taper, typename T>
ATLAS_INLINE void gather_focus(const Scene<T>& scene, const Focus& focus, const Slice& slice, int64_t x,
                               Board<T>& board, const T* grad) {
  const int64_t row_stride = scene.problem.shape[1];
  const RowFactors<T> factors{board.factors.data() + 3 * slice.focus * row_stride, row_stride};
  gather_rows<mode, taper>(scene, focus, slice, x, board, factors, grad);
  close_columns<taper>(scene, focus, slice, x, board.columns.data(), board.stride,
                       board.lanes[static_cast<size_t>(slice.focus)]);
}

template <SplatMode mode, typename T>
ATLAS_INLINE void gather_in_mode(const Scene<T>& scene, int64_t x, Board<T>& board, const T* grad) {
  if constexpr (mode != SplatMode::sum) {
    for_each_focus(scene, x, [&](const Focus& focus, const Slice& slice, auto taper) ATLAS_INLINED {
      mark_focus<mode, decltype(taper)::value>(scene, focus, slice, x, board, grad);
    });
  }
  for_each_focus(scene, x, [&](const Focus& focus, const Slice& slice, auto taper) ATLAS_INLINED {
    gather_focus<mode, decltype(taper)::value>(scene, focus, slice, x, board, grad);
  });
}

template <typename T>
ATLAS_INLINE void gather_plane(const Scene<T>& scene, int64_t x, Board<T>& board, const T* grad) {
  switch (scene.problem.mode) {
    case SplatMode::max:
      return gather_in_mode<SplatMode::max>(scene, x, board, grad);
    case SplatMode::union_:
      return gather_in_mode<SplatMode::union_>(scene, x, board, grad);
    default:
      return gather_in_mode<SplatMode::sum>(scene, x, board, grad);
  }
}

ATLAS_MULTIVERSION void gather(const Scene<float>& scene, int64_t x, Board<float>& board,
                               const float* grad) {
  gather_plane(scene, x, board, grad);
}
ATLAS_MULTIVERSION void gather(const Scene<double>& scene, int64_t x, Board<double>& board,
                               const double* grad) {
  gather_plane(scene, x, board, grad);
}

// grad_out of plane x with kMargin readable elements after it: in place, or else in the board, of what
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
    if (x + 1 < problem.shape[0] && plane_size >= kMargin) return grad_out + start;
  }
  board.touched.for_each(problem.shape[2], [&](int64_t first, int64_t n) {
    n = std::min(n, plane_size - first);
    for (int64_t i = 0; i < n; ++i) {
      board.grad[static_cast<size_t>(first + i)] = to_float(grad_out[start + first + i]);
    }
  });
  return board.grad.data();
}

// Makes the board that of a new scene.
template <typename T>
void set_board(const Scene<T>& scene, Board<T>& board) {
  const int64_t stride = scene.problem.shape[1];
  board.lanes.assign(scene.foci.size(), LaneMoments());
  board.factors.resize(3 * scene.foci.size() * static_cast<size_t>(stride));
  T* to = board.factors.data();
  for (const Focus& focus : scene.foci) {
    const double* mm = scene.mm(focus, 1);
    const T* gauss = scene.gauss(focus, 1);
    const int64_t n = focus.axis[1].span.end - focus.axis[1].span.begin;
    for (int64_t j = 0; j < n; ++j) {
      const double g = static_cast<double>(gauss[j]), dy = mm[j];
      to[j] = gauss[j];
      to[stride + j] = static_cast<T>(g * dy);
      to[2 * stride + j] = static_cast<T>(g * dy * dy);
    }
    to += 3 * stride;
  }
}

// Adds to `moments`, by peak, what the scene's planes give. `grad_out` is where the volume starts.
template <typename T, typename Out>
void gather_planes(const Scene<T>& scene, Board<T>& board, const Out* grad_out, Moments* moments) {
  set_board(scene, board);
  for (int64_t x = scene.planes.begin; x < scene.planes.end; ++x) {
    const Slice *first = scene.first_slice(x), *last = scene.last_slice(x);
    if (first == last) continue;
    touch(scene.foci.data(), first, last, board.touched);
    gather(scene, x, board, grad_plane(scene.problem, grad_out, x, board));
    board.clear(scene.problem);
  }
  for (size_t f = 0; f < scene.foci.size(); ++f) moments[scene.foci[f].peak] = board.lanes[f].sum();
}

// Adds the moments of all layers (a slab of planes at one width) in their order.
void add_layers(const SplatProblem& problem, int64_t slabs, const std::vector<Moments>& moments,
                double* grad_peaks, double* grad_weights, double* grad_widths) {
  const int64_t n_peaks = problem.n_peaks;
  std::fill_n(grad_peaks, 3 * n_peaks, 0.0);
  std::fill_n(grad_weights, n_peaks, 0.0);
  std::fill_n(grad_widths, problem.n_widths(), 0.0);
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
  const int64_t n_peaks = problem.n_peaks;
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
