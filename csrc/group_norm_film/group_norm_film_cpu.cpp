// group_norm_film on the CPU: forward and backward.
//
// One walk serves both layouts: memory is `outer` stretches of `voxels` voxels of `inner` channels:
// channels_last (N, V, C), channels_first (N C, V, 1). Voxels are taken together into rows of about
// kLanes numbers, and whatever belongs to a channel (mean, scale, ...) is laid out beside as columns
// of one row, so that every inner loop runs over two or more plain arrays of the same length.
//
//   statistics   tile by tile: mean, then squared deviations from it while the tile is in the first
//                cache; tiles, chunks and channels are merged in a fixed order
//   apply        one read, one write
//   backward     dz = dL/dz with its sums, stored; then dx from x and dz
//
// Samples are handled a few at a time, so that the second pass over them finds them in the last
// cache. Chunks do not depend on the number of threads, hence neither do the bits.

#include "group_norm_film/group_norm_film.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "common/checks.h"
#include "common/multiversion.h"
#include "common/parallel.h"

namespace atlas_kernels {
namespace {

constexpr int64_t kLanes = 256;               // numbers in a row, about
constexpr int64_t kTileRows = 16;             // rows of a tile of the statistics
constexpr int64_t kChunk = int64_t(1) << 15;  // numbers that one thread takes at a time, about
constexpr int64_t kRound = int64_t(1) << 22;  // bytes of x that are passed over twice in turn

// ---- rows of numbers --------------------------------------------------------------------------

// Columns of one row: what each of its numbers needs to know of its channel.
template <typename C>
struct Columns {
  std::vector<C> mean, scale, shift, slope, offset;
};

template <bool silu, typename C>
ATLAS_INLINE C activate(C z) {
  if constexpr (!silu) return z;
  return z * sigmoid(z);
}

// dL/dz from dL/dy, y = act(z).
template <bool silu, typename C>
ATLAS_INLINE C pull_back(C dy, C z) {
  if constexpr (!silu) return dy;
  const C s = sigmoid(z);
  return dy * (s + s * (z - z * s));
}

template <bool silu, typename A, typename B>
ATLAS_INLINE void film_row(const A* x, const Columns<Compute<A>>& columns, B* y, int64_t n) {
  const auto *mean = columns.mean.data(), *scale = columns.scale.data();
  const auto* shift = columns.shift.data();
  ATLAS_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) {
    narrow(activate<silu>((widen(x[i]) - mean[i]) * scale[i] + shift[i]), y[i]);
  }
}

template <bool silu, typename A, typename B>
ATLAS_INLINE void sums_row(const A* x, const B* dy, const Columns<Compute<A>>& columns, B* dz,
                           Compute<A>* one, Compute<A>* two, int64_t n) {
  const auto *mean = columns.mean.data(), *scale = columns.scale.data();
  const auto* shift = columns.shift.data();
  ATLAS_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) {
    const auto d = widen(x[i]) - mean[i];
    const auto pulled = pull_back<silu>(widen(dy[i]), d * scale[i] + shift[i]);
    narrow(pulled, dz[i]);
    one[i] += pulled;
    two[i] += pulled * d;
  }
}

template <typename A, typename B>
ATLAS_INLINE void gradient_row(const A* x, const B* dz, const Columns<Compute<A>>& columns, A* dx,
                               int64_t n) {
  const auto *mean = columns.mean.data(), *scale = columns.scale.data();
  const auto *slope = columns.slope.data(), *offset = columns.offset.data();
  ATLAS_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) {
    narrow((scale[i] * widen(dz[i]) - offset[i]) - (widen(x[i]) - mean[i]) * slope[i], dx[i]);
  }
}

// Sums of the columns of a tile, `rows` rows of `lanes` numbers: row by row, as memory lies.
template <typename A>
ATLAS_INLINE void sum_columns_tile(const A* x, int64_t rows, int64_t lanes, Compute<A>* sum) {
  for (int64_t row = 0; row < rows; ++row, x += lanes) {
    ATLAS_INDEPENDENT
    for (int64_t i = 0; i < lanes; ++i) sum[i] += widen(x[i]);
  }
}

