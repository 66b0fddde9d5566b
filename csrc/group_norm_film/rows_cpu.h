// group_norm_film's loops over rows of numbers, each compiled once for every level of the instruction
// set. Private to group_norm_film_cpu.cpp, the only file that includes it.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

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

// The same of each number of a row, where channels lie side by side: a row's numbers, and behind them once
// more those of even places and those of odd ones, so that no loop over pairs has to sort them.
template <typename C>
struct Columns {
  Scratch<C> mean, scale, shift, slope, offset;
};

// ---- of one number: S is what the result is rounded to ------------------------------------------

template <bool silu, typename S, typename C>
ATLAS_INLINE C film_of(C x, const Channel<C>& of) {
  const C z = (x - of.mean) * of.scale + of.shift;
  if constexpr (!silu) return z;
  return z * sigmoid<S>(z);
}

// dL/dz from dL/dy, y = act(z).
template <bool silu, typename S, typename C>
ATLAS_INLINE C pull_back(C dy, C deviation, const Channel<C>& of) {
  if constexpr (!silu) return dy;
  const C z = deviation * of.scale + of.shift, s = sigmoid<S>(z);
  return dy * (s + s * (z - z * s));
}

template <typename C>
ATLAS_INLINE C gradient_of(C x, C dz, const Channel<C>& of) {
  return (of.scale * dz - of.offset) - (x - of.mean) * of.slope;
}

// ---- how numbers are read and written ------------------------------------------------------------

// bfloat16 goes two by two (common/floats.h), everything else one by one.
template <typename A, typename B>
constexpr bool kPaired = std::is_same_v<A, bfloat16> && std::is_same_v<B, bfloat16>;

template <bool paired, typename C>
using Value = std::conditional_t<paired, Two, C>;

// Number i, or pair i.
template <bool paired, typename T>
ATLAS_INLINE auto take(const T* from, int64_t i) {
  if constexpr (paired) {
    return widen_pair(from + 2 * i);
  } else {
    return widen(from[i]);
  }
}

// Number i of a row of that many lanes, or pair i: see Columns.
template <bool paired, typename C>
ATLAS_INLINE Value<paired, C> column(const C* columns, int64_t lanes, int64_t i) {
  if constexpr (paired) {
    return {columns[lanes + i], columns[lanes + lanes / 2 + i]};
  } else {
    return columns[i];
  }
}

template <bool paired, typename C, typename T>
ATLAS_INLINE void put(C value, T* to, int64_t i) {
  if constexpr (paired) {
    narrow_pair(value, to + 2 * i);
  } else {
    narrow(value, to[i]);
  }
}

template <bool paired, typename C>
ATLAS_INLINE void add_to_column(Value<paired, C> value, C* columns, int64_t lanes, int64_t i) {
  if constexpr (paired) {
    columns[lanes + i] += value.low;
    columns[lanes + lanes / 2 + i] += value.high;
  } else {
    columns[i] += value;
  }
}

// Calls loop(paired, first, end) for numbers 0 to n, or for their pairs and then for an odd one.
template <bool paired, typename Loop>
ATLAS_INLINE void in_pairs(int64_t n, const Loop& loop) {
  if constexpr (paired) {
    loop(std::true_type(), int64_t(0), n / 2);
    if (n % 2) loop(std::false_type(), n - 1, n);
  } else {
    loop(std::false_type(), int64_t(0), n);
  }
}

// ---- of one channel ------------------------------------------------------------------------------

template <bool paired, typename C>
ATLAS_INLINE Channel<Value<paired, C>> of_value(const Channel<C>& of) {
  if constexpr (paired) {
    return {{of.mean, of.mean}, {of.scale, of.scale}, {of.shift, of.shift}, {of.slope, of.slope},
            {of.offset, of.offset}};
  } else {
    return of;
  }
}

