// Just enough of CUDA to run group_norm_film_cuda.cu on a CPU, slowly: a block's threads are threads,
// blocks run one after another. Tests turn f<<<blocks, threads, 0, queue>>>(...) into run_on_cpu().
#pragma once

#include <algorithm>
#include <barrier>
#include <cmath>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "common/floats.h"

#define __global__
#define __device__
#define __launch_bounds__(threads)
#define __shared__ static

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
inline double lanes[1024];

inline void __syncthreads() { of_block->arrive_and_wait(); }

inline double __shfl_down_sync(unsigned, double value, int by) {
  auto& warp = *of_warp[threadIdx.x / 32];
  lanes[threadIdx.x] = value;
  warp.arrive_and_wait();
  const double from = lanes[std::min(threadIdx.x | 31u, threadIdx.x + by)];
  warp.arrive_and_wait();
  return from;
}

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