// Given the columns' means, sums of the deviations and of their squares. The tile is in the cache now:
// a few columns at a time, so that the sums stay in registers.
template <typename A>
ATLAS_INLINE void deviate_columns_tile(const A* x, int64_t rows, int64_t lanes,
                                       const Compute<A>* mean, Compute<A>* sum,
                                       Compute<A>* squares) {
  using V = Lanes<Compute<A>>;
  constexpr int64_t step = kLanesOf<Compute<A>>;
  int64_t first = 0;
  for (; first + step <= lanes; first += step) {
    V s = load(sum + first), q = load(squares + first);
    const V m = load(mean + first);
    for (int64_t row = 0; row < rows; ++row) {
      const V d = load(x + row * lanes + first) - m;
      s += d;
      q += d * d;
    }
    std::memcpy(sum + first, &s, sizeof s);
    std::memcpy(squares + first, &q, sizeof q);
  }
  for (; first < lanes; ++first) {
    for (int64_t row = 0; row < rows; ++row) {
      const Compute<A> d = widen(x[row * lanes + first]) - mean[first];
      sum[first] += d;
      squares[first] += d * d;
    }
  }
}

// `count` voxels of `inner` numbers, `row` apart, side by side; and back, over or onto what is there.
template <typename T>
ATLAS_INLINE void gather_row(const T* from, int64_t row, int64_t inner, int64_t count, Compute<T>* to) {
  if (row == inner) inner *= count, count = 1;
  for (int64_t voxel = 0; voxel < count; ++voxel, from += row, to += inner) {
    ATLAS_INDEPENDENT
    for (int64_t i = 0; i < inner; ++i) to[i] = widen(from[i]);
  }
}

template <bool add, typename T>
ATLAS_INLINE void scatter_row(const Compute<T>* from, int64_t row, int64_t inner, int64_t count, T* to) {
  if (row == inner) inner *= count, count = 1;
  for (int64_t voxel = 0; voxel < count; ++voxel, from += inner, to += row) {
    ATLAS_INDEPENDENT
    for (int64_t i = 0; i < inner; ++i) narrow(add ? widen(to[i]) + from[i] : from[i], to[i]);
  }
}

// The same as plain functions, compiled once for each level of the instruction set. x and dx are rows
// of A, y, dy and dz rows of B.
#define ATLAS_ROWS(A, B)                                                                           \
  ATLAS_MULTIVERSION void film(bool silu, const A* x, const Columns<Compute<A>>& columns, B* y,    \
                               int64_t n) {                                                        \
    silu ? film_row<true>(x, columns, y, n) : film_row<false>(x, columns, y, n);                   \
  }                                                                                                \
  ATLAS_MULTIVERSION void sums(bool silu, const A* x, const B* dy,                                 \
                               const Columns<Compute<A>>& columns, B* dz, Compute<A>* one,         \
                               Compute<A>* two, int64_t n) {                                       \
    silu ? sums_row<true>(x, dy, columns, dz, one, two, n)                                         \
         : sums_row<false>(x, dy, columns, dz, one, two, n);                                       \
  }                                                                                                \
  ATLAS_MULTIVERSION void gradient(const A* x, const B* dz, const Columns<Compute<A>>& columns,    \
                                   A* dx, int64_t n) {                                             \
    gradient_row(x, dz, columns, dx, n);                                                           \
  }

#define ATLAS_STATISTICS(A)                                                                        \
  ATLAS_MULTIVERSION void sum_columns(const A* x, int64_t rows, int64_t lanes, Compute<A>* sum) {  \
    sum_columns_tile(x, rows, lanes, sum);                                                         \
  }                                                                                                \
  ATLAS_MULTIVERSION void deviate_columns(const A* x, int64_t rows, int64_t lanes,                 \
                                          const Compute<A>* mean, Compute<A>* sum,                 \
                                          Compute<A>* squares) {                                   \
    deviate_columns_tile(x, rows, lanes, mean, sum, squares);                                      \
  }

#define ATLAS_MEMORY(T)                                                                            \
  ATLAS_MULTIVERSION void gather(const T* from, int64_t row, int64_t inner, int64_t count,         \
                                 Compute<T>* to) {                                                 \
    gather_row(from, row, inner, count, to);                                                       \
  }                                                                                                \
  ATLAS_MULTIVERSION void scatter(bool add, const Compute<T>* from, int64_t row, int64_t inner,    \
                                  int64_t count, T* to) {                                          \
    add ? scatter_row<true>(from, row, inner, count, to)                                           \
        : scatter_row<false>(from, row, inner, count, to);                                         \
  }