template <bool silu, typename A, typename B>
ATLAS_INLINE void film_channel(const A* x, const Channel<Compute<A>>& channel, B* y, int64_t n) {
  in_pairs<kPaired<A, B>>(n, [&](auto pair, int64_t first, int64_t end) ATLAS_INLINED {
    constexpr bool p = pair();
    const auto of = of_value<p>(channel);
    ATLAS_INDEPENDENT
    for (int64_t i = first; i < end; ++i) put<p>(film_of<silu, B>(take<p>(x, i), of), y, i);
  });
}

// Halves apart: a loop that adds up does not become vectors where it computes with pairs.
template <bool silu, typename A, typename B>
ATLAS_INLINE void sums_channel(const A* x, const B* dy, const Channel<Compute<A>>& of, B* dz, double* one,
                               double* two, int64_t n) {
  using C = Compute<A>;
  in_pairs<kPaired<A, B>>(n, [&](auto pair, int64_t first, int64_t end) ATLAS_INLINED {
    constexpr bool p = pair();
    C sum = 0, product = 0;
    ATLAS_REDUCTION(sum, product)
    for (int64_t i = first; i < end; ++i) {
      const auto in = take<p>(x, i);
      const auto grad = take<p>(dy, i);
      if constexpr (p) {
        const float d = in.low - of.mean, e = in.high - of.mean;
        const float low = pull_back<silu, B>(grad.low, d, of);
        const float high = pull_back<silu, B>(grad.high, e, of);
        put<p>(Two{low, high}, dz, i);
        sum += low + high;
        product += low * d + high * e;
      } else {
        const C d = in - of.mean, pulled = pull_back<silu, B>(C(grad), d, of);
        put<p>(pulled, dz, i);
        sum += pulled;
        product += pulled * d;
      }
    }
    *one += static_cast<double>(sum);
    *two += static_cast<double>(product);
  });
}

template <typename A, typename B>
ATLAS_INLINE void gradient_channel(const A* x, const B* dz, const Channel<Compute<A>>& channel, A* dx,
                                   int64_t n) {
  in_pairs<kPaired<A, B>>(n, [&](auto pair, int64_t first, int64_t end) ATLAS_INLINED {
    constexpr bool p = pair();
    const auto of = of_value<p>(channel);
    ATLAS_INDEPENDENT
    for (int64_t i = first; i < end; ++i) {
      put<p>(gradient_of(take<p>(x, i), take<p>(dz, i), of), dx, i);
    }
  });
}

// ---- of channels side by side --------------------------------------------------------------------

// What belongs to the columns. Plain addresses: what is written could else be those in Columns.
template <typename C>
struct At {
  explicit At(const Columns<C>& of)
      : lanes(static_cast<int64_t>(of.mean.size()) / 2), mean(of.mean.data()), scale(of.scale.data()), shift(of.shift.data()), slope(of.slope.data()),
        offset(of.offset.data()) {}

  template <bool paired>
  ATLAS_INLINE Channel<Value<paired, C>> film(int64_t i) const {
    return {column<paired>(mean, lanes, i), column<paired>(scale, lanes, i), column<paired>(shift, lanes, i), {}, {}};
  }
  template <bool paired>
  ATLAS_INLINE Channel<Value<paired, C>> gradient(int64_t i) const {
    return {column<paired>(mean, lanes, i), column<paired>(scale, lanes, i), {}, column<paired>(slope, lanes, i),
            column<paired>(offset, lanes, i)};
  }

  int64_t lanes;  // of a whole row
  const C *mean, *scale, *shift, *slope, *offset;
};

// Calls body(first number of each row) one after the other.
template <int64_t... row, typename Body>
ATLAS_INLINE void each(std::integer_sequence<int64_t, row...>, int64_t lanes, const Body& body) {
  (body(row * lanes), ...);
}

