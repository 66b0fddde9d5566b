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

ATLAS_INLINE void narrow(float value, float16& out) { out = to_float16(value); }

template <typename C, int64_t bytes>
struct VectorOf {
  typedef C type __attribute__((vector_size(bytes)));
};
template <typename C, int64_t bytes>
using Vector = typename VectorOf<C, bytes>::type;

}  // namespace atlas_kernels
