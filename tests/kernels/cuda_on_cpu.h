// Just enough of CUDA to run csrc/*/*_cuda.cu on a CPU, slowly: a block's threads are threads,
// blocks run one after another. Tests turn f<<<blocks, threads, 0, queue>>>(...) into run_on_cpu().
#pragma once

#include <algorithm>
#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "common/floats.h"

#define __global__
#define __device__
#define __launch_bounds__(...)
#define __shared__ static

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline void __stcs(uint4* to, uint4 value) { *to = value; }

struct Index {
  unsigned x = 0;
};
inline thread_local Index threadIdx, blockIdx;
inline Index blockDim;

using cudaStream_t = void*;
using cudaError_t = int;
constexpr int cudaSuccess = 0;
inline int cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(int) { return ""; }

inline std::unique_ptr<std::barrier<>> of_block;
inline std::vector<std::unique_ptr<std::barrier<>>> of_warp;
inline double lanes[1024];  // they hold ints exactly

inline void __syncthreads() { of_block->arrive_and_wait(); }

// Calls read(what all lanes of the warp hold, the own lane).
template <typename Read>
auto across_warp(double value, const Read& read) {
  auto& warp = *of_warp[threadIdx.x / 32];
  lanes[threadIdx.x] = value;
  warp.arrive_and_wait();
  const auto found = read(lanes + threadIdx.x / 32 * 32, int(threadIdx.x % 32));
  warp.arrive_and_wait();
  return found;
}

inline double __shfl_down_sync(unsigned, double value, int by) {
  return across_warp(value, [&](const double* all, int lane) { return all[std::min(31, lane + by)]; });
}
inline int __shfl_up_sync(unsigned, int value, int by) {
  return across_warp(value, [&](const double* all, int lane) { return int(all[std::max(0, lane - by)]); });
}
inline int __shfl_sync(unsigned, int value, int from) {
  return across_warp(value, [&](const double* all, int) { return int(all[from]); });
}
inline unsigned __ballot_sync(unsigned, bool vote) {
  return across_warp(vote, [](const double* all, int) {
    unsigned votes = 0;
    for (int i = 0; i < 32; ++i) votes |= unsigned(all[i] != 0) << i;
    return votes;
  });
}
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(unsigned bits) { return __builtin_ffs(int(bits)); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline double __dmul_rn(double a, double b) { return a * b; }

inline void run_on_cpu(unsigned blocks, int threads, const std::function<void()>& kernel) {
  blockDim.x = threads;
  for (unsigned block = 0; block < blocks; ++block) {
    of_block = std::make_unique<std::barrier<>>(threads);
    of_warp.clear();
    for (int i = 0; i < threads; i += 32) of_warp.push_back(std::make_unique<std::barrier<>>(32));
    std::vector<std::thread> pool;
    for (int i = 0; i < threads; ++i) {
      pool.emplace_back([&, i] {
        blockIdx.x = block, threadIdx.x = i;
        kernel();
        of_block->arrive_and_drop();
      });
    }
    for (auto& thread : pool) thread.join();
  }
}

using std::isfinite;
using std::max;
using std::min;
inline float __uint_as_float(uint32_t bits) { return atlas_kernels::bits_float(bits); }
inline uint16_t __ushort_as_half(uint16_t bits) { return bits; }
inline uint16_t __half_as_ushort(uint16_t bits) { return bits; }
inline uint16_t __bfloat16_as_ushort(uint16_t bits) { return bits; }
inline float __half2float(uint16_t bits) { return atlas_kernels::widen(atlas_kernels::float16{bits}); }
inline uint16_t __float2half_rn(float value) {
  atlas_kernels::float16 half;
  atlas_kernels::narrow(value, half);
  return half.bits;
}
inline uint16_t __float2bfloat16_rn(float value) {
  atlas_kernels::bfloat16 half;
  atlas_kernels::narrow(value, half);
  return half.bits;
}
