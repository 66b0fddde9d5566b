// A 3^3 convolution and its weight gradient in floats, with fewer multiplications than it has terms.
//
// Winograd's minimal filtering F(2, 3) (Lavin and Gray, "Fast Algorithms for Convolutional Neural
// Networks", CVPR 2016), in three dimensions: 2^3 outputs are made of 4^3 inputs by 64 products of
// transformed inputs and weights, where the definition has 8 * 27 = 216. A dilation only moves where a
// tile's voxels lie. Beside the products stand the transforms, which read and write more than they
// compute; convolution_pays weighs all of it against the terms that lie in the grid.
//
// The convolution itself is convolution_cpu of dense_block.h. Implementation: winograd_cpu.cpp over
// winograd_tile.h.
#pragma once

#include "common/checks.h"
#include "dense_block/dense_block.h"

namespace atlas_kernels {

inline void check(const Convolution& problem, int threads) {
  require(problem.in_row >= problem.in_channels && problem.out_row >= problem.out_channels,
          "convolution: a row is shorter than its channels");
  require(problem.shape[0] >= 1 && problem.shape[1] >= 1 && problem.shape[2] >= 1,
          "convolution: a grid needs at least one voxel");
  require(problem.dilation >= 1, "convolution: dilation must be at least 1");
  require(threads >= 1, "convolution: threads must be at least 1");
}

// Whether it makes fewer multiplications than a weight gradient that leaves out what lies outside the grid.
bool winograd_pays(const Convolution& problem);

// As conv_weight_gradient_cpu.
void winograd_weight_gradient(const Convolution& problem, const float* a, const float* g, float* dw,
                              int threads);

}  // namespace atlas_kernels
