// Mean and squared deviations of each channel: tile by tile, the mean, then the squared deviations from
// it while the tile is in the first cache; tiles, chunks and channels are merged in a fixed order.
// Private to group_norm_film_cpu.cpp, the only file that includes it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "group_norm_film/group_norm_film.h"
#include "group_norm_film/rows_cpu.h"
#include "group_norm_film/walk_cpu.h"

namespace atlas_kernels {
namespace {

// Joins the statistics of `extra` more numbers to those of `seen` (Chan, Golub & LeVeque 1983).
ATLAS_INLINE void merge(double seen, double& mean, double& m2, double extra, double extra_mean,
                        double extra_m2) {
  const double all = seen + extra, delta = extra_mean - mean;
  mean += delta * (extra / all);
  m2 += extra_m2 + delta * delta * (seen * extra / all);
}

// The mean of an eighth of a chunk, deviations from 0, is taken first, then, in one pass, all numbers' deviations
// from it and their squares.
// An eighth's mean is at most sqrt(7) standard deviations of the chunk away from the chunk's, so that
// no more than 3 bits of the variance are lost, whatever the numbers are.
template <typename T>
void chunk_statistics(const Walk& walk, const Rows<const T>& x, const Chunk& chunk, double* mean,
                      double* m2) {
  using C = Compute<T>;
  constexpr bool pairs = kPaired<T, T>;
  const int64_t lanes = walk.lanes(), eighth = (chunk.count / 8 / walk.row_voxels + 1) * walk.row_voxels;
  Scratch<C> room, centre, sums(static_cast<size_t>((pairs ? 2 : 1) * lanes)), squares(sums.size());
  Scratch<double> off(walk.inner);
  std::fill_n(mean, walk.inner, 0.0);
  for (const int64_t voxels : {std::min(eighth, chunk.count), chunk.count}) {
    spread(walk, pairs, mean, centre);
    std::fill(off.begin(), off.end(), 0.0);
    std::fill_n(m2, walk.inner, 0.0);
    for_each_tile(walk, voxels, [&](int64_t voxel, int64_t count) {
      for_each_part_of(walk, x, voxel, count, room, [&](const auto* in, int64_t, int64_t rows, int64_t width) {
        deviations(in, walk.inner, rows, width, centre.data(), lanes, sums.data(), squares.data());
      });
      fold(walk, sums, off.data());
      fold(walk, squares, m2);
    });
    for (int64_t c = 0; c < walk.inner; ++c) {
      const double by = off[c] / static_cast<double>(voxels);
      mean[c] = static_cast<double>(centre[c]) + by;
      m2[c] = std::max(0.0, m2[c] - by * off[c]);
    }
  }
}

// Of all samples' channels, (N, C) each, `stride` apart from sample to sample.
template <typename T>
void statistics(const GroupNormFilm& problem, const T* x, int64_t stride, double* mean, double* m2,
                int threads) {
  const Walk walk(problem);
  std::vector<double> partial(static_cast<size_t>(walk.items() * 2 * walk.inner));
  for_each_chunk(walk, Pass::first, threads, [&](int64_t item, const Chunk& chunk) {
    const Rows<const T> in(walk, problem.x_row, x, chunk);
    chunk_statistics<T>(walk, in, chunk, partial.data() + 2 * item * walk.inner,
                        partial.data() + (2 * item + 1) * walk.inner);
  });
  for (int64_t n = 0; n < problem.samples; ++n) {
    std::fill_n(mean + n * stride, problem.channels, 0.0);
    std::fill_n(m2 + n * stride, problem.channels, 0.0);
  }
  for (int64_t item = 0; item < walk.items(); ++item) {
    const int64_t channel = item / walk.chunks * walk.inner;
    const int64_t to = channel / problem.channels * stride + channel % problem.channels;
    const int64_t seen = item % walk.chunks * walk.chunk_voxels;
    const auto extra = static_cast<double>(std::min(walk.chunk_voxels, walk.voxels - seen));
    const double* part = partial.data() + 2 * item * walk.inner;
    for (int64_t c = 0; c < walk.inner; ++c) {
      merge(static_cast<double>(seen), mean[to + c], m2[to + c], extra, part[c], part[walk.inner + c]);
    }
  }
}

}  // namespace
}  // namespace atlas_kernels
