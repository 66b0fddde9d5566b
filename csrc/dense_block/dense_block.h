// What dense_block needs beside group_norm_film and the vendor library's convolutions: the weight
// gradient of a dilated 3^3 convolution, and copies into and out of a wider buffer.
//
//   dw[o, c, t] = sum over samples n and voxels v of a[n, v + d (t - 1), c] g[n, v, o]
//
// t runs over the 27 taps (kx, ky, kz), C order; voxels outside the grid count as 0, so this is what
// the convolution with stride 1 and padding = dilation = d needs. dense_block's other convolutions
// are the vendor library's, through torch (docs/kernels/dense_block.md says what was tried), which is
// why the block as a whole is not here.
//
// Implementation: dense_block_cpu.cpp. Neither Python nor torch is needed to call it.
#pragma once

#include <cstdint>

#include "common/floats.h"

namespace atlas_kernels {

struct ConvWeightGradient {
  int64_t samples;
  int64_t shape[3];
  int64_t in_channels, out_channels;
  int64_t dilation;
  int64_t a_row, g_row;  // numbers from one voxel to the next; at least the number of channels
};

// a: (N, X, Y, Z, in), g: (N, X, Y, Z, out), both float, bfloat16 or float16. Adds to dw: (out, in, 27).
// The bits do not depend on `threads`.
template <typename T>
void conv_weight_gradient_cpu(const ConvWeightGradient& problem, const T* a, const T* g, float* dw,
                              int threads);

// Copies `channels` numbers of each voxel; rows lie from_row and to_row numbers apart. T and U are the
// same, or one of them is float and the other a shorter type.
template <typename T, typename U>
void copy_channels_cpu(int64_t voxels, int64_t channels, const T* from, int64_t from_row, U* to,
                       int64_t to_row, int threads);

}  // namespace atlas_kernels
