// group_norm_film's loops over rows of numbers, each compiled once for every level of the instruction
// set. Private to group_norm_film_cpu.cpp, the only file that includes it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "common/floats.h"
#include "common/multiversion.h"
#include "common/scratch.h"
#include "group_norm_film/vectors_cpu.h"

namespace atlas_kernels {
namespace {

constexpr int64_t kAligned = 32;  // numbers, of which a row of channels side by side is a multiple

// What a number, or a vector of them, needs to know of its channel.
template <typename C>
struct Channel {
  C mean, scale, shift, slope, offset;
};

// The same of each of a row's `lanes` numbers, where `channels` lie side by side. Behind them, for pairs, once more
// those of even places and those of odd ones, so that no loop has to sort them.
template <typename C>
struct Columns {
  int64_t channels, lanes;
  Scratch<C> mean, scale, shift, slope, offset;
};

// ---- of numbers side by side: S is what the result is rounded to ----------------------------------

template <bool silu, typename S, typename Value>
ATLAS_INLINE Value film_of(Value x, const Channel<Value>& of) {
  const Value z = (x - of.mean) * of.scale + of.shift;
  if constexpr (!silu) return z;
  return times_sigmoid<S, false>(z, z);
}

// dL/dz from dL/dy, y = act(z).
template <bool silu, typename S, typename Value>
ATLAS_INLINE Value pull_back(Value dy, Value deviation, const Channel<Value>& of) {
  if constexpr (!silu) return dy;
  const Value z = deviation * of.scale + of.shift, s = sigmoid<S, true>(z);
  return dy * (s + s * (z - z * s));
}

template <typename Value>
ATLAS_INLINE Value gradient_of(Value x, Value dz, const Channel<Value>& of) {
  return (of.scale * dz - of.offset) - (x - of.mean) * of.slope;
}

// ---- vectors -------------------------------------------------------------------------------------

// bfloat16 goes two by two, everything else one by one.
template <typename A, typename B>
constexpr bool kPaired = std::is_same_v<A, bfloat16> && std::is_same_v<B, bfloat16>;

// Numbers of A beside such of B, in vectors of some bytes.
template <int64_t bytes, typename A, typename B>
struct Wide {
  using C = Compute<A>;
  using V = Vector<C, bytes>;
  static constexpr bool paired = kPaired<A, B>;
  using Value = std::conditional_t<paired, Two<V>, V>;
  static constexpr int64_t step = kNumbers<V> * (paired ? 2 : 1);
  static_assert(kAligned % step == 0, "a row's columns are read in whole vectors");

  template <typename T, typename Part>
  ATLAS_INLINE static Value take(const T* from, Part part) { return Storage<Value>::read(from, part); }
  template <typename T, typename Part>
  ATLAS_INLINE static void put(Value value, T* to, Part part) { Storage<Value>::write(value, to, part); }

  ATLAS_INLINE static Value all(C value) {
    const V same = V{} + value;
    if constexpr (paired) return {same, same}; else return same;
  }
  ATLAS_INLINE static Channel<Value> all(const Channel<C>& of) {
    return {all(of.mean), all(of.scale), all(of.shift), all(of.slope), all(of.offset)};
  }

  // What belongs to the numbers from i on of a row of that many lanes: see Columns.
  ATLAS_INLINE static Value column(const C* columns, int64_t lanes, int64_t i) {
    if constexpr (paired) {
      const C* even = columns + lanes + (i >> 1);
      return {words_at<V>(even, All()), words_at<V>(even + (lanes >> 1), All())};
    } else {
      return words_at<V>(columns + i, All());
    }
  }
  ATLAS_INLINE static void add_to_column(Value value, C* columns, int64_t lanes, int64_t i) {
    if constexpr (paired) {
      C* even = columns + lanes + (i >> 1);
      set_words(words_at<V>(even, All()) + value.low, even, All());
      set_words(words_at<V>(even + (lanes >> 1), All()) + value.high, even + (lanes >> 1), All());
    } else {
      set_words(words_at<V>(columns + i, All()) + value, columns + i, All());
    }
  }

  ATLAS_INLINE static double sum(Value value) {
    if constexpr (paired) return sum_of(value.low + value.high); else return sum_of(value);
  }
  ATLAS_INLINE static double sum_of(V value) {
    double sum = 0;
    for (int64_t i = 0; i < kNumbers<V>; ++i) sum += static_cast<double>(value[i]);
    return sum;
  }

