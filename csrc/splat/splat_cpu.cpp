// splat on the CPU, forward.
//
// One pass over the output: each plane is drawn in a canvas that stays in cache and then streamed out
// whole, zeros included, past the cache. Memory is written once and never read.
//
// Loop order: volume (or slab of x-planes), plane, focus, row (x, y), z. Every plane is drawn in the
// order of its foci, so neither threads nor slabs change the bits.
//
// Work: O(B K X Y Z) for the streaming + O(K * foci * voxels in a support). Tables in double, rounded
// once, and two products in float keep float32 within 1e-6 relative of float64 (for weights of one sign).
//
// Siblings: splat.h (contract), splat_scene.h (tables and rows), splat_backward_cpu.cpp.

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "common/floats.h"
#include "common/stream.h"
#include "splat/splat_scene.h"

namespace atlas_kernels {
namespace {

template <typename T, typename Out>
ATLAS_INLINE void pack_row(T* ATLAS_RESTRICT values, Out* ATLAS_RESTRICT packed, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    store(values[i], packed[i]);
    values[i] = 0;
  }
}

// Rounds n values, and leaves zeros behind.
ATLAS_MULTIVERSION void pack_any(float* values, BFloat16* packed, int64_t n) { pack_row(values, packed, n); }
ATLAS_MULTIVERSION void pack(float* values, Float16* packed, int64_t n) { pack_row(values, packed, n); }
ATLAS_MULTIVERSION void pack(float* values, uint8_t* packed, int64_t n) { pack_row(values, packed, n); }

#if defined(ATLAS_AVX512)
// The same by the instruction that rounds to bfloat16, which flushes subnormal numbers and keeps NaNs as
// they are: vectors with such a number, hardly ever met, are rounded by the loop.
__attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,avx512bf16")))
void pack_wide(float* values, BFloat16* packed, int64_t n) {
  constexpr int kSubnormal = 0x20, kNan = 0x01 | 0x80;
  int64_t i = 0;
  for (; i + 32 <= n; i += 32) {
    const __m512 low = _mm512_loadu_ps(values + i), high = _mm512_loadu_ps(values + i + 16);
    if (__builtin_expect(_mm512_fpclass_ps_mask(low, kSubnormal | kNan) |
                         _mm512_fpclass_ps_mask(high, kSubnormal | kNan), 0)) {
      pack_any(values + i, packed + i, 32);
      continue;
    }
    const __m512bh both = _mm512_cvtne2ps_pbh(high, low);
    std::memcpy(packed + i, &both, sizeof both);
    _mm512_storeu_ps(values + i, _mm512_setzero_ps());
    _mm512_storeu_ps(values + i + 16, _mm512_setzero_ps());
  }
  pack_any(values + i, packed + i, n - i);
}

void pack(float* values, BFloat16* packed, int64_t n) {
  static const bool wide = has_avx512() && __builtin_cpu_supports("avx512bf16");
  wide ? pack_wide(values, packed, n) : pack_any(values, packed, n);
}
#else
void pack(float* values, BFloat16* packed, int64_t n) { pack_any(values, packed, n); }
#endif

// What one thread draws a plane in: 0 but while it is drawn in. It lies in its cache lines as it will in
// the output, which it then goes to line by line, and leaves zeros behind.
template <typename T, typename Out>
class Canvas {
 public:
  explicit Canvas(const SplatProblem& problem)
      : row_length_(problem.shape[2]),
        size_(problem.shape[1] * row_length_),
        room_(static_cast<size_t>(size_ + 2 * kLine + kMargin), T(0)),
        chosen_(problem.masked() ? static_cast<size_t>(size_) : 0),
        reached_(static_cast<size_t>(problem.shape[1]), 0) {
    const size_t past = reinterpret_cast<uintptr_t>(room_.data()) % 64 / sizeof(T);
    first_line_ = room_.data() + (past ? kLine - past : 0);
    plane_ = first_line_;
  }

