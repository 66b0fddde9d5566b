// ma_maps: foci on a voxel grid -> modeled activation (MA) maps of coordinate-based meta-analysis.
//
// A support is a kernel on whole voxels, a box of rows (dx, dy) along z: which of a row's at most 64
// voxels it holds, as bits, and their values. A study's MA map is, at each voxel of the mask, over the
// study's foci whose support holds that voxel:
//   cover  1                        MKDA
//   count  the sum of the values    KDA, whose values are 1
//   max    the greatest value       ALE
// Maps come as the rows of a CSR matrix (studies x voxels of the mask); a count pass gives the sizes
// of the rows, a fill pass their contents. Statistics over all studies come without the maps:
//   coverage   sum over studies of weight * (cover, or number of foci)
//   ale        1 - prod over studies of (1 - MA)
// Foci are whole voxels and may lie anywhere, also outside the grid. docs/kernels/nimare.md
#pragma once

#include <cstdint>

namespace atlas_kernels {

// A grid and the voxels of it that matter, as bit rows: `words` 64-bit words for each line (x, y).
struct MaskRows {
  int64_t shape[3];
  const uint64_t* bits;  // (X, Y, words)
  const int64_t* first;  // (X, Y, words): voxels of the mask that lie before the word, C order
  int64_t words() const { return (shape[2] + 63) / 64; }
};

// Writes MaskRows::first from its bits, n_words of each; returns the number of voxels.
int64_t count_mask(const uint64_t* bits, int64_t n_words, int64_t* first);

// Where a support lies around its focus; the layout is that of a (K, 7) int64 array.
struct SupportBox {
  int64_t x_first, x_length, y_first, y_length, z_first, z_length;
  int64_t rows_before;  // rows of the supports before this one
};

struct Supports {
  const SupportBox* boxes;   // (K,)
  const uint64_t* patterns;  // (R,): bit i is the voxel z_first + i; rows of a box in C order
  const void* values;        // (R, stride) float32 or float64, 0 where there is no bit; or null
  int64_t stride;            // a multiple of 8, at least every z_length
};

struct FociProblem {
  MaskRows mask;
  Supports supports;
  const int32_t* ijk;      // (P, 3) voxel indices
  const int64_t* offsets;  // (B + 1): study b owns foci [offsets[b], offsets[b + 1]); ends with P
  const int64_t* kinds;    // (B,) which support each study has
  int64_t n_studies;
};

enum class MaKind { cover, count, max };

// sizes: (B,) number of voxels of the mask that each study reaches.
void ma_sizes(const FociProblem& problem, int64_t* sizes, int threads);

// starts: (B + 1,) where each row begins. Writes indices (sorted) and data, one for each voxel that
// the study reaches: value (cover), or value times the sum (count) or the greatest (max) of the
// float32 values; max takes no value.
void ma_fill(const FociProblem& problem, MaKind kind, float value, const int64_t* starts,
             int32_t* indices, float* data, int threads);

// out: (V,) over the voxels of the mask. weights: (B,). Sums run in float64, in the order of studies.
void coverage_statistic(const FociProblem& problem, const double* weights, bool count, float* out);

// The float64 values are -log1p(-MA). out: (V,). Sums run in float64, in the order of studies.
void ale_statistic(const FociProblem& problem, float* out);

struct ClusterMaxima {
  int64_t size;  // voxels
  double mass;   // sum of statistic - threshold
};

// Greatest size and greatest mass over the clusters (6 neighbours) of voxels above the threshold,
// which is not negative. statistic: (V,) over the voxels of the mask.
ClusterMaxima cluster_maxima(const MaskRows& mask, const float* statistic, double threshold);

}  // namespace atlas_kernels
