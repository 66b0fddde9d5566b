// group_norm_film's loops over rows of numbers, each compiled once for every level of the instruction
// set. Private to group_norm_film_cpu.cpp, the only file that includes it.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "common/floats.h"
#include "common/multiversion.h"
#include "common/scratch.h"

namespace atlas_kernels {
namespace {

// What a number needs to know of its channel.
template <typename C>
struct Channel {
  C mean, scale, shift, slope, offset;
};

// The same of each number of a row, where channels lie side by side.
template <typename C>
struct Columns {
  Scratch<C> mean, scale, shift, slope, offset;
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

// ---- of one channel --------------------------------------------------------------------------

template <bool silu, typename A, typename B>
ATLAS_INLINE void film_channel(const A* x, Channel<Compute<A>> of, B* y, int64_t n) {
  ATLAS_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) {
    narrow(activate<silu>((widen(x[i]) - of.mean) * of.scale + of.shift), y[i]);
  }
}

template <bool silu, typename A, typename B>
ATLAS_INLINE void sums_channel(const A* x, const B* dy, Channel<Compute<A>> of, B* dz, double* one,
                               double* two, int64_t n) {
  Compute<A> p = 0, q = 0;
  ATLAS_REDUCTION(p, q)
  for (int64_t i = 0; i < n; ++i) {
    const auto d = widen(x[i]) - of.mean;
    const auto pulled = pull_back<silu>(widen(dy[i]), d * of.scale + of.shift);
    narrow(pulled, dz[i]);
    p += pulled;
    q += pulled * d;
  }
  *one += static_cast<double>(p);
  *two += static_cast<double>(q);
}

template <typename A, typename B>
ATLAS_INLINE void gradient_channel(const A* x, const B* dz, Channel<Compute<A>> of, A* dx, int64_t n) {
  ATLAS_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) {
    narrow((of.scale * widen(dz[i]) - of.offset) - (widen(x[i]) - of.mean) * of.slope, dx[i]);
  }
}

// The same for bfloat16, two numbers at a time.
template <bool silu>
ATLAS_INLINE void film_channel(const bfloat16* x, Channel<float> of, bfloat16* y, int64_t n) {
  const auto film = [&](float value) ATLAS_INLINED {
    return activate<silu>((value - of.mean) * of.scale + of.shift);
  };
  ATLAS_INDEPENDENT
  for (int64_t i = 0; i < n / 2; ++i) {
    const Two in = widen_pair(x + 2 * i);
    narrow_pair({film(in.low), film(in.high)}, y + 2 * i);
  }
  if (n % 2) narrow(film(widen(x[n - 1])), y[n - 1]);
}

template <bool silu>
ATLAS_INLINE void sums_channel(const bfloat16* x, const bfloat16* dy, Channel<float> of, bfloat16* dz,
                               double* one, double* two, int64_t n) {
  float p = 0, q = 0;
  ATLAS_REDUCTION(p, q)
  for (int64_t i = 0; i < n / 2; ++i) {
    const Two in = widen_pair(x + 2 * i), grad = widen_pair(dy + 2 * i);
    const float d = in.low - of.mean, e = in.high - of.mean;
    const float low = pull_back<silu>(grad.low, d * of.scale + of.shift);
    const float high = pull_back<silu>(grad.high, e * of.scale + of.shift);
    narrow_pair({low, high}, dz + 2 * i);
    p += low + high;
    q += low * d + high * e;
  }
  *one += static_cast<double>(p);
  *two += static_cast<double>(q);
  if (n % 2) sums_channel<silu, bfloat16, bfloat16>(x + n - 1, dy + n - 1, of, dz + n - 1, one, two, 1);
}

ATLAS_INLINE void gradient_channel(const bfloat16* x, const bfloat16* dz, Channel<float> of, bfloat16* dx,
                                   int64_t n) {
  const auto gradient = [&](float value, float pulled) ATLAS_INLINED {
    return (of.scale * pulled - of.offset) - (value - of.mean) * of.slope;
  };
  ATLAS_INDEPENDENT
  for (int64_t i = 0; i < n / 2; ++i) {
    const Two in = widen_pair(x + 2 * i), pulled = widen_pair(dz + 2 * i);
    narrow_pair({gradient(in.low, pulled.low), gradient(in.high, pulled.high)}, dx + 2 * i);
  }
  if (n % 2) narrow(gradient(widen(x[n - 1]), widen(dz[n - 1])), dx[n - 1]);
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

// The same as plain functions, compiled once for each level of the instruction set. x and dx are of A, y,
// dy and dz of B.
#define ATLAS_ROWS(A, B)                                                                             \
  ATLAS_MULTIVERSION void film(bool silu, const A* x, const Columns<Compute<A>>& columns, B* y,      \
                               int64_t n) {                                                          \
    silu ? film_row<true>(x, columns, y, n) : film_row<false>(x, columns, y, n);                     \
  }                                                                                                  \
  [[maybe_unused]] ATLAS_MULTIVERSION void film(bool silu, const A* x, Channel<Compute<A>> of, B* y, \
                                                int64_t n) {                                         \
    silu ? film_channel<true>(x, of, y, n) : film_channel<false>(x, of, y, n);                       \
  }                                                                                                  \
  ATLAS_MULTIVERSION void sums(bool silu, const A* x, const B* dy,                                   \
                               const Columns<Compute<A>>& columns, B* dz, Compute<A>* one,           \
                               Compute<A>* two, int64_t n) {                                         \
    silu ? sums_row<true>(x, dy, columns, dz, one, two, n)                                           \
         : sums_row<false>(x, dy, columns, dz, one, two, n);                                         \
  }                                                                                                  \
  [[maybe_unused]] ATLAS_MULTIVERSION void sums(bool silu, const A* x, const B* dy,                  \
                                                Channel<Compute<A>> of, B* dz, double* one,          \
                                                double* two, int64_t n) {                            \
    silu ? sums_channel<true>(x, dy, of, dz, one, two, n)                                            \
         : sums_channel<false>(x, dy, of, dz, one, two, n);                                          \
  }                                                                                                  \
  ATLAS_MULTIVERSION void gradient(const A* x, const B* dz, const Columns<Compute<A>>& columns,      \
                                   A* dx, int64_t n) {                                               \
    gradient_row(x, dz, columns, dx, n);                                                             \
  }                                                                                                  \
  [[maybe_unused]] ATLAS_MULTIVERSION void gradient(const A* x, const B* dz, Channel<Compute<A>> of, \
                                                    A* dx, int64_t n) {                              \
    gradient_channel(x, dz, of, dx, n);                                                              \
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
