// 16-bit floats as bits: rounded from float, to the nearest and half to even, and back. Branch-free,
// so that loops over them vectorise, and the same on every machine.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/multiversion.h"

namespace atlas_kernels {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

ATLAS_INLINE uint32_t float_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

ATLAS_INLINE float bits_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

ATLAS_INLINE BFloat16 to_bfloat16(float value) {
  const uint32_t bits = float_bits(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  return {static_cast<uint16_t>(nan ? 0x7fc0u : rounded)};
}

ATLAS_INLINE float to_float(BFloat16 value) {
  return bits_float(static_cast<uint32_t>(value.bits) << 16);
}

template <typename To, typename From>
ATLAS_INLINE To same_bits(From value) {
  To to;
  static_assert(sizeof to == sizeof value, "bits are lost");
  std::memcpy(&to, &value, sizeof to);
  return to;
}

// A half in the low bits of a word -> float and back; W and F are uint32_t and float, or vectors of them.
template <typename F, typename W>
ATLAS_INLINE F float_of_half(W bits) {
  const W sign = (bits & 0x8000u) << 16, magnitude = bits & 0x7fffu;
  // Scaling by 2^112 moves the bias; a small half becomes a small float first, which is exact.
  const W finite = same_bits<W>(same_bits<F>(magnitude << 13) * 0x1p112f);
  const W special = 0x7f800000u | (magnitude << 13);
  return same_bits<F>(sign | (magnitude >= 0x7c00u ? special : finite));
}

template <typename W, typename F>
ATLAS_INLINE W half_of_float(F value) {
  const W bits = same_bits<W>(value), sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
  // Normal: move the exponent's bias from 127 to 15 and round away 13 bits; the carry is right.
  const W normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // Below 2^-14 the adder rounds: 0.5 has its last bit at 2^-24, the spacing of small halves.
  const W small = same_bits<W>(same_bits<F>(magnitude) + 0.5f) - 0x3f000000u;
  W half = magnitude < 0x38800000u ? small : normal;
  half = magnitude >= 0x477ff000u ? W{} + 0x7c00u : half;  // rounds to more than 65504: infinity
  half = magnitude > 0x7f800000u ? W{} + 0x7e00u : half;   // NaN
  return sign | half;
}

ATLAS_INLINE Float16 to_float16(float value) { return {static_cast<uint16_t>(half_of_float<uint32_t>(value))}; }
ATLAS_INLINE float to_float(Float16 value) { return float_of_half<float>(uint32_t(value.bits)); }

ATLAS_INLINE float to_float(float value) { return value; }
ATLAS_INLINE double to_float(double value) { return value; }

// The bits of a number, and a number of them. On bits, a choice between a value and 0 is one "and",
// where compilers make a branch, which does not vectorise, of "condition ? value : 0".
template <typename T>
struct Bits {
  using type = uint32_t;
};
template <>
struct Bits<double> {
  using type = uint64_t;
};

template <typename T>
ATLAS_INLINE T masked(T value, typename Bits<T>::type mask) {
  typename Bits<T>::type bits;
  std::memcpy(&bits, &value, sizeof bits);
  bits &= mask;
  std::memcpy(&value, &bits, sizeof bits);
  return value;
}

// The value where `keep` is 1 and 0, whatever it is, where `keep` is 0.
template <typename T>
ATLAS_INLINE T kept(T value, int keep) {
  using B = typename Bits<T>::type;
  return masked(value, B(0) - static_cast<B>(keep));
}

// What arithmetic is done in for elements of type Out.
template <typename Out>
struct Arithmetic {
  using type = float;
};
template <>
struct Arithmetic<double> {
  using type = double;
};

ATLAS_INLINE void store(float value, float& out) { out = value; }
ATLAS_INLINE void store(double value, double& out) { out = value; }
ATLAS_INLINE void store(float value, BFloat16& out) { out = to_bfloat16(value); }
ATLAS_INLINE void store(float value, Float16& out) { out = to_float16(value); }
ATLAS_INLINE void store(float value, uint8_t& out) {  // of values from 0
  out = static_cast<uint8_t>(value < 255.0f ? value : 255.0f);
}

}  // namespace atlas_kernels
