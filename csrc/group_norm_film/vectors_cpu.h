// Vectors of any width: how they are read, written and rounded, and the sigmoid of one. No target of its own: each
// function is inlined into one that has one. Private to group_norm_film_cpu.cpp, the only file that includes it.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "common/floats.h"
#include "common/multiversion.h"

namespace atlas_kernels {
namespace {

template <typename V>
using NumberOf = std::decay_t<decltype(V()[0])>;
template <typename V>
constexpr int64_t kNumbers = sizeof(V) / sizeof(NumberOf<V>);

// Two neighbours of each place of a vector: halves of 32-bit words, which spares bfloat16 the shuffles.
template <typename V>
struct Two {
  V low, high;
};
template <typename V>
ATLAS_INLINE Two<V> operator+(Two<V> a, Two<V> b) { return {a.low + b.low, a.high + b.high}; }
template <typename V>
ATLAS_INLINE Two<V> operator-(Two<V> a, Two<V> b) { return {a.low - b.low, a.high - b.high}; }
template <typename V>
ATLAS_INLINE Two<V> operator*(Two<V> a, Two<V> b) { return {a.low * b.low, a.high * b.high}; }

// ---- reading and writing -------------------------------------------------------------------------

// How many of a vector's numbers there are: all, or the first n. Of those that are not, 0 is read.
struct All {};
struct First {
  int64_t n;
};
// All, and they are written past the cache: a line of it that is written whole need not be read first.
struct Past : All {};
constexpr uintptr_t kLine = 64;  // bytes
#if defined(ATLAS_KNOWS_AVX512)
constexpr bool kHasPast = true;
#else
constexpr bool kHasPast = false;
#endif

template <typename V, typename T>
ATLAS_INLINE V words_at(const T* from, All) {
  V words;
  std::memcpy(&words, from, sizeof words);
  return words;
}
template <typename V, typename T>
ATLAS_INLINE V words_at(const T* from, First some) {
  V words{};
  std::memcpy(&words, from, static_cast<size_t>(some.n) * sizeof(T));
  return words;
}

template <typename V, typename T>
ATLAS_INLINE void set_words(V words, T* to, All) {
  std::memcpy(to, &words, sizeof words);
}
#if defined(ATLAS_KNOWS_AVX512)
template <typename V, typename T>
ATLAS_INLINE void set_words(V line, T* to, Past) {
  static_assert(sizeof line == kLine, "else the line would be read first");
  __asm__ volatile("vmovntps %1, %0" : "=m"(*reinterpret_cast<V*>(to)) : "v"(line));
}
#endif
template <typename V, typename T>
ATLAS_INLINE void set_words(V words, T* to, First some) {
  std::memcpy(to, &words, static_cast<size_t>(some.n) * sizeof(T));
}

template <typename V>
using Words = Vector<uint32_t, sizeof(V)>;
template <typename V>
using Halves = Vector<uint16_t, sizeof(V) / 2>;

// How numbers are read to, and written from, a vector or two.
template <typename V>
struct Storage {
  template <typename Part>
  ATLAS_INLINE static V read(const NumberOf<V>* from, Part part) { return words_at<V>(from, part); }
  template <typename Part>
  ATLAS_INLINE static void write(V values, NumberOf<V>* to, Part part) { set_words(values, to, part); }

  template <typename Part>
  ATLAS_INLINE static V read(const bfloat16* from, Part part) {
    return V(__builtin_convertvector(words_at<Halves<V>>(from, part), Words<V>) << 16);
  }
  template <typename Part>
  ATLAS_INLINE static void write(V values, bfloat16* to, Part part) {
    set_words(__builtin_convertvector((Words<V>(values) + 0x8000u) >> 16, Halves<V>), to, part);
  }

