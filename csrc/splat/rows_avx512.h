// Rows of one focus in one plane by AVX-512, where what belongs to z stays in registers from row to row. The
// same operations on each voxel as the loops that they stand for (splat_cpu.cpp, splat_backward_cpu.cpp),
// hence the same bits. Chosen when the program runs; ATLAS_NO_AVX512 leaves them out.
#pragma once

#include <cstdint>

#include "splat/splat.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(ATLAS_NO_AVX512)
#include <immintrin.h>
#define ATLAS_AVX512 __attribute__((target("avx512f,avx512vl,avx512bw,avx512dq")))
#endif

namespace atlas_kernels {

// Of `rows` rows the `n` voxels each, the first at `start` in the plane. In row j a voxel is covered where
// z2 <= left - y2[j], and the kernel's value there is scale * gauss_y[j] * gauss_z, all of it in floats.
// Behind n, up to 8 more voxels may be read and written, of which z2 is infinite: none of them changes.
struct QuickRows {
  int64_t rows, start, row_length;
  int n;
  float left, scale;
  const float *y2, *gauss_y, *z2, *gauss_z;
};

#if defined(ATLAS_AVX512)

inline bool has_avx512() {
  static const bool has = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                          __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
  return has;
}

#else

inline bool has_avx512() { return false; }

#endif

}  // namespace atlas_kernels