// Calls column(paired, rows, first number, i) for each column, or pair of them, of some rows at a time, which
// share what is read of it. Where they are more than a few hundred bytes, the processor no longer sees a stream
// of memory, and one row at a time is faster; pairs, which have more to share, bear a few more.
template <typename A, typename B, typename Column>
ATLAS_INLINE void over_rows(int64_t rows, int64_t lanes, const Column& column) {
  constexpr bool pairs = kPaired<A, B>;
  constexpr int64_t together = pairs ? 4 : 2, most = pairs ? 1280 : 512;  // bytes
  int64_t row = 0;
  if (lanes * together * static_cast<int64_t>(sizeof(A)) <= most) {
    for (; row + together <= rows; row += together) {
      in_pairs<pairs>(lanes, [&](auto pair, int64_t first, int64_t end) ATLAS_INLINED {
        ATLAS_INDEPENDENT
        for (int64_t i = first; i < end; ++i) {
          column(pair, std::make_integer_sequence<int64_t, together>(), row * lanes, i);
        }
      });
    }
  }
  for (; row < rows; ++row) {
    in_pairs<pairs>(lanes, [&](auto pair, int64_t first, int64_t end) ATLAS_INLINED {
      ATLAS_INDEPENDENT
      for (int64_t i = first; i < end; ++i) {
        column(pair, std::make_integer_sequence<int64_t, 1>(), row * lanes, i);
      }
    });
  }
}

template <bool silu, typename A, typename B>
ATLAS_INLINE void film_columns(const A* x, const Columns<Compute<A>>& columns, B* y, int64_t rows,
                               int64_t lanes) {
  const At<Compute<A>> at(columns);
  over_rows<A, B>(rows, lanes, [&](auto pair, auto some, int64_t from, int64_t i) ATLAS_INLINED {
    constexpr bool p = pair();
    const auto of = at.template film<p>(i);
    each(some, lanes, [&](int64_t row) ATLAS_INLINED {
      put<p>(film_of<silu, B>(take<p>(x + from + row, i), of), y + from + row, i);
    });
  });
}

template <bool silu, typename A, typename B>
ATLAS_INLINE void sums_columns(const A* x, const B* dy, const Columns<Compute<A>>& columns, B* dz,
                               Compute<A>* one, Compute<A>* two, int64_t rows, int64_t lanes) {
  const At<Compute<A>> at(columns);
  over_rows<A, B>(rows, lanes, [&](auto pair, auto some, int64_t from, int64_t i) ATLAS_INLINED {
    constexpr bool p = pair();
    const auto of = at.template film<p>(i);
    Value<p, Compute<A>> sum{}, product{};
    each(some, lanes, [&](int64_t row) ATLAS_INLINED {
      const auto d = take<p>(x + from + row, i) - of.mean;
      const auto pulled = pull_back<silu, B>(take<p>(dy + from + row, i), d, of);
      put<p>(pulled, dz + from + row, i);
      sum = sum + pulled;
      product = product + pulled * d;
    });
    add_to_column<p>(sum, one, at.lanes, i);
    add_to_column<p>(product, two, at.lanes, i);
  });
}

template <typename A, typename B>
ATLAS_INLINE void gradient_columns(const A* x, const B* dz, const Columns<Compute<A>>& columns, A* dx,
                                   int64_t rows, int64_t lanes) {
  const At<Compute<A>> at(columns);
  over_rows<A, B>(rows, lanes, [&](auto pair, auto some, int64_t from, int64_t i) ATLAS_INLINED {
    constexpr bool p = pair();
    const auto of = at.template gradient<p>(i);
    each(some, lanes, [&](int64_t row) ATLAS_INLINED {
      put<p>(gradient_of(take<p>(x + from + row, i), take<p>(dz + from + row, i), of), dx + from + row, i);
    });
  });
}

