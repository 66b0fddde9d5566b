// group_norm_film's loops over rows of numbers, each compiled once for every level of the instruction
// set. Private to group_norm_film_cpu.cpp, the only file that includes it.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "common/floats.h"
#include "common/multiversion.h"

namespace atlas_kernels {
namespace {

// Columns of one row: what each of its numbers needs to know of its channel.
template <typename C>
struct Columns {
  std::vector<C> mean, scale, shift, slope, offset;
  bool uniform;  // all of one channel: the first of each vector is every one of it
};

template <bool silu, typename C>
ATLAS_INLINE C activate(C z) {
  if constexpr (!silu) return z;
  return z * sigmoid(z);
}

// dL/dz from dL/dy, y = act(z).
template <bool silu, typename C>
ATLAS_INLINE C pull_back(C dy, C z) {
  if constexpr (!silu) return dy;
  const C s = sigmoid(z);
  return dy * (s + s * (z - z * s));
}

template <bool silu, typename A, typename B>
ATLAS_INLINE void film_row(const A* x, const Columns<Compute<A>>& columns, B* y, int64_t n) {
  const auto *mean = columns.mean.data(), *scale = columns.scale.data();
  const auto* shift = columns.shift.data();
  ATLAS_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) {
    narrow(activate<silu>((widen(x[i]) - mean[i]) * scale[i] + shift[i]), y[i]);
  }
}

template <bool silu, typename A, typename B>
ATLAS_INLINE void sums_row(const A* x, const B* dy, const Columns<Compute<A>>& columns, B* dz,
                           Compute<A>* one, Compute<A>* two, int64_t n) {
  const auto *mean = columns.mean.data(), *scale = columns.scale.data();
  const auto* shift = columns.shift.data();
  ATLAS_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) {
    const auto d = widen(x[i]) - mean[i];
    const auto pulled = pull_back<silu>(widen(dy[i]), d * scale[i] + shift[i]);
    narrow(pulled, dz[i]);
    one[i] += pulled;
    two[i] += pulled * d;
  }
}

template <typename A, typename B>
ATLAS_INLINE void gradient_row(const A* x, const B* dz, const Columns<Compute<A>>& columns, A* dx,
                               int64_t n) {
  const auto *mean = columns.mean.data(), *scale = columns.scale.data();
  const auto *slope = columns.slope.data(), *offset = columns.offset.data();
  ATLAS_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) {
    narrow((scale[i] * widen(dz[i]) - offset[i]) - (widen(x[i]) - mean[i]) * slope[i], dx[i]);
  }
}

// The same for rows of bfloat16 that belong to one channel: two numbers at a time. The sums' columns
// are those of one channel too, so their order does not matter.
template <bool silu>
ATLAS_INLINE void film_pairs(const bfloat16* x, const Columns<float>& columns, bfloat16* y, int64_t n) {
  const float mean = columns.mean[0], scale = columns.scale[0], shift = columns.shift[0];
  ATLAS_INDEPENDENT
  for (int64_t i = 0; i < n / 2; ++i) {
    const Two in = widen_pair(x + 2 * i);
    narrow_pair({activate<silu>((in.low - mean) * scale + shift),
                 activate<silu>((in.high - mean) * scale + shift)},
                y + 2 * i);
  }
  if (n % 2) film_row<silu>(x + n - 1, columns, y + n - 1, 1);
}

template <bool silu>
ATLAS_INLINE void sums_pairs(const bfloat16* x, const bfloat16* dy, const Columns<float>& columns,
                             bfloat16* dz, float* one, float* two, int64_t n) {
  const float mean = columns.mean[0], scale = columns.scale[0], shift = columns.shift[0];
  ATLAS_INDEPENDENT
  for (int64_t i = 0; i < n / 2; ++i) {
    const Two in = widen_pair(x + 2 * i), grad = widen_pair(dy + 2 * i);
    const float d = in.low - mean, e = in.high - mean;
    const float p = pull_back<silu>(grad.low, d * scale + shift);
    const float q = pull_back<silu>(grad.high, e * scale + shift);
    narrow_pair({p, q}, dz + 2 * i);
    one[i] += p + q;
    two[i] += p * d + q * e;
  }
  if (n % 2) sums_row<silu>(x + n - 1, dy + n - 1, columns, dz + n - 1, one, two, 1);
}

