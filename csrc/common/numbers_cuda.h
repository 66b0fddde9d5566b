// Storage types on a GPU: read to, and written from, what arithmetic is done in.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "common/floats.h"

namespace atlas_kernels {

__device__ inline float read(float value) { return value; }
__device__ inline double read(double value) { return value; }
__device__ inline float read(bfloat16 value) { return __uint_as_float(uint32_t(value.bits) << 16); }
__device__ inline float read(float16 value) { return __half2float(__ushort_as_half(value.bits)); }
__device__ inline void write(float value, float& out) { out = value; }
__device__ inline void write(double value, double& out) { out = value; }
__device__ inline void write(float value, bfloat16& out) {
  out.bits = __bfloat16_as_ushort(__float2bfloat16_rn(value));
}
__device__ inline void write(float value, float16& out) {
  out.bits = __half_as_ushort(__float2half_rn(value));
}
__device__ inline void write(float value, uint8_t& out) {  // of values from 0
  out = static_cast<uint8_t>(value < 255.0f ? value : 255.0f);
}

}  // namespace atlas_kernels