ATLAS_ROWS(float, float)
ATLAS_ROWS(double, double)
ATLAS_ROWS(bfloat16, bfloat16)
ATLAS_ROWS(bfloat16, float)
ATLAS_ROWS(float, bfloat16)
ATLAS_ROWS(float16, float16)
ATLAS_ROWS(float16, float)
ATLAS_ROWS(float, float16)
ATLAS_STATISTICS(float)
ATLAS_STATISTICS(double)
ATLAS_STATISTICS(bfloat16)
ATLAS_STATISTICS(float16)
ATLAS_MEMORY(float)
ATLAS_MEMORY(double)
ATLAS_MEMORY(bfloat16)
ATLAS_MEMORY(float16)
#undef ATLAS_ROWS
#undef ATLAS_STATISTICS
#undef ATLAS_MEMORY

// ---- the walk over a tensor -------------------------------------------------------------------

// The largest power of two that is at most n; 1 for less.
int64_t power_of_two(int64_t n) {
  int64_t power = 1;
  while (2 * power <= n) power *= 2;
  return power;
}

struct Walk {
  explicit Walk(const GroupNormFilm& problem)
      : outer(problem.channels_last ? problem.samples : problem.samples * problem.channels),
        voxels(problem.voxels),
        inner(problem.channels_last ? problem.channels : 1),
        row_voxels(power_of_two(kLanes / inner)),
        chunk_voxels(std::max(row_voxels, kChunk / inner / row_voxels * row_voxels)),
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

template <typename Body>
void for_each_chunk(const Walk& walk, int threads, const Body& body) {
  parallel_for(walk.items(), threads, [&](int64_t item) {
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
  C* gathered(int64_t voxel, int64_t count, std::vector<C>& room) const {
    room.resize(std::max(room.size(), static_cast<size_t>(count * inner)));
    gather(at(voxel), row, inner, count, room.data());
    return room.data();
  }

  int64_t row, inner;
  T* data;
};

// Calls body(first voxel, voxels, numbers) for each row of a chunk.
template <typename Body>
void for_each_row(const Walk& walk, const Chunk& chunk, const Body& body) {
  for (int64_t voxel = 0; voxel < chunk.count; voxel += walk.row_voxels) {
    const int64_t count = std::min(walk.row_voxels, chunk.count - voxel);
    body(voxel, count, count * walk.inner);
  }
}

// A number a channel -> the columns of a row, and the columns of a row -> sums a channel. Both go by
// halves (row_voxels is a power of two), so that they are long loops even for one channel.
template <typename C>
void spread(const Walk& walk, const double* channels, std::vector<C>& columns) {
  columns.resize(walk.lanes());
  for (int64_t c = 0; c < walk.inner; ++c) {
    columns[c] = std::isnan(channels[c]) ? std::numeric_limits<C>::quiet_NaN()  // see narrow()
                                         : static_cast<C>(channels[c]);
  }
  for (int64_t n = walk.inner; n < walk.lanes(); n *= 2) {
    std::copy_n(columns.data(), n, columns.data() + n);
  }
}

template <typename C>
void fold(const Walk& walk, std::vector<C>& columns, double* channels) {
  for (int64_t n = walk.lanes() / 2; n >= walk.inner; n /= 2) {
    for (int64_t i = 0; i < n; ++i) columns[i] += columns[n + i];
  }
  for (int64_t c = 0; c < walk.inner; ++c) channels[c] = static_cast<double>(columns[c]);
}

// ---- statistics -------------------------------------------------------------------------------

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
  std::vector<C> rows, centres, sums, moments;  // columns
  std::vector<double> centre, sum, squares;     // channels
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

// ---- coefficients -----------------------------------------------------------------------------

// Of all samples' channels, (N, C): y = act((x - mean) * scale + shift).
struct Coefficients {
  std::vector<double> gain, mean, scale, shift;  // gain = weight * (1 + gamma); scale = rstd * gain
};

double or_else(const double* values, int64_t i, double absent) { return values ? values[i] : absent; }

Coefficients coefficients(const GroupNormFilm& problem, const double* mean, const double* rstd) {
  const int64_t channels = problem.channels, size = channels / problem.groups;
  const auto all = static_cast<size_t>(problem.samples * channels);
  Coefficients of{std::vector<double>(all), std::vector<double>(all), std::vector<double>(all),
                  std::vector<double>(all)};
  for (int64_t i = 0; i < problem.samples * channels; ++i) {
    const int64_t c = i % channels, group = i / channels * problem.groups + c / size;
    const double film = 1 + or_else(problem.gamma, i, 0);
    of.gain[i] = or_else(problem.weight, c, 1) * film;
    of.mean[i] = mean[group];
    of.scale[i] = rstd[group] * of.gain[i];
    of.shift[i] = or_else(problem.bias, c, 0) * film + or_else(problem.beta, i, 0);
  }
  return of;
}

template <typename C>
Columns<C> film_columns(const Walk& walk, const Coefficients& of, int64_t channel) {
  Columns<C> columns;
  spread(walk, of.mean.data() + channel, columns.mean);
  spread(walk, of.scale.data() + channel, columns.scale);
  spread(walk, of.shift.data() + channel, columns.shift);
  return columns;
}

// ---- forward ----------------------------------------------------------------------------------

template <typename T, typename S>
void apply(const GroupNormFilm& problem, const T* x, const double* mean, const double* rstd, S* y,
           int threads) {
  using C = Compute<T>;
  const Walk walk(problem);
  const Coefficients of = coefficients(problem, mean, rstd);
  for_each_chunk(walk, threads, [&](int64_t, const Chunk& chunk) {
    const Rows<const T> in(walk, problem.x_row, x, chunk);
    const Rows<S> out(walk, walk.inner, y, chunk);
    const Columns<C> columns = film_columns<C>(walk, of, chunk.channel);
    std::vector<C> room;
    for_each_row(walk, chunk, [&](int64_t voxel, int64_t count, int64_t numbers) {
      const auto run = [&](const auto* row) {
        film(problem.silu, row, columns, out.at(voxel), numbers);
      };
      in.dense() ? run(in.at(voxel)) : run(in.gathered(voxel, count, room));
    });
  });
}

// ---- backward ---------------------------------------------------------------------------------

// Of all samples' channels: sums over voxels of dz and of dz (x - mean).
struct Sums {
  std::vector<double> one, two;
};

template <typename T, typename S>
Sums pull_back(const GroupNormFilm& problem, const S* dy, const T* x, const Coefficients& of, S* dz,
               int threads) {
  using C = Compute<T>;
  const Walk walk(problem);
  std::vector<double> partial(static_cast<size_t>(walk.items() * 2 * walk.inner));
  for_each_chunk(walk, threads, [&](int64_t item, const Chunk& chunk) {
    const Rows<const T> in(walk, problem.x_row, x, chunk);
    const Rows<const S> grad(walk, walk.inner, dy, chunk);
    const Rows<S> out(walk, walk.inner, dz, chunk);
    const Columns<C> columns = film_columns<C>(walk, of, chunk.channel);
    std::vector<C> room, one(walk.lanes()), two(walk.lanes());
    for_each_row(walk, chunk, [&](int64_t voxel, int64_t count, int64_t numbers) {
      const auto run = [&](const auto* row) {
        sums(problem.silu, row, grad.at(voxel), columns, out.at(voxel), one.data(), two.data(),
             numbers);
      };
      in.dense() ? run(in.at(voxel)) : run(in.gathered(voxel, count, room));
    });
    fold(walk, one, partial.data() + 2 * item * walk.inner);
    fold(walk, two, partial.data() + (2 * item + 1) * walk.inner);
  });
  const auto all = static_cast<size_t>(problem.samples * problem.channels);
  Sums sums{std::vector<double>(all), std::vector<double>(all)};
  for (int64_t item = 0; item < walk.items(); ++item) {
    const int64_t channel = item / walk.chunks * walk.inner;
    for (int64_t c = 0; c < walk.inner; ++c) {
      sums.one[channel + c] += partial[2 * item * walk.inner + c];
      sums.two[channel + c] += partial[(2 * item + 1) * walk.inner + c];
    }
  }
  return sums;
}

// Turns the sums into the gradients of the parameters (added to: samples come in rounds).
void add_parameters(const GroupNormFilm& problem, const double* rstd, const Sums& sums,
                    const GroupNormFilmGradients& gradients) {
  const int64_t channels = problem.channels, size = channels / problem.groups;
  for (int64_t i = 0; i < problem.samples * channels; ++i) {
    const int64_t c = i % channels;
    const double film = 1 + or_else(problem.gamma, i, 0), one = sums.one[i];
    const double normed = sums.two[i] * rstd[i / channels * problem.groups + c / size];
    if (gradients.weight) gradients.weight[c] += film * normed;
    if (gradients.bias) gradients.bias[c] += film * one;
    if (gradients.beta) gradients.beta[i] = one;
    if (gradients.gamma) {
      gradients.gamma[i] = or_else(problem.weight, c, 1) * normed + or_else(problem.bias, c, 0) * one;
    }
  }
}

// dx = scale dz - offset - (x - mean) slope: what the group's mean and variance send back.
struct Feedback {
  std::vector<double> offset, slope;
};

Feedback feedback(const GroupNormFilm& problem, const double* rstd, const Coefficients& of,
                  const Sums& sums) {
  const int64_t channels = problem.channels, size = channels / problem.groups;
  const double numbers = static_cast<double>(size * problem.voxels);
  Feedback back{std::vector<double>(of.gain.size()), std::vector<double>(of.gain.size())};
  for (int64_t group = 0; group < problem.samples * problem.groups; ++group) {
    double one = 0, two = 0;
    for (int64_t i = group * size; i < (group + 1) * size; ++i) {
      one += of.gain[i] * sums.one[i];
      two += of.gain[i] * sums.two[i];
    }
    const double r = rstd[group];
    std::fill_n(back.offset.begin() + group * size, size, r * one / numbers);
    std::fill_n(back.slope.begin() + group * size, size, r * r * r * two / numbers);
  }
  return back;
}

template <typename T, typename S>
void gradient_of_x(const GroupNormFilm& problem, const S* dz, const T* x, const Coefficients& of,
                   const Feedback& back, T* dx, bool accumulate, int threads) {
  using C = Compute<T>;
  const Walk walk(problem);
  for_each_chunk(walk, threads, [&](int64_t, const Chunk& chunk) {
    const Rows<const T> in(walk, problem.x_row, x, chunk);
    const Rows<const S> grad(walk, walk.inner, dz, chunk);
    const Rows<T> out(walk, problem.x_row, dx, chunk);
    Columns<C> columns = film_columns<C>(walk, of, chunk.channel);
    spread(walk, back.offset.data() + chunk.channel, columns.offset);
    spread(walk, back.slope.data() + chunk.channel, columns.slope);
    std::vector<C> room, sum(walk.lanes());
    for_each_row(walk, chunk, [&](int64_t voxel, int64_t count, int64_t numbers) {
      if (in.dense() && !accumulate) {
        gradient(in.at(voxel), grad.at(voxel), columns, out.at(voxel), numbers);
      } else {
        gradient(in.gathered(voxel, count, room), grad.at(voxel), columns, sum.data(), numbers);
        scatter(accumulate, sum.data(), out.row, out.inner, count, out.at(voxel));
      }
    });
  });
}

// ---- over all samples, a few at a time ---------------------------------------------------------

void check(const GroupNormFilm& problem, int threads) {
  require(problem.samples >= 0 && problem.voxels >= 0, "group_norm_film: negative size");
  require(problem.channels > 0 && problem.groups > 0 && problem.channels % problem.groups == 0,
          "group_norm_film: groups must divide channels");
  require(!problem.channels_last || problem.x_row >= problem.channels,
          "group_norm_film: x_row is less than channels");
  require(threads >= 1, "group_norm_film: threads must be at least 1");
}

// Calls body(part of the problem, samples before it).
template <typename T, typename Body>
void for_each_round(GroupNormFilm problem, const Body& body) {
  if (!problem.channels_last) problem.x_row = 1;
  const int64_t size = problem.channels * problem.voxels * static_cast<int64_t>(sizeof(T));
  const int64_t at_once = std::max<int64_t>(1, size ? kRound / size : problem.samples);
  for (int64_t first = 0; first < problem.samples; first += at_once) {
    GroupNormFilm part = problem;
    part.samples = std::min(at_once, problem.samples - first);
    if (part.gamma) part.gamma += first * part.channels;
    if (part.beta) part.beta += first * part.channels;
    body(part, first);
  }
}

// Elements of one sample of x, which may be the first channels of a wider buffer.
int64_t sample_size(const GroupNormFilm& part) {
  return part.voxels * (part.channels_last ? part.x_row : part.channels);
}

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

template <typename T>
void channel_statistics_cpu(const GroupNormFilm& problem, const T* x, double* mean, double* m2,
                            int threads) {
  check(problem, threads);
  GroupNormFilm whole = problem;
  if (!whole.channels_last) whole.x_row = 1;
  statistics(whole, x, mean, m2, threads);
}

void group_statistics(const GroupNormFilm& problem, const double* channel_mean,
                      const double* channel_m2, int64_t stride, double* mean, double* rstd) {
  check(problem, 1);
  const int64_t size = problem.channels / problem.groups;
  const auto voxels = static_cast<double>(problem.voxels);
  for (int64_t n = 0; n < problem.samples; ++n) {
    for (int64_t g = 0; g < problem.groups; ++g) {
      double centre = 0, m2 = 0;
      for (int64_t c = 0; c < size; ++c) {
        const int64_t i = n * stride + g * size + c;
        merge(static_cast<double>(c) * voxels, centre, m2, voxels, channel_mean[i], channel_m2[i]);
      }
      mean[n * problem.groups + g] = centre;
      rstd[n * problem.groups + g] =
          1 / std::sqrt(m2 / (static_cast<double>(size) * voxels) + problem.eps);
    }
  }
}

template <typename T, typename S>
void group_norm_film_apply_cpu(const GroupNormFilm& problem, const T* x, const double* mean,
                               const double* rstd, S* y, int threads) {
  check(problem, threads);
  GroupNormFilm whole = problem;
  if (!whole.channels_last) whole.x_row = 1;
  apply(whole, x, mean, rstd, y, threads);
}

template <typename T>
void group_norm_film_cpu(const GroupNormFilm& problem, const T* x, T* y, double* mean, double* rstd,
                         int threads) {
  check(problem, threads);
  for_each_round<T>(problem, [&](const GroupNormFilm& part, int64_t first) {
    const auto channels = static_cast<size_t>(part.samples * part.channels);
    std::vector<double> channel_mean(channels), channel_m2(channels);
    const T* in = x + first * sample_size(part);
    double *m = mean + first * part.groups, *r = rstd + first * part.groups;
    statistics(part, in, channel_mean.data(), channel_m2.data(), threads);
    group_statistics(part, channel_mean.data(), channel_m2.data(), part.channels, m, r);
    apply(part, in, m, r, y + first * part.voxels * part.channels, threads);
  });
}

template <typename T, typename S>
void group_norm_film_backward_cpu(const GroupNormFilm& problem, const S* dy, const T* x,
                                  const double* mean, const double* rstd, S* dz, T* dx,
                                  bool accumulate, const GroupNormFilmGradients& gradients,
                                  int threads) {
  check(problem, threads);
  if (gradients.weight) std::fill_n(gradients.weight, problem.channels, 0.0);
  if (gradients.bias) std::fill_n(gradients.bias, problem.channels, 0.0);
  for_each_round<T>(problem, [&](const GroupNormFilm& part, int64_t first) {
    const double *m = mean + first * part.groups, *r = rstd + first * part.groups;
    S* pulled = dz + first * part.voxels * part.channels;
    const T* in = x + first * sample_size(part);
    const Coefficients of = coefficients(part, m, r);
    const Sums sums =
        pull_back(part, dy + first * part.voxels * part.channels, in, of, pulled, threads);
    GroupNormFilmGradients here = gradients;
    if (here.gamma) here.gamma += first * part.channels;
    if (here.beta) here.beta += first * part.channels;
    add_parameters(part, r, sums, here);
    gradient_of_x(part, pulled, in, of, feedback(part, r, of, sums), dx + first * sample_size(part),
                  accumulate, threads);
  });
}

#define ATLAS_INSTANTIATE_BOTH(T, S)                                                            \
  template void group_norm_film_apply_cpu(const GroupNormFilm&, const T*, const double*,        \
                                          const double*, S*, int);                              \
  template void group_norm_film_backward_cpu(const GroupNormFilm&, const S*, const T*,          \
                                             const double*, const double*, S*, T*, bool,        \
                                             const GroupNormFilmGradients&, int);
#define ATLAS_INSTANTIATE(T)                                                                    \
  template void channel_statistics_cpu(const GroupNormFilm&, const T*, double*, double*, int);  \
  template void group_norm_film_cpu(const GroupNormFilm&, const T*, T*, double*, double*, int); \
  ATLAS_INSTANTIATE_BOTH(T, T)
ATLAS_INSTANTIATE(float)
ATLAS_INSTANTIATE(double)
ATLAS_INSTANTIATE(bfloat16)
ATLAS_INSTANTIATE(float16)
ATLAS_INSTANTIATE_BOTH(bfloat16, float)
ATLAS_INSTANTIATE_BOTH(float16, float)

}  // namespace atlas_kernels