ATLAS_INLINE void gradient_pairs(const bfloat16* x, const bfloat16* dz, const Columns<float>& columns,
                                 bfloat16* dx, int64_t n) {
  const float mean = columns.mean[0], scale = columns.scale[0];
  const float slope = columns.slope[0], offset = columns.offset[0];
  ATLAS_INDEPENDENT
  for (int64_t i = 0; i < n / 2; ++i) {
    const Two in = widen_pair(x + 2 * i), pulled = widen_pair(dz + 2 * i);
    narrow_pair({(scale * pulled.low - offset) - (in.low - mean) * slope,
                 (scale * pulled.high - offset) - (in.high - mean) * slope},
                dx + 2 * i);
  }
  if (n % 2) gradient_row(x + n - 1, dz + n - 1, columns, dx + n - 1, 1);
}

// Sums of the columns of a tile, `rows` rows of `lanes` numbers: row by row, as memory lies.
template <typename A>
ATLAS_INLINE void sum_columns_tile(const A* x, int64_t rows, int64_t lanes, Compute<A>* sum) {
  for (int64_t row = 0; row < rows; ++row, x += lanes) {
    ATLAS_INDEPENDENT
    for (int64_t i = 0; i < lanes; ++i) sum[i] += widen(x[i]);
  }
}

// Given the columns' means, sums of the deviations and of their squares. The tile is in the cache now:
// a few columns at a time, so that the sums stay in registers.
template <typename A>
ATLAS_INLINE void deviate_columns_tile(const A* x, int64_t rows, int64_t lanes,
                                       const Compute<A>* mean, Compute<A>* sum,
                                       Compute<A>* squares) {
  using V = Lanes<Compute<A>>;
  constexpr int64_t step = kLanesOf<Compute<A>>;
  int64_t first = 0;
  for (; first + step <= lanes; first += step) {
    V s = load(sum + first), q = load(squares + first);
    const V m = load(mean + first);
    for (int64_t row = 0; row < rows; ++row) {
      const V d = load(x + row * lanes + first) - m;
      s += d;
      q += d * d;
    }
    std::memcpy(sum + first, &s, sizeof s);
    std::memcpy(squares + first, &q, sizeof q);
  }
  for (; first < lanes; ++first) {
    for (int64_t row = 0; row < rows; ++row) {
      const Compute<A> d = widen(x[row * lanes + first]) - mean[first];
      sum[first] += d;
      squares[first] += d * d;
    }
  }
}

// `count` voxels of `inner` numbers, `row` apart, side by side; and back, over or onto what is there.
template <typename T>
ATLAS_INLINE void gather_row(const T* from, int64_t row, int64_t inner, int64_t count, Compute<T>* to) {
  if (row == inner) inner *= count, count = 1;
  for (int64_t voxel = 0; voxel < count; ++voxel, from += row, to += inner) {
    ATLAS_INDEPENDENT
    for (int64_t i = 0; i < inner; ++i) to[i] = widen(from[i]);
  }
}

template <bool add, typename T>
ATLAS_INLINE void scatter_row(const Compute<T>* from, int64_t row, int64_t inner, int64_t count, T* to) {
  if (row == inner) inner *= count, count = 1;
  for (int64_t voxel = 0; voxel < count; ++voxel, from += inner, to += row) {
    ATLAS_INDEPENDENT
    for (int64_t i = 0; i < inner; ++i) narrow(add ? widen(to[i]) + from[i] : from[i], to[i]);
  }
}