  template <typename Part>
  ATLAS_INLINE static V read(const float16* from, Part part) {
    return float_of_half<V>(__builtin_convertvector(words_at<Halves<V>>(from, part), Words<V>));
  }
  template <typename Part>
  ATLAS_INLINE static void write(V values, float16* to, Part part) {
    set_words(__builtin_convertvector(half_of_float<Words<V>>(values), Halves<V>), to, part);
  }
};

// See narrow() of common/floats.h for how bfloat16 is rounded.
template <typename V>
struct Storage<Two<V>> {
  template <typename Part>
  ATLAS_INLINE static Two<V> read(const bfloat16* from, Part part) {
    const auto words = words_at<Words<V>>(from, part);
    return {V(words << 16), V(words & 0xffff0000u)};
  }
  template <typename Part>
  ATLAS_INLINE static void write(Two<V> values, bfloat16* to, Part part) {
    const Words<V> low = (Words<V>(values.low) + 0x8000u) >> 16;
    set_words(low | ((Words<V>(values.high) + 0x8000u) & 0xffff0000u), to, part);
  }
};

// The values that there are, 0 for the others.
template <typename Value>
ATLAS_INLINE Value kept(Value values, All) { return values; }
template <typename V>
ATLAS_INLINE V kept(V values, First some) {
  for (int64_t i = some.n; i < kNumbers<V>; ++i) values[i] = 0;
  return values;
}
template <typename V>
ATLAS_INLINE Two<V> kept(Two<V> values, First some) {
  return {kept(values.low, First{(some.n + 1) / 2}), kept(values.high, First{some.n / 2})};
}

// ---- times the sigmoid ---------------------------------------------------------------------------

// 2^r - 1 = r (a + b r + ...), highest power first, of least relative error for r in [0, 1) and for r in
// [-1/2, 1/2]: 1e-7 of 2^r, and 3e-6 where that is far below the rounding of a number of two bytes.
constexpr float kUpward[] = {1.86713011e-3f, 9.01703023e-3f, 5.57999132e-2f, 2.40164450e-1f, 6.93151312e-1f};
constexpr float kUpwardCoarse[] = {1.34266842e-2f, 5.22424743e-2f, 2.41280205e-1f, 6.93044845e-1f};
constexpr float kAround[] = {1.32647203e-3f, 9.67151299e-3f, 5.55073395e-2f, 2.40222424e-1f, 6.93147004e-1f};
constexpr float kAroundCoarse[] = {9.58285388e-3f, 5.59064262e-2f, 2.40240991e-1f, 6.93124175e-1f};

template <int n, typename V>
ATLAS_INLINE V power_of_two(V r, const float (&of)[n]) {
  V p = V{} + of[0];
  for (int i = 1; i < n; ++i) p = p * r + of[i];
  return p * r + 1.0f;
}

// Between -most and most, or something for NaN. By instructions, for which compilers take comparisons and choices.
template <typename V>
ATLAS_INLINE V cut(V x, float most) {
  const V low = V{} - most, high = V{} + most;
#if defined(__x86_64__)
  if constexpr (sizeof(V) == 32) {
    // As integers, for which there are more units: positive floats order like signed ones, negative ones, by
    // magnitude, like unsigned ones.
    __asm__("vpminsd %1, %0, %0\n\tvpminud %2, %0, %0" : "+x"(x) : "x"(high), "x"(low));
    return x;
  } else if constexpr (sizeof(V) == 16) {
    __asm__("maxps %1, %0\n\tminps %2, %0" : "+x"(x) : "x"(low), "x"(high));
    return x;
  }
#endif
  x = x > low ? x : low;
  return x < high ? x : high;
}

// a / (1 + e^-x), of floats. e^-x = 2^t = 2^n 2^r: 2^n by its exponent bits. |t| is cut, so nothing overflows.
// rough: a reciprocal of 14 bits will do, where there is one.
template <bool coarse, bool rough, typename V>
ATLAS_INLINE V times_sigmoid_of(V a, V x) {
  V p;
  const V t = cut(x * -1.44269504f, 125.5f);
  const V shifted = t + 12582912.0f;  // 1.5 * 2^23: n stands in the low bits
  const V r = t - (shifted - 12582912.0f);
  if constexpr (coarse) p = power_of_two(r, kAroundCoarse); else p = power_of_two(r, kAround);
  return a / (1.0f + V(Words<V>(p) + (Words<V>(shifted) << 23)));
}

#if defined(ATLAS_KNOWS_AVX512)
// AVX-512 has both steps as instructions, which need no cut, and that reciprocal. They are written in assembler
// because the functions of immintrin.h can't be inlined into a template without a target.
template <bool coarse, bool rough>
ATLAS_INLINE Vector<float, 64> times_sigmoid_of(Vector<float, 64> a, Vector<float, 64> x) {
  const Vector<float, 64> t = x * -1.44269504f;
  Vector<float, 64> r, p, power, s;
  __asm__("vreduceps $1, %1, %0" : "=v"(r) : "v"(t));  // t - floor(t)
  if constexpr (coarse) p = power_of_two(r, kUpwardCoarse); else p = power_of_two(r, kUpward);
  __asm__("vscalefps %2, %1, %0" : "=v"(power) : "v"(p), "v"(t));  // p 2^floor(t)
  if constexpr (!rough) return a / (1.0f + power);
  __asm__("vrcp14ps %1, %0" : "=v"(s) : "v"(1.0f + power));
  return a * s;
}
#endif

// a times the sigmoid of x, good enough for a result that is rounded to S, or, if summed, for sums of such before
// they are rounded. NaN gives NaN, or some number.
template <typename S, bool summed, typename V>
ATLAS_INLINE V times_sigmoid(V a, V x) {
  if constexpr (std::is_same_v<NumberOf<V>, double>) {
    double power[kNumbers<V>];
    std::memcpy(power, &x, sizeof x);
    for (double& p : power) p = std::exp(-p);
    return a / (1 + words_at<V>(power, All()));
  } else {
    return times_sigmoid_of<sizeof(S) == 2, sizeof(S) == 2 && !summed>(a, x);
  }
}
template <typename S, bool summed, typename V>
ATLAS_INLINE Two<V> times_sigmoid(Two<V> a, Two<V> x) {
  return {times_sigmoid<S, summed>(a.low, x.low), times_sigmoid<S, summed>(a.high, x.high)};
}
template <typename S, bool summed, typename V>
ATLAS_INLINE V sigmoid(V x) { return times_sigmoid<S, summed>(V{} + 1, x); }
template <typename S, bool summed, typename V>
ATLAS_INLINE Two<V> sigmoid(Two<V> x) {
  return {sigmoid<S, summed>(x.low), sigmoid<S, summed>(x.high)};
}

}  // namespace
}  // namespace atlas_kernels