  // Makes it plane x of the scene, next on the stream, and returns where to draw it; null if no focus
  // reaches it.
  T* begin(const Scene<T>& scene, int64_t x, const Stream& stream) {
    past_ = static_cast<int64_t>(stream.phase() / sizeof(Out));
    plane_ = first_line_ + stream.phase() / sizeof(T);
    for (const Slice* slice = scene.first_slice(x); slice != scene.last_slice(x); ++slice) {
      const int64_t first = scene.focus(*slice).axis[1].span.begin;
      std::fill(reached_.begin() + first + slice->y_begin, reached_.begin() + first + slice->y_end, 1);
    }
    any_ = scene.first_slice(x) != scene.last_slice(x);
    return any_ ? plane_ : nullptr;
  }

  // Appends the plane to the stream; rows that no focus reaches are not even read.
  void drain(Stream& stream) {
    int64_t at = 0;
    const auto zeros_up_to = [&](int64_t end) {
      if (end > at) stream.put_zeros(static_cast<size_t>(end - at) * sizeof(Out));
    };
    for_each_run([&](int64_t begin, int64_t end) {
      begin = std::max(at, whole_lines(begin));
      end = std::min(size_, whole_lines(end + kOutLine - 1));
      if (begin >= end) return;
      zeros_up_to(begin);
      drain(begin, end, stream);
      at = end;
    });
    zeros_up_to(size_);
  }

  // The same of those voxels that are named by their numbers in the volume, where the plane begins at `start`.
  void drain(const int64_t* voxels, int64_t n, int64_t start, Stream& stream) {
    if (!any_) return stream.put_zeros(static_cast<size_t>(n) * sizeof(Out));
    for (int64_t i = 0; i < n; ++i) store(plane_[voxels[i] - start], chosen_[static_cast<size_t>(i)]);
    for_each_run([&](int64_t begin, int64_t end) { std::fill(plane_ + begin, plane_ + end, T(0)); });
    stream.put(chosen_.data(), static_cast<size_t>(n) * sizeof(Out));
  }

 private:
  static constexpr int64_t kLine = 64 / sizeof(T), kOutLine = 64 / sizeof(Out), kPiece = 1024;

  // Down to an element that begins a cache line of the output.
  int64_t whole_lines(int64_t element) const { return (element + past_) / kOutLine * kOutLine - past_; }

  // Calls visit(first element, behind the last) for each run of rows that foci reach, and forgets them.
  template <typename Visit>
  void for_each_run(const Visit& visit) {
    char *const rows = reached_.data(), *const end = rows + reached_.size();
    for (char* at = rows; at < end;) {
      char* begin = static_cast<char*>(std::memchr(at, 1, static_cast<size_t>(end - at)));
      if (!begin) break;
      at = static_cast<char*>(std::memchr(begin, 0, static_cast<size_t>(end - begin)));
      if (!at) at = end;
      visit((begin - rows) * row_length_, (at - rows) * row_length_);
    }
    std::memset(rows, 0, reached_.size());
  }

  // Appends elements [begin, end).
  void drain(int64_t begin, int64_t end, Stream& stream) {
    if constexpr (std::is_same_v<T, Out>) {
      stream.drain(plane_ + begin, static_cast<size_t>(end - begin) * sizeof(T));
    } else {
      for (; begin < end; begin += kPiece) {
        const int64_t n = std::min(kPiece, end - begin);
        pack(plane_ + begin, packed_, n);
        stream.put(packed_, static_cast<size_t>(n) * sizeof(Out));
      }
    }
  }

