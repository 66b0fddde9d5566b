// How group_norm_film goes over a tensor: stretches, chunks for threads, rows for the inner loops.
// Private to group_norm_film_cpu.cpp, the only file that includes it.
//
// One walk serves both layouts: memory is `outer` stretches of `voxels` voxels of `inner` channels:
// channels_last (N, V, C), channels_first (N C, V, 1). Voxels are taken together into rows of at least
// kLanes numbers, and whatever belongs to a channel (mean, scale, ...) is laid out beside as columns
// of one row, so that every inner loop runs over two or more plain arrays of the same length.
//
// Chunks do not depend on the number of threads, hence neither do the bits.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "common/parallel.h"
#include "group_norm_film/group_norm_film.h"
#include "group_norm_film/rows_cpu.h"

namespace atlas_kernels {
namespace {

constexpr int64_t kLanes = 64;                // numbers in a row, at least
constexpr int64_t kTileRows = 64;             // rows that are passed over at once
constexpr int64_t kChunk = int64_t(1) << 15;  // numbers that one thread takes at a time, about
constexpr int64_t kChunkRows = 16;            // and at least so many rows, or the columns would be most of the work

// The smallest power of two of voxels that makes a row.
int64_t row_of(int64_t inner) {
  int64_t voxels = 1;
  while (voxels * inner < kLanes || voxels * inner % kAligned != 0) voxels *= 2;
  return voxels;
}

struct Walk {
  explicit Walk(const GroupNormFilm& problem)
      : outer(problem.channels_last ? problem.samples : problem.samples * problem.channels),
        voxels(problem.voxels),
        inner(problem.channels_last ? problem.channels : 1),
        row_voxels(row_of(inner)),
        chunk_voxels(std::max(kChunkRows, kChunk / lanes()) * row_voxels),
        chunks((voxels + chunk_voxels - 1) / chunk_voxels) {}

  int64_t lanes() const { return row_voxels * inner; }
  int64_t items() const { return outer * chunks; }

  int64_t outer, voxels, inner;
  int64_t row_voxels;    // voxels in a row of lanes
  int64_t chunk_voxels;  // voxels in a chunk, a whole number of rows
  int64_t chunks;        // in a stretch
};

// One chunk: `count` voxels of one stretch from voxel `first` on, whose channels begin at `channel` of
// all samples' channels (n * channels + c).
struct Chunk {
  int64_t stretch, first, count, channel;
};

// What a first pass over the data left in the second caches is where a second one begins.
enum class Pass { first, second };

template <typename Body>
void for_each_chunk(const Walk& walk, Pass pass, int threads, const Body& body) {
  parallel_shares(walk.items(), threads, pass == Pass::second, [&](int64_t item) {
    const int64_t stretch = item / walk.chunks, first = item % walk.chunks * walk.chunk_voxels;
    const int64_t count = std::min(walk.chunk_voxels, walk.voxels - first);
    body(item, Chunk{stretch, first, count, stretch * walk.inner});
  });
}

// Rows of x or dx. They may lie in a wider buffer, or be added to: then they pass through `room`.
template <typename T>
struct Rows {
  using C = Compute<T>;
  Rows(const Walk& walk, int64_t row, T* data, const Chunk& chunk)
      : row(row), inner(walk.inner), data(data + (chunk.stretch * walk.voxels + chunk.first) * row) {}

  bool dense() const { return row == inner; }
  T* at(int64_t voxel) const { return data + voxel * row; }
  C* gathered(int64_t voxel, int64_t count, Scratch<C>& room) const {
    room.resize(std::max(room.size(), static_cast<size_t>(count * inner)));
    gather(at(voxel), row, inner, count, room.data());
    return room.data();
  }

  int64_t row, inner;
  T* data;
};

// Calls body(first voxel, voxels) for each tile of a chunk's first `voxels` voxels: few enough to be summed
// up in float.
template <typename Body>
void for_each_tile(const Walk& walk, int64_t voxels, const Body& body) {
  const int64_t most = kTileRows * walk.row_voxels;
  for (int64_t voxel = 0; voxel < voxels; voxel += most) body(voxel, std::min(most, voxels - voxel));
}

// Calls body(first number, rows, lanes) for the whole rows of a tile, then for what is left over.
template <typename Body>
void for_each_part(const Walk& walk, int64_t count, const Body& body) {
  const int64_t rows = count / walk.row_voxels, past = rows * walk.lanes();
  const int64_t rest = count * walk.inner - past;
  if (rows) body(int64_t(0), rows, walk.lanes());
  if (rest) body(past, int64_t(1), rest);
}

// The same with the numbers of x in front.
template <typename T, typename Body>
void for_each_part_of(const Walk& walk, const Rows<T>& x, int64_t voxel, int64_t count,
                      Scratch<Compute<T>>& room, const Body& body) {
  const auto tile = [&](const auto* numbers) {
    for_each_part(walk, count, [&](int64_t first, int64_t rows, int64_t lanes) {
      body(numbers + first, first, rows, lanes);
    });
  };
  x.dense() ? tile(x.at(voxel)) : tile(x.gathered(voxel, count, room));
}

// What is computed in, of a double; see narrow() for NaN.
template <typename C>
C rounded(double value) {
  return std::isnan(value) ? std::numeric_limits<C>::quiet_NaN() : static_cast<C>(value);
}

// A number a channel -> the columns of a row, and their pairs, see Columns; and sums of the columns, which are 0
// after that, added to those of the channels. Both go by halves (row_voxels is a power of two), so that they are
// long loops even for one channel.
template <typename C>
void spread(const Walk& walk, bool pairs, const double* channels, Scratch<C>& columns) {
  const int64_t lanes = walk.lanes(), half = lanes / 2;
  columns.resize(static_cast<size_t>(pairs ? 2 * lanes : lanes));
  for (int64_t c = 0; c < walk.inner; ++c) columns[c] = rounded<C>(channels[c]);
  for (int64_t n = walk.inner; n < lanes; n *= 2) std::copy_n(columns.data(), n, columns.data() + n);
  for (int64_t i = 0; pairs && i < half; ++i) {
    columns[lanes + i] = columns[2 * i];
    columns[lanes + half + i] = columns[2 * i + 1];
  }
}

template <typename C>
void fold(const Walk& walk, Scratch<C>& columns, double* channels) {
  const int64_t lanes = walk.lanes(), half = lanes / 2;
  if (static_cast<int64_t>(columns.size()) > lanes) {  // pairs too
    for (int64_t i = 0; i < half; ++i) {
      columns[2 * i] += columns[lanes + i];
      columns[2 * i + 1] += columns[lanes + half + i];
    }
  }
  for (int64_t n = half; n >= walk.inner; n /= 2) {
    for (int64_t i = 0; i < n; ++i) columns[i] += columns[n + i];
  }
  for (int64_t c = 0; c < walk.inner; ++c) channels[c] += static_cast<double>(columns[c]);
  std::fill(columns.begin(), columns.end(), C(0));
}

}  // namespace
}  // namespace atlas_kernels
