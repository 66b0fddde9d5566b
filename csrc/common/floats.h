// Storage types and arithmetic types: rows of bfloat16 and float16 are read into float, computed on,
// and rounded once on their way back. Also the sigmoid, whose exponential no vectoriser finds in libm.
// All of it is branch-free, so that loops over it become vectors.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "common/half.h"
#include "common/multiversion.h"

namespace atlas_kernels {

using bfloat16 = BFloat16;
using float16 = Float16;

// What a storage type is computed in.
template <typename T>
using Compute = std::conditional_t<std::is_same_v<std::remove_const_t<T>, double>, double, float>;

ATLAS_INLINE float widen(float value) { return value; }
ATLAS_INLINE double widen(double value) { return value; }
ATLAS_INLINE float widen(bfloat16 value) { return to_float(value); }
ATLAS_INLINE float widen(float16 value) { return to_float(value); }

ATLAS_INLINE void narrow(float value, float& out) { out = value; }
ATLAS_INLINE void narrow(double value, double& out) { out = value; }

// Not to_bfloat16: to nearest with a tie away from 0 is half the work of a tie to even. NaN stays NaN
// but for one whose fraction is nearly all ones, which arithmetic on other NaNs never gives.
ATLAS_INLINE void narrow(float value, bfloat16& out) {
  out.bits = static_cast<uint16_t>((float_bits(value) + 0x8000u) >> 16);
}

// Two neighbours as halves of one 32-bit number: no shuffles, so a third of the work of one by one.
struct Two {
  float low, high;
};

ATLAS_INLINE Two operator+(Two a, Two b) { return {a.low + b.low, a.high + b.high}; }
ATLAS_INLINE Two operator-(Two a, Two b) { return {a.low - b.low, a.high - b.high}; }
ATLAS_INLINE Two operator*(Two a, Two b) { return {a.low * b.low, a.high * b.high}; }

ATLAS_INLINE Two widen_pair(const bfloat16* from) {
  uint32_t both;
  std::memcpy(&both, from, sizeof both);
  return {bits_float(both << 16), bits_float(both & 0xffff0000u)};
}

ATLAS_INLINE void narrow_pair(Two values, bfloat16* to) {
  const uint32_t low = (float_bits(values.low) + 0x8000u) >> 16;
  const uint32_t both = low | ((float_bits(values.high) + 0x8000u) & 0xffff0000u);
  std::memcpy(to, &both, sizeof both);
}

ATLAS_INLINE void narrow(float value, float16& out) { out = to_float16(value); }

// 1 / (1 + e^-x), with |x| cut at 87: no overflow. NaN gives some number. e^-x = 2^t = 2^n 2^r: 2^r by
// the polynomial of least relative error on [-1/2, 1/2] that is 1 at 0, 2^n by its exponent bits. Its
// relative error is 1e-7; of the coarse one 3e-6, far below the rounding of a number of two bytes.
template <bool coarse>
ATLAS_INLINE float sigmoid_of(float x) {
  // t is cut as an integer, since a choice between floats is a branch to some compilers: positive
  // floats order like signed integers, negative ones, by magnitude, like unsigned ones.
  int32_t up = static_cast<int32_t>(float_bits(x * -1.44269504f));
  up = up < 0x42fb0000 ? up : 0x42fb0000;  // 125.5
  uint32_t cut = static_cast<uint32_t>(up);
  cut = cut < 0xc2fb0000u ? cut : 0xc2fb0000u;
  const float t = bits_float(cut);
  const float shifted = t + 12582912.0f;  // 1.5 * 2^23: n stands in the low bits
  const float r = t - (shifted - 12582912.0f);
  float p;
  if constexpr (coarse) {
    p = (9.58285388e-3f * r + 5.59064262e-2f) * r + 2.40240991e-1f;
    p = (p * r + 6.93124175e-1f) * r + 1.0f;
  } else {
    p = (1.32647203e-3f * r + 9.67151299e-3f) * r + 5.55073395e-2f;
    p = ((p * r + 2.40222424e-1f) * r + 6.93147004e-1f) * r + 1.0f;
  }
  return 1.0f / (1.0f + bits_float(float_bits(p) + (float_bits(shifted) << 23)));
}

// The same, good enough for a result that is rounded to S.
template <typename S>
ATLAS_INLINE float sigmoid(float x) {
  return sigmoid_of<sizeof(S) == 2>(x);
}
template <typename S>
ATLAS_INLINE Two sigmoid(Two x) {
  return {sigmoid<S>(x.low), sigmoid<S>(x.high)};
}
template <typename S>
ATLAS_INLINE double sigmoid(double x) {
  return 1 / (1 + std::exp(-x));
}

// A few numbers side by side, in registers whatever their width: for sums that a loop over plain
// arrays would keep in memory.
template <typename C>
struct LanesOf;
template <>
struct LanesOf<float> {
  typedef float type __attribute__((vector_size(32)));
};
template <>
struct LanesOf<double> {
  typedef double type __attribute__((vector_size(32)));
};
template <typename C>
using Lanes = typename LanesOf<C>::type;
template <typename C>
constexpr int64_t kLanesOf = 32 / sizeof(C);

template <typename T>
ATLAS_INLINE Lanes<Compute<T>> load(const T* from) {
  using C = Compute<T>;
  Lanes<C> to;
  if constexpr (std::is_same_v<T, C>) {
    std::memcpy(&to, from, sizeof to);
  } else {
    C wide[kLanesOf<C>];
    for (int64_t i = 0; i < kLanesOf<C>; ++i) wide[i] = widen(from[i]);
    std::memcpy(&to, wide, sizeof wide);
  }
  return to;
}

}  // namespace atlas_kernels