// The same as plain functions, compiled once for each level of the instruction set. x and dx are rows
// of A, y, dy and dz rows of B.
#define ATLAS_ROWS(A, B)                                                                           \
  ATLAS_MULTIVERSION void film(bool silu, const A* x, const Columns<Compute<A>>& columns, B* y,    \
                               int64_t n) {                                                        \
    silu ? film_row<true>(x, columns, y, n) : film_row<false>(x, columns, y, n);                   \
  }                                                                                                \
  ATLAS_MULTIVERSION void sums(bool silu, const A* x, const B* dy,                                 \
                               const Columns<Compute<A>>& columns, B* dz, Compute<A>* one,         \
                               Compute<A>* two, int64_t n) {                                       \
    silu ? sums_row<true>(x, dy, columns, dz, one, two, n)                                         \
         : sums_row<false>(x, dy, columns, dz, one, two, n);                                       \
  }                                                                                                \
  ATLAS_MULTIVERSION void gradient(const A* x, const B* dz, const Columns<Compute<A>>& columns,    \
                                   A* dx, int64_t n) {                                             \
    gradient_row(x, dz, columns, dx, n);                                                           \
  }

#define ATLAS_STATISTICS(A)                                                                        \
  ATLAS_MULTIVERSION void sum_columns(const A* x, int64_t rows, int64_t lanes, Compute<A>* sum) {  \
    sum_columns_tile(x, rows, lanes, sum);                                                         \
  }                                                                                                \
  ATLAS_MULTIVERSION void deviate_columns(const A* x, int64_t rows, int64_t lanes,                 \
                                          const Compute<A>* mean, Compute<A>* sum,                 \
                                          Compute<A>* squares) {                                   \
    deviate_columns_tile(x, rows, lanes, mean, sum, squares);                                      \
  }

#define ATLAS_MEMORY(T)                                                                            \
  ATLAS_MULTIVERSION void gather(const T* from, int64_t row, int64_t inner, int64_t count,         \
                                 Compute<T>* to) {                                                 \
    gather_row(from, row, inner, count, to);                                                       \
  }                                                                                                \
  ATLAS_MULTIVERSION void scatter(bool add, const Compute<T>* from, int64_t row, int64_t inner,    \
                                  int64_t count, T* to) {                                          \
    add ? scatter_row<true>(from, row, inner, count, to)                                           \
        : scatter_row<false>(from, row, inner, count, to);                                         \
  }

ATLAS_MULTIVERSION void film_one(bool silu, const bfloat16* x, const Columns<float>& columns,
                                 bfloat16* y, int64_t n) {
  silu ? film_pairs<true>(x, columns, y, n) : film_pairs<false>(x, columns, y, n);
}
ATLAS_MULTIVERSION void sums_one(bool silu, const bfloat16* x, const bfloat16* dy,
                                 const Columns<float>& columns, bfloat16* dz, float* one, float* two,
                                 int64_t n) {
  silu ? sums_pairs<true>(x, dy, columns, dz, one, two, n)
       : sums_pairs<false>(x, dy, columns, dz, one, two, n);
}
ATLAS_MULTIVERSION void gradient_one(const bfloat16* x, const bfloat16* dz,
                                     const Columns<float>& columns, bfloat16* dx, int64_t n) {
  gradient_pairs(x, dz, columns, dx, n);
}

ATLAS_ROWS(float, float)
ATLAS_ROWS(double, double)
ATLAS_ROWS(bfloat16, bfloat16)
ATLAS_ROWS(bfloat16, float)
ATLAS_ROWS(float, bfloat16)
ATLAS_ROWS(float16, float16)
ATLAS_ROWS(float16, float)
ATLAS_ROWS(float, float16)
ATLAS_STATISTICS(float)
ATLAS_STATISTICS(double)
ATLAS_STATISTICS(bfloat16)
ATLAS_STATISTICS(float16)
ATLAS_MEMORY(float)
ATLAS_MEMORY(double)
ATLAS_MEMORY(bfloat16)
ATLAS_MEMORY(float16)
#undef ATLAS_ROWS
#undef ATLAS_STATISTICS
#undef ATLAS_MEMORY

}  // namespace
}  // namespace atlas_kernels