  // Calls loop(first number, part) for one value after the other, the first one of `head` numbers.
  template <typename Whole, typename Loop>
  ATLAS_INLINE static void over(int64_t head, int64_t n, const Loop& loop) {
    int64_t i = std::min(head, n);
    if (i) loop(int64_t(0), First{i});
    for (; i + step <= n; i += step) loop(i, Whole());
    if (i < n) loop(i, First{n - i});
  }

  // Calls loop(rows, first row, i, part) for each value of some rows at a time, which share what is read of the
  // columns. Where they are more than a few hundred bytes, the processor no longer sees a stream of memory, and
  // one row at a time is faster; pairs, which have more to share, bear a few more.
  template <typename Whole, typename Loop>
  ATLAS_INLINE static void over_rows(int64_t rows, int64_t lanes, const Loop& loop) {
    constexpr int64_t together = paired ? 4 : 2, most = paired ? 1280 : 512;  // bytes
    int64_t row = 0;
    if (lanes * together * static_cast<int64_t>(sizeof(A)) <= most) {
      for (; row + together <= rows; row += together) {
        over<Whole>(0, lanes, [&](int64_t i, auto part) ATLAS_INLINED {
          loop(std::make_integer_sequence<int64_t, together>(), row * lanes, i, part);
        });
      }
    }
    for (; row < rows; ++row) {
      over<Whole>(0, lanes, [&](int64_t i, auto part) ATLAS_INLINED {
        loop(std::make_integer_sequence<int64_t, 1>(), row * lanes, i, part);
      });
    }
  }
};

// ---- of one channel ------------------------------------------------------------------------------

// How many numbers lie before the first whole line of the cache, for results that go past it.
template <typename Whole, typename T>
ATLAS_INLINE int64_t head_of(const T* to) {
  if constexpr (!std::is_same_v<Whole, Past>) return 0;
  return static_cast<int64_t>((kLine - reinterpret_cast<uintptr_t>(to) % kLine) % kLine / sizeof(T));
}

template <typename Whole, int64_t bytes, bool silu, typename A, typename B>
ATLAS_INLINE void film_channel(const A* x, const Channel<Compute<A>>& channel, B* y, int64_t n) {
  using W = Wide<bytes, A, B>;
  const auto of = W::all(channel);
  W::template over<Whole>(head_of<Whole>(y), n, [&](int64_t i, auto part) ATLAS_INLINED {
    W::put(film_of<silu, B>(W::take(x + i, part), of), y + i, part);
  });
}

// Writes dz of the value from number i on, and adds it and dz (x - mean) to the sums.
template <typename W, bool silu, typename A, typename B, typename Part>
ATLAS_INLINE void add_pulled(const A* x, const B* dy, const Channel<typename W::Value>& of, B* dz, int64_t i,
                             Part part, typename W::Value& sum, typename W::Value& product) {
  const auto d = W::take(x + i, part) - of.mean;
  const auto pulled = kept(pull_back<silu, B>(W::take(dy + i, part), d, of), part);
  W::put(pulled, dz + i, part);
  sum = sum + pulled;
  product = product + pulled * d;
}

template <int64_t bytes, bool silu, typename A, typename B>
ATLAS_INLINE void sums_channel(const A* x, const B* dy, const Channel<Compute<A>>& channel, B* dz, double* one,
                               double* two, int64_t n) {
  using W = Wide<bytes, A, B>;
  const auto of = W::all(channel);
  typename W::Value sum{}, product{};
  W::template over<All>(0, n, [&](int64_t i, auto part) ATLAS_INLINED {
    add_pulled<W, silu>(x, dy, of, dz, i, part, sum, product);
  });
  *one += W::sum(sum);
  *two += W::sum(product);
}

template <typename Whole, int64_t bytes, typename A, typename B>
ATLAS_INLINE void gradient_channel(const A* x, const B* dz, const Channel<Compute<A>>& channel, A* dx,
                                   int64_t n) {
  using W = Wide<bytes, A, B>;
  const auto of = W::all(channel);
  W::template over<Whole>(head_of<Whole>(dx), n, [&](int64_t i, auto part) ATLAS_INLINED {
    W::put(gradient_of(W::take(x + i, part), W::take(dz + i, part), of), dx + i, part);
  });
}

// ---- of channels side by side --------------------------------------------------------------------

// What belongs to the columns. Plain addresses: what is written could else be those in Columns.
template <typename W>
struct At {
  using C = typename W::C;
  using Value = typename W::Value;
  explicit At(const Columns<C>& of)
      : channels(of.channels), lanes(of.lanes), mean(of.mean.data()), scale(of.scale.data()),
        shift(of.shift.data()), slope(of.slope.data()), offset(of.offset.data()) {}

