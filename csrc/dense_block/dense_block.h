// What dense_block needs beside group_norm_film and the vendor library's convolutions: a 3^3 convolution
// and its weight gradient, and copies into and out of a wider buffer.
//
//   y[n, v, o] = sum over channels c and taps t of w[o, c, t] a[n, v + d (t - 1), c]
//   dw[o, c, t] = sum over samples n and voxels v of a[n, v + d (t - 1), c] g[n, v, o]
//
// t runs over the 27 taps (kx, ky, kz), C order; voxels outside the grid count as 0: stride 1, padding =
// dilation = d. The convolution is here where it takes fewer multiplications than the definition
// (winograd.h); dense_block's others are the vendor library's, through torch
// (docs/kernels/dense_block.md says what was tried), which is why the block as a whole is not here.
//
// Implementation: dense_block_cpu.cpp, winograd_cpu.cpp. Neither Python nor torch is needed to call it.
#pragma once

#include <cstdint>

#include "common/floats.h"

namespace atlas_kernels {

struct Convolution {
  int64_t samples;
  int64_t shape[3];
  int64_t in_channels, out_channels;
  int64_t dilation;
  int64_t in_row, out_row;  // numbers from one voxel to the next; at least the number of channels
};

struct ConvWeights {
  const float* data;
  int64_t out_stride, in_stride, tap_stride;  // in numbers
};

// Whether convolution_cpu is likely to be faster than oneDNN's, which it is not where most of the taps lie
// outside the grid.
bool convolution_pays(const Convolution& problem);

// a: (N, X, Y, Z, in), y: (N, X, Y, Z, out). The bits do not depend on `threads`.
void convolution_cpu(const Convolution& problem, const float* a, const ConvWeights& w, float* y,
                     int threads);

// a and g: (N, X, Y, Z, in) and (..., out), both float, bfloat16 or float16. Writes dw: (out, in, 27).
// The bits do not depend on `threads`.
template <typename T>
void conv_weight_gradient_cpu(const Convolution& problem, const T* a, const T* g, float* dw,
                              int threads);

// Copies `channels` numbers of each voxel; rows lie from_row and to_row numbers apart. T and U are the
// same, or one of them is float and the other a shorter type.
template <typename T, typename U>
void copy_channels_cpu(int64_t voxels, int64_t channels, const T* from, int64_t from_row, U* to,
                       int64_t to_row, int threads);

}  // namespace atlas_kernels
