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

constexpr int64_t kTileRows = 16;  // rows of a tile

// Joins the statistics of `extra` more numbers to those of `seen` (Chan, Golub & LeVeque 1983).
ATLAS_INLINE void merge(double seen, double& mean, double& m2, double extra, double extra_mean,
                        double extra_m2) {
  const double all = seen + extra, delta = extra_mean - mean;
  mean += delta * (extra / all);
  m2 += extra_m2 + delta * delta * (seen * extra / all);
}

template <typename C>
struct Tile {
  explicit Tile(const Walk& walk)
      : centre(walk.inner), sum(walk.inner), squares(walk.inner) {}
  Scratch<C> rows, centres, sums, moments;  // columns
  Scratch<double> centre, sum, squares;     // channels
};

// Calls body(first number, rows, lanes) for the whole rows of a tile, then for what is left over.
template <typename Body>
void for_each_part(const Walk& walk, int64_t numbers, const Body& body) {
  const int64_t rows = numbers / walk.lanes(), rest = numbers % walk.lanes();
  if (rows) body(int64_t(0), rows, walk.lanes());
  if (rest) body(rows * walk.lanes(), int64_t(1), rest);
}

// Mean and squared deviations of the channels of `count` voxels that lie side by side.
template <typename A, typename C>
void tile_statistics(const Walk& walk, const A* x, int64_t count, Tile<C>& tile) {
  const int64_t lanes = walk.lanes(), numbers = count * walk.inner;
  tile.sums.assign(lanes, C(0));
  for_each_part(walk, numbers, [&](int64_t first, int64_t rows, int64_t width) {
    sum_columns(x + first, rows, width, tile.sums.data());
  });
  fold(walk, tile.sums, tile.centre.data());
  // What the first sum rounded off is found and put right by the second pass.
  for (double& mean : tile.centre) mean = static_cast<C>(mean / static_cast<double>(count));
  spread(walk, tile.centre.data(), tile.centres);
  tile.sums.assign(lanes, C(0));
  tile.moments.assign(lanes, C(0));
  for_each_part(walk, numbers, [&](int64_t first, int64_t rows, int64_t width) {
    deviate_columns(x + first, rows, width, tile.centres.data(), tile.sums.data(),
                    tile.moments.data());
  });
  fold(walk, tile.sums, tile.sum.data());
  fold(walk, tile.moments, tile.squares.data());
  for (int64_t c = 0; c < walk.inner; ++c) {
    const double off = tile.sum[c] / static_cast<double>(count);
    tile.centre[c] += off;
    tile.squares[c] = std::max(0.0, tile.squares[c] - off * tile.sum[c]);
  }
}

template <typename T>
void chunk_statistics(const Walk& walk, const Rows<const T>& x, const Chunk& chunk, double* mean,
                      double* m2) {
  const int64_t tile_voxels = walk.row_voxels * kTileRows;
  Tile<Compute<T>> tile(walk);
  std::fill_n(mean, walk.inner, 0.0);
  std::fill_n(m2, walk.inner, 0.0);
  for (int64_t voxel = 0; voxel < chunk.count; voxel += tile_voxels) {
    const int64_t count = std::min(tile_voxels, chunk.count - voxel);
    x.dense() ? tile_statistics(walk, x.at(voxel), count, tile)
              : tile_statistics(walk, x.gathered(voxel, count, tile.rows), count, tile);
    for (int64_t c = 0; c < walk.inner; ++c) {
      merge(static_cast<double>(voxel), mean[c], m2[c], static_cast<double>(count), tile.centre[c],
            tile.squares[c]);
    }
  }
}

// Of all samples' channels, (N, C) each.
template <typename T>
void statistics(const GroupNormFilm& problem, const T* x, double* mean, double* m2, int threads) {
  const Walk walk(problem);
  std::vector<double> partial(static_cast<size_t>(walk.items() * 2 * walk.inner));
  for_each_chunk(walk, threads, [&](int64_t item, const Chunk& chunk) {
    const Rows<const T> in(walk, problem.x_row, x, chunk);
    chunk_statistics<T>(walk, in, chunk, partial.data() + 2 * item * walk.inner,
                        partial.data() + (2 * item + 1) * walk.inner);
  });
  std::fill_n(mean, problem.samples * problem.channels, 0.0);
  std::fill_n(m2, problem.samples * problem.channels, 0.0);
  for (int64_t item = 0; item < walk.items(); ++item) {
    const int64_t channel = item / walk.chunks * walk.inner;
    const int64_t seen = item % walk.chunks * walk.chunk_voxels;
    const auto extra = static_cast<double>(std::min(walk.chunk_voxels, walk.voxels - seen));
    const double* part = partial.data() + 2 * item * walk.inner;
    for (int64_t c = 0; c < walk.inner; ++c) {
      merge(static_cast<double>(seen), mean[channel + c], m2[channel + c], extra, part[c],
            part[walk.inner + c]);
    }
  }
}

}  // namespace
}  // namespace atlas_kernels