  ATLAS_INLINE Channel<Value> film(int64_t i) const {
    return {W::column(mean, lanes, i), W::column(scale, lanes, i), W::column(shift, lanes, i), Value(), Value()};
  }
  ATLAS_INLINE Channel<Value> gradient(int64_t i) const {
    return {W::column(mean, lanes, i), W::column(scale, lanes, i), Value(), W::column(slope, lanes, i),
            W::column(offset, lanes, i)};
  }

  int64_t channels, lanes;  // of a whole row
  const C *mean, *scale, *shift, *slope, *offset;
};

// Calls body(first number of each row) one after the other.
template <int64_t... row, typename Body>
ATLAS_INLINE void each(std::integer_sequence<int64_t, row...>, int64_t lanes, const Body& body) {
  (body(row * lanes), ...);
}

// Whole rows in turns of so few values that what belongs to their columns, and sums, stay in registers. (Sums that
// are added to memory keep a Zen 5 from its next loads: up to half as much time again.)
template <typename W, int64_t values>
struct Turns {
  // Calls loop(k, i): the k-th value of a turn begins with number i of n.
  template <typename Loop>
  ATLAS_INLINE static void over(int64_t n, const Loop& loop) {
    const auto all = std::make_integer_sequence<int64_t, values>();
    for (int64_t i = 0; i < n; i += values * W::step) turn(all, i, loop);
  }
  template <int64_t... k, typename Loop>
  ATLAS_INLINE static void turn(std::integer_sequence<int64_t, k...>, int64_t i, const Loop& loop) {
    (loop(k, i + k * W::step), ...);
  }
};

// Calls run with the turns after which channels come again, and returns whether there are such.
template <typename W, typename Run>
ATLAS_INLINE bool in_turns(const At<W>& at, int64_t lanes, const Run& run) {
  constexpr int64_t most = sizeof(typename W::V) == 64 ? 4 : 2;  // with 32 registers, or 16
  // W::step is a power of two.
  const int64_t values = at.channels / std::min(W::step, at.channels & -at.channels);
  if (lanes != at.lanes || values > most) return false;
  if (values == 1) run(Turns<W, 1>());
  if (values == 2) run(Turns<W, 2>());
  if constexpr (most > 2) {
    if (values == 3) run(Turns<W, 3>());
    if (values == 4) run(Turns<W, 4>());
  }
  return true;
}

template <typename Whole, bool silu, typename W, int64_t values, typename A, typename B>
ATLAS_INLINE void film_turns(Turns<W, values> turns, const A* x, const At<W>& at, B* y, int64_t n) {
  Channel<typename W::Value> of[values];
  for (int64_t k = 0; k < values; ++k) of[k] = at.film(k * W::step);
  turns.over(n, [&](int64_t k, int64_t i) ATLAS_INLINED {
    W::put(film_of<silu, B>(W::take(x + i, All()), of[k]), y + i, Whole());
  });
}

template <bool silu, typename W, int64_t values, typename A, typename B>
ATLAS_INLINE void sums_turns(Turns<W, values> turns, const A* x, const B* dy, const At<W>& at, B* dz,
                             typename W::C* one, typename W::C* two, int64_t n) {
  Channel<typename W::Value> of[values];
  typename W::Value sum[values]{}, product[values]{};
  for (int64_t k = 0; k < values; ++k) of[k] = at.film(k * W::step);
  turns.over(n, [&](int64_t k, int64_t i) ATLAS_INLINED {
    add_pulled<W, silu>(x, dy, of[k], dz, i, All(), sum[k], product[k]);
  });
  for (int64_t k = 0; k < values; ++k) {
    W::add_to_column(sum[k], one, at.lanes, k * W::step);
    W::add_to_column(product[k], two, at.lanes, k * W::step);
  }
}

template <typename Whole, typename W, int64_t values, typename A, typename B>
ATLAS_INLINE void gradient_turns(Turns<W, values> turns, const A* x, const B* dz, const At<W>& at, A* dx,
                                 int64_t n) {
  Channel<typename W::Value> of[values];
  for (int64_t k = 0; k < values; ++k) of[k] = at.gradient(k * W::step);
  turns.over(n, [&](int64_t k, int64_t i) ATLAS_INLINED {
    W::put(gradient_of(W::take(x + i, All()), W::take(dz + i, All()), of[k]), dx + i, Whole());
  });
}

template <typename Whole, int64_t bytes, bool silu, typename A, typename B>
ATLAS_INLINE void film_columns(const A* x, const Columns<Compute<A>>& columns, B* y, int64_t rows,
                               int64_t lanes) {
  using W = Wide<bytes, A, B>;
  const At<W> at(columns);
  const auto whole = [&](auto turns) ATLAS_INLINED { film_turns<Whole, silu>(turns, x, at, y, rows * lanes); };
  if (in_turns(at, lanes, whole)) return;
  W::template over_rows<Whole>(rows, lanes, [&](auto some, int64_t from, int64_t i, auto part) ATLAS_INLINED {
    const auto of = at.film(i);
    each(some, lanes, [&](int64_t row) ATLAS_INLINED {
      W::put(film_of<silu, B>(W::take(x + from + row + i, part), of), y + from + row + i, part);
    });
  });
}

template <int64_t bytes, bool silu, typename A, typename B>
ATLAS_INLINE void sums_columns(const A* x, const B* dy, const Columns<Compute<A>>& columns, B* dz,
                               Compute<A>* one, Compute<A>* two, int64_t rows, int64_t lanes) {
  using W = Wide<bytes, A, B>;
  const At<W> at(columns);
  const auto whole = [&](auto turns) ATLAS_INLINED {
    sums_turns<silu>(turns, x, dy, at, dz, one, two, rows * lanes);
  };
  if (in_turns(at, lanes, whole)) return;
  W::template over_rows<All>(rows, lanes, [&](auto some, int64_t from, int64_t i, auto part) ATLAS_INLINED {
    const auto of = at.film(i);
    typename W::Value sum{}, product{};
    each(some, lanes, [&](int64_t row) ATLAS_INLINED {
      add_pulled<W, silu>(x, dy, of, dz, from + row + i, part, sum, product);
    });
    W::add_to_column(sum, one, at.lanes, i);
    W::add_to_column(product, two, at.lanes, i);
  });
}

template <typename Whole, int64_t bytes, typename A, typename B>
ATLAS_INLINE void gradient_columns(const A* x, const B* dz, const Columns<Compute<A>>& columns, A* dx,
                                   int64_t rows, int64_t lanes) {
  using W = Wide<bytes, A, B>;
  const At<W> at(columns);
  const auto whole = [&](auto turns) ATLAS_INLINED { gradient_turns<Whole>(turns, x, dz, at, dx, rows * lanes); };
  if (in_turns(at, lanes, whole)) return;
  W::template over_rows<Whole>(rows, lanes, [&](auto some, int64_t from, int64_t i, auto part) ATLAS_INLINED {
    const auto of = at.gradient(i);
    each(some, lanes, [&](int64_t row) ATLAS_INLINED {
      const int64_t first = from + row + i;
      W::put(gradient_of(W::take(x + first, part), W::take(dz + first, part), of), dx + first, part);
    });
  });
}

// Adds, over rows, deviations from `centre` and their squares to columns, of which a whole row has `all`. From the
// `first` on, some values at a time, whose sums stay in registers.
template <int64_t bytes, int64_t values, typename A>
ATLAS_INLINE void deviations_columns(const A* x, int64_t rows, int64_t lanes, int64_t first,
                                     const Compute<A>* centre, int64_t all, Compute<A>* sum,
                                     Compute<A>* squares) {
  using W = Wide<bytes, A, A>;
  const auto add = [&](auto part) ATLAS_INLINED {
    typename W::Value c[values], one[values]{}, two[values]{};
    for (int64_t k = 0; k < values; ++k) c[k] = W::column(centre, all, first + k * W::step);
    for (int64_t row = 0; row < rows; ++row) {
#pragma GCC unroll 8
      for (int64_t k = 0; k < values; ++k) {
        const auto d = kept(W::take(x + row * lanes + first + k * W::step, part) - c[k], part);
        one[k] = one[k] + d;
        two[k] = two[k] + d * d;
      }
    }
    for (int64_t k = 0; k < values; ++k) {
      W::add_to_column(one[k], sum, all, first + k * W::step);
      W::add_to_column(two[k], squares, all, first + k * W::step);
    }
  };
  for (; first + values * W::step <= lanes; first += values * W::step) add(All());
  if constexpr (values > 1) {
    deviations_columns<bytes, values / 2>(x, rows, lanes, first, centre, all, sum, squares);
  } else if (first < lanes) {
    add(First{lanes - first});
  }
}

// Where channels come again after a few values, rows are as good as shorter ones, which are read from end to end.
template <int64_t bytes, typename A>
ATLAS_INLINE void deviations_rows(const A* x, int64_t channels, int64_t rows, int64_t lanes,
                                  const Compute<A>* centre, int64_t all, Compute<A>* sum, Compute<A>* squares) {
  constexpr int64_t values = kPaired<A, A> ? 2 : 4, some = values * Wide<bytes, A, A>::step;
  if (some % channels == 0 && lanes % some == 0) {
    rows *= lanes / some;
    lanes = some;
  }
  deviations_columns<bytes, values>(x, rows, lanes, 0, centre, all, sum, squares);
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

// Calls run(Past()) if so wished and a vector of numbers of A beside B makes a whole line of T, else run(All()).
template <int64_t bytes, typename A, typename B, typename T, typename Run>
ATLAS_INLINE void run_past(bool past, const T* to, const Run& run) {
  if constexpr (kHasPast && Wide<bytes, A, B>::step * sizeof(T) == kLine) {
    if (past && reinterpret_cast<uintptr_t>(to) % sizeof(T) == 0) return run(Past());
  }
  run(All());
}

// The same as plain functions, compiled once for each level of the instruction set. x and dx are of A, y,
// dy and dz of B; `past`: y and dx go past the cache, rows of them if they begin with a line.
#define ATLAS_ROWS(A, B)                                                                              \
  ATLAS_LEVELS(void film(bool silu, bool past, const A* x, const Columns<Compute<A>>& columns, B* y,  \
                         int64_t rows, int64_t lanes),                                                \
               past = past && head_of<Past>(y) == 0;                                                  \
               run_past<kBytes, A, B>(past, y, [&](auto whole) ATLAS_INLINED {                        \
                 using W = decltype(whole);                                                           \
                 silu ? film_columns<W, kBytes, true>(x, columns, y, rows, lanes)                     \
                      : film_columns<W, kBytes, false>(x, columns, y, rows, lanes);                   \
               }))                                                                                    \
  ATLAS_LEVELS(void film(bool silu, bool past, const A* x, Channel<Compute<A>> of, B* y, int64_t n),  \
               run_past<kBytes, A, B>(past, y, [&](auto whole) ATLAS_INLINED {                        \
                 using W = decltype(whole);                                                           \
                 silu ? film_channel<W, kBytes, true>(x, of, y, n)                                    \
                      : film_channel<W, kBytes, false>(x, of, y, n);                                  \
               }))                                                                                    \
  ATLAS_LEVELS(void sums(bool silu, const A* x, const B* dy, const Columns<Compute<A>>& columns,      \
                         B* dz, Compute<A>* one, Compute<A>* two, int64_t rows, int64_t lanes),       \
               silu ? sums_columns<kBytes, true>(x, dy, columns, dz, one, two, rows, lanes)           \
                    : sums_columns<kBytes, false>(x, dy, columns, dz, one, two, rows, lanes))         \
  ATLAS_LEVELS(void sums(bool silu, const A* x, const B* dy, Channel<Compute<A>> of, B* dz,           \
                         double* one, double* two, int64_t n),                                        \
               silu ? sums_channel<kBytes, true>(x, dy, of, dz, one, two, n)                          \
                    : sums_channel<kBytes, false>(x, dy, of, dz, one, two, n))                        \
  ATLAS_LEVELS(void gradient(bool past, const A* x, const B* dz, const Columns<Compute<A>>& columns,  \
                             A* dx, int64_t rows, int64_t lanes),                                     \
               past = past && head_of<Past>(dx) == 0;                                                 \
               run_past<kBytes, A, B>(past, dx, [&](auto whole) ATLAS_INLINED {                       \
                 gradient_columns<decltype(whole), kBytes>(x, dz, columns, dx, rows, lanes);          \
               }))                                                                                    \
  ATLAS_LEVELS(void gradient(bool past, const A* x, const B* dz, Channel<Compute<A>> of, A* dx,       \
                             int64_t n),                                                              \
               run_past<kBytes, A, B>(past, dx, [&](auto whole) ATLAS_INLINED {                       \
                 gradient_channel<decltype(whole), kBytes>(x, dz, of, dx, n);                         \
               }))

#define ATLAS_STATISTICS(A)                                                                          \
  ATLAS_LEVELS(void deviations(const A* x, int64_t channels, int64_t rows, int64_t lanes,            \
                               const Compute<A>* centre, int64_t all, Compute<A>* sum,               \
                               Compute<A>* squares),                                                 \
               deviations_rows<kBytes>(x, channels, rows, lanes, centre, all, sum, squares))

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