// Sums of the columns of a tile.
template <typename A>
ATLAS_INLINE void sum_columns_tile(const A* x, int64_t rows, int64_t lanes, Compute<A>* sum) {
  for (int64_t row = 0; row < rows; ++row, x += lanes) {
    ATLAS_INDEPENDENT
    for (int64_t i = 0; i < lanes; ++i) sum[i] += widen(x[i]);
  }
}

// Sums of the columns' deviations from `centre` and of their squares, `vectors` of 32 bytes at a time, so
// that these stay in registers.
template <int64_t vectors, typename A>
ATLAS_INLINE void deviate_columns_tile(const A* x, int64_t rows, int64_t lanes, int64_t first,
                                       const Compute<A>* centre, Compute<A>* sum,
                                       Compute<A>* squares) {
  using V = Lanes<Compute<A>>;
  constexpr int64_t step = kLanesOf<Compute<A>>;
  for (; first + vectors * step <= lanes; first += vectors * step) {
    V s[vectors], q[vectors], c[vectors];
    for (int64_t i = 0; i < vectors; ++i) {
      const int64_t at = first + i * step;
      s[i] = load(sum + at), q[i] = load(squares + at), c[i] = load(centre + at);
    }
    for (int64_t row = 0; row < rows; ++row) {
#pragma GCC unroll 8
      for (int64_t i = 0; i < vectors; ++i) {
        const V d = load(x + row * lanes + first + i * step) - c[i];
        s[i] += d;
        q[i] += d * d;
      }
    }
    for (int64_t i = 0; i < vectors; ++i) {
      std::memcpy(sum + first + i * step, &s[i], sizeof(V));
      std::memcpy(squares + first + i * step, &q[i], sizeof(V));
    }
  }
  if constexpr (vectors > 1) {
    return deviate_columns_tile<vectors / 2>(x, rows, lanes, first, centre, sum, squares);
  }
  for (; first < lanes; ++first) {
    for (int64_t row = 0; row < rows; ++row) {
      const Compute<A> d = widen(x[row * lanes + first]) - centre[first];
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
                               int64_t rows, int64_t lanes) {                                        \
    silu ? film_columns<true>(x, columns, y, rows, lanes)                                            \
         : film_columns<false>(x, columns, y, rows, lanes);                                          \
  }                                                                                                  \
  [[maybe_unused]] ATLAS_MULTIVERSION void film(bool silu, const A* x, Channel<Compute<A>> of, B* y, \
                                                int64_t n) {                                         \
    silu ? film_channel<true>(x, of, y, n) : film_channel<false>(x, of, y, n);                       \
  }                                                                                                  \
  ATLAS_MULTIVERSION void sums(bool silu, const A* x, const B* dy,                                   \
                               const Columns<Compute<A>>& columns, B* dz, Compute<A>* one,           \
                               Compute<A>* two, int64_t rows, int64_t lanes) {                       \
    silu ? sums_columns<true>(x, dy, columns, dz, one, two, rows, lanes)                             \
         : sums_columns<false>(x, dy, columns, dz, one, two, rows, lanes);                           \
  }                                                                                                  \
  [[maybe_unused]] ATLAS_MULTIVERSION void sums(bool silu, const A* x, const B* dy,                  \
                                                Channel<Compute<A>> of, B* dz, double* one,          \
                                                double* two, int64_t n) {                            \
    silu ? sums_channel<true>(x, dy, of, dz, one, two, n)                                            \
         : sums_channel<false>(x, dy, of, dz, one, two, n);                                          \
  }                                                                                                  \
  ATLAS_MULTIVERSION void gradient(const A* x, const B* dz, const Columns<Compute<A>>& columns,      \
                                   A* dx, int64_t rows, int64_t lanes) {                             \
    gradient_columns(x, dz, columns, dx, rows, lanes);                                               \
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
                                          const Compute<A>* centre, Compute<A>* sum,               \
                                          Compute<A>* squares) {                                   \
    deviate_columns_tile<8>(x, rows, lanes, 0, centre, sum, squares);                              \
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