  int64_t row_length_, size_, past_ = 0;
  bool any_ = false;
  Scratch<T> room_;
  Scratch<Out> chosen_;
  Scratch<char> reached_;  // of each row, whether a focus reaches it
  T *first_line_, *plane_;
  Out packed_[kPiece];
};

template <SplatMode mode, typename T>
ATLAS_INLINE T combined(T before, T value) {
  if constexpr (mode == SplatMode::sum) return before + value;
  if constexpr (mode == SplatMode::union_) return before + value * (1 - before);
  return value > before ? value : before;
}

using Lanes = Vector<float, kBlock * sizeof(float)>;

ATLAS_INLINE Lanes load(const float* from) {
  Lanes to;
  std::memcpy(&to, from, sizeof to);
  return to;
}

// Rows of one focus, some vectors from voxel `at` on: what belongs to z stays in registers from row to row.
template <SplatMode mode, int vectors>
ATLAS_INLINE void draw_lanes(const QuickRows& rows, int at, float* plane) {
  Lanes z2[vectors], gauss[vectors];
  for (int v = 0; v < vectors; ++v) {
    z2[v] = load(rows.z2 + at + kBlock * v);
    gauss[v] = load(rows.gauss_z + at + kBlock * v);
  }
  // Copies: what is stored might be any of the originals, for all that the compiler knows.
  const float *y2 = rows.y2, *gauss_y = rows.gauss_y, all_left = rows.left, height = rows.scale;
  const int64_t n_rows = rows.rows, row_length = rows.row_length;
  float* out = plane + rows.start + at;
  for (int64_t j = 0; j < n_rows; ++j, out += row_length) {
    const float left = all_left - y2[j], scale = height * gauss_y[j];
    for (int v = 0; v < vectors; ++v) {
      const auto covered = z2[v] <= left;
      const Lanes value = reinterpret_cast<Lanes>(reinterpret_cast<decltype(+covered)>(scale * gauss[v]) & covered);
      const Lanes after = combined<mode>(load(out + kBlock * v), value);
      std::memcpy(out + kBlock * v, &after, sizeof after);
    }
  }
}

#if defined(ATLAS_AVX512)
// Vectors of 8 voxels: those of 16, where nearly each crosses into another cache line, are slower.
template <SplatMode mode, int vectors>
ATLAS_AVX512 void draw_vectors(const QuickRows& rows, int at, float* plane) {
  __m256 z2[vectors], gauss[vectors];
  for (int v = 0; v < vectors; ++v) {
    z2[v] = _mm256_loadu_ps(rows.z2 + at + 8 * v);
    gauss[v] = _mm256_loadu_ps(rows.gauss_z + at + 8 * v);
  }
  // Copies: what is stored might be any of the originals, for all that the compiler knows.
  const float *y2 = rows.y2, *gauss_y = rows.gauss_y, all_left = rows.left, height = rows.scale;
  const int64_t n_rows = rows.rows, row_length = rows.row_length;
  float* out = plane + rows.start + at;
  for (int64_t j = 0; j < n_rows; ++j, out += row_length) {
    const __m256 left = _mm256_set1_ps(all_left - y2[j]), scale = _mm256_set1_ps(height * gauss_y[j]);
    for (int v = 0; v < vectors; ++v) {
      const __mmask8 covered = _mm256_cmp_ps_mask(z2[v], left, _CMP_LE_OQ);
      const __m256 value = _mm256_maskz_mul_ps(covered, scale, gauss[v]);
      const __m256 before = _mm256_loadu_ps(out + 8 * v);
      __m256 after;
      if constexpr (mode == SplatMode::sum) after = _mm256_add_ps(before, value);
      if constexpr (mode == SplatMode::max) after = _mm256_max_ps(value, before);
      if constexpr (mode == SplatMode::union_) {
        after = _mm256_add_ps(before, _mm256_mul_ps(value, _mm256_sub_ps(_mm256_set1_ps(1), before)));
      }
      _mm256_storeu_ps(out + 8 * v, after);
    }
  }
}

#else
template <SplatMode mode, int vectors>
void draw_vectors(const QuickRows&, int, float*) {}
#endif

template <SplatMode mode>
ATLAS_INLINE void draw_quick(const QuickRows& rows, bool wide, float* plane) {
  const auto draw = [&](auto vectors, int at) ATLAS_INLINED {
    constexpr int n = decltype(vectors)::value;
    wide ? draw_vectors<mode, n>(rows, at, plane) : draw_lanes<mode, n>(rows, at, plane);
  };
  for (int at = 0; at < rows.n; at += 3 * kBlock) {
    switch ((rows.n - at + kBlock - 1) / kBlock) {
      case 1: draw(Count<1>(), at); break;
      case 2: draw(Count<2>(), at); break;
      default: draw(Count<3>(), at);
    }
  }
}

// Voxels of a block that are not covered get the value 0, which changes nothing in any mode.
template <SplatMode mode, bool taper, typename T>
ATLAS_INLINE void draw_focus(const Scene<T>& scene, const Focus& focus, const Slice& slice, int64_t x,
                             T* plane) {
  const auto draw_row = [&](const Row<T>& row, const auto& cover, auto n) ATLAS_INLINED {
    T* out = plane + row.start;
    ATLAS_INDEPENDENT
    for (int i = 0; i < n; ++i) {
      out[i] = combined<mode>(out[i], kept(row.template at<taper>(i), cover(i)));
    }
  };
  for_each_row<taper>(scene, focus, slice, x, draw_row, [&](const QuickRows& rows) ATLAS_INLINED {
    if constexpr (std::is_same_v<T, float>) draw_quick<mode>(rows, scene.wide, plane);
    return true;
  });
}

template <SplatMode mode, typename T>
ATLAS_INLINE void draw_in_mode(const Scene<T>& scene, int64_t x, T* plane) {
  for_each_focus(scene, x, [&](const Focus& focus, const Slice& slice, auto taper) ATLAS_INLINED {
    draw_focus<mode, decltype(taper)::value>(scene, focus, slice, x, plane);
  });
}

template <typename T>
ATLAS_INLINE void draw_plane(const Scene<T>& scene, int64_t x, T* plane) {
  const SplatMode mode = scene.problem.mode;
  if (mode == SplatMode::sum || scene.problem.count) {
    draw_in_mode<SplatMode::sum>(scene, x, plane);
  } else if (mode == SplatMode::union_) {
    draw_in_mode<SplatMode::union_>(scene, x, plane);
  } else {
    draw_in_mode<SplatMode::max>(scene, x, plane);
  }
}

ATLAS_MULTIVERSION void draw(const Scene<float>& scene, int64_t x, float* plane) {
  draw_plane(scene, x, plane);
}
ATLAS_MULTIVERSION void draw(const Scene<double>& scene, int64_t x, double* plane) {
  draw_plane(scene, x, plane);
}

// Where in a volume of the output plane x begins.
int64_t first_element(const SplatProblem& problem, int64_t x) {
  const int64_t voxel = x * problem.shape[1] * problem.shape[2];
  if (!problem.masked()) return voxel;
  return std::lower_bound(problem.voxels, problem.voxels + problem.n_voxels, voxel) - problem.voxels;
}

// Draws the scene's planes and streams them to `out`.
template <typename T, typename Out>
void write_planes(const Scene<T>& scene, Canvas<T, Out>& canvas, Out* out) {
  const SplatProblem& problem = scene.problem;
  const int64_t plane_size = problem.shape[1] * problem.shape[2];
  Stream stream(out);
  for (int64_t x = scene.planes.begin; x < scene.planes.end; ++x) {
    if (T* plane = canvas.begin(scene, x, stream)) draw(scene, x, plane);
    if (problem.masked()) {
      const int64_t first = first_element(problem, x), n = first_element(problem, x + 1) - first;
      canvas.drain(problem.voxels + first, n, x * plane_size, stream);
    } else {
      canvas.drain(stream);
    }
  }
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
