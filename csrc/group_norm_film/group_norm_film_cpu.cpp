// group_norm_film on the CPU: forward and backward.
//
//   statistics   statistics_cpu.h
//   apply        one read, one write
//   backward     dz = dL/dz with its sums, stored; then dx from x and dz
//
// Samples are handled a few at a time, or groups of one, so that the second pass over them finds them in the
// last cache. How a tensor is walked is in walk_cpu.h, the loops over numbers in rows_cpu.h.

#include "group_norm_film/group_norm_film.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "common/checks.h"
#include "common/stream.h"
#include "group_norm_film/rows_cpu.h"
#include "group_norm_film/statistics_cpu.h"
#include "group_norm_film/walk_cpu.h"

namespace atlas_kernels {
namespace {

constexpr int64_t kRound = int64_t(1) << 22;  // bytes of x that are passed over twice in turn
constexpr int64_t kRoom = 8'000'000;          // bytes of dz that may be kept beside dx

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

template <typename T, typename S>
Columns<Compute<T>> columns_of(const Walk& walk, const Coefficients& of, int64_t channel) {
  Columns<Compute<T>> columns;
  columns.channels = walk.inner;
  columns.lanes = walk.lanes();
  spread(walk, kPaired<T, S>, of.mean.data() + channel, columns.mean);
  spread(walk, kPaired<T, S>, of.scale.data() + channel, columns.scale);
  spread(walk, kPaired<T, S>, of.shift.data() + channel, columns.shift);
  return columns;
}

template <typename C>
Channel<C> channel_of(const Coefficients& of, size_t channel) {
  return {rounded<C>(of.mean[channel]), rounded<C>(of.scale[channel]), rounded<C>(of.shift[channel]), 0, 0};
}

// ---- forward ----------------------------------------------------------------------------------

// `past`: y goes past the cache.
template <typename T, typename S>
void apply(const GroupNormFilm& problem, const T* x, const double* mean, const double* rstd, S* y, bool past,
           int threads) {
  using C = Compute<T>;
  const Walk walk(problem);
  const Coefficients of = coefficients(problem, mean, rstd);
  for_each_chunk(walk, Pass::second, threads, [&](int64_t, const Chunk& chunk) {
    const PastCache until_here(past);
    const Rows<const T> in(walk, problem.x_row, x, chunk);
    const Rows<S> out(walk, walk.inner, y, chunk);
    if (walk.inner == 1) {
      const Channel<C> channel = channel_of<C>(of, static_cast<size_t>(chunk.channel));
      return film(problem.silu, past, in.at(0), channel, out.at(0), chunk.count);
    }
    const Columns<C> columns = columns_of<T, S>(walk, of, chunk.channel);
    Scratch<C> room;
    for_each_tile(walk, chunk.count, [&](int64_t voxel, int64_t count) {
      const auto part = [&](const auto* from, int64_t first, int64_t rows, int64_t lanes) {
        film(problem.silu, past, from, columns, out.at(voxel) + first, rows, lanes);
      };
      for_each_part_of(walk, in, voxel, count, room, part);
    });
  });
}

// ---- backward ---------------------------------------------------------------------------------

// Of all samples' channels: sums over voxels of dz = dL/dz and of dz (x - mean).
struct Sums {
  std::vector<double> one, two;
};

template <typename T, typename S>
Sums pull_back(const GroupNormFilm& problem, const S* dy, const T* x, const Coefficients& of, S* dz,
               int threads) {
  using C = Compute<T>;
  const Walk walk(problem);
  std::vector<double> partial(static_cast<size_t>(walk.items() * 2 * walk.inner));
  for_each_chunk(walk, Pass::first, threads, [&](int64_t item, const Chunk& chunk) {
    const Rows<const T> in(walk, problem.x_row, x, chunk);
    const Rows<const S> grad(walk, walk.inner, dy, chunk);
    const Rows<S> out(walk, walk.inner, dz, chunk);
    double *one = partial.data() + 2 * item * walk.inner, *two = one + walk.inner;
    if (walk.inner == 1) {
      const Channel<C> channel = channel_of<C>(of, static_cast<size_t>(chunk.channel));
      return for_each_tile(walk, chunk.count, [&](int64_t voxel, int64_t count) {
        sums(problem.silu, in.at(voxel), grad.at(voxel), channel, out.at(voxel), one, two, count);
      });
    }
    const Columns<C> columns = columns_of<T, S>(walk, of, chunk.channel);
    Scratch<C> room, ones(static_cast<size_t>((kPaired<T, S> ? 2 : 1) * walk.lanes())), twos(ones.size());
    for_each_tile(walk, chunk.count, [&](int64_t voxel, int64_t count) {
      const auto part = [&](const auto* from, int64_t first, int64_t rows, int64_t lanes) {
        sums(problem.silu, from, grad.at(voxel) + first, columns, out.at(voxel) + first, ones.data(),
             twos.data(), rows, lanes);
      };
      for_each_part_of(walk, in, voxel, count, room, part);
      fold(walk, ones, one);
      fold(walk, twos, two);
    });
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
    // Without a voxel there are no statistics: 0, not 0 times NaN.
    const double r = problem.voxels ? rstd[i / channels * problem.groups + c / size] : 0;
    const double normed = sums.two[i] * r;
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

// `past`: dx goes past the cache.
template <typename T, typename S>
void gradient_of_x(const GroupNormFilm& problem, const S* dz, const T* x, const Coefficients& of,
                   const Feedback& back, T* dx, bool accumulate, bool past, int threads) {
  using C = Compute<T>;
  const Walk walk(problem);
  for_each_chunk(walk, Pass::second, threads, [&](int64_t, const Chunk& chunk) {
    const PastCache until_here(past);
    const Rows<const T> in(walk, problem.x_row, x, chunk);
    const Rows<const S> grad(walk, walk.inner, dz, chunk);
    const Rows<T> out(walk, problem.x_row, dx, chunk);
    if (walk.inner == 1 && !accumulate) {
      Channel<C> channel = channel_of<C>(of, static_cast<size_t>(chunk.channel));
      channel.offset = rounded<C>(back.offset[static_cast<size_t>(chunk.channel)]);
      channel.slope = rounded<C>(back.slope[static_cast<size_t>(chunk.channel)]);
      return gradient(past, in.at(0), grad.at(0), channel, out.at(0), chunk.count);
    }
    Columns<C> columns = columns_of<T, S>(walk, of, chunk.channel);
    spread(walk, kPaired<T, S>, back.offset.data() + chunk.channel, columns.offset);
    spread(walk, kPaired<T, S>, back.slope.data() + chunk.channel, columns.slope);
    Scratch<C> room, sum;
    for_each_tile(walk, chunk.count, [&](int64_t voxel, int64_t count) {
      const auto tile = [&](const auto* from, auto* to) {
        for_each_part(walk, count, [&](int64_t first, int64_t rows, int64_t lanes) {
          gradient(past, from + first, grad.at(voxel) + first, columns, to + first, rows, lanes);
        });
      };
      if (in.dense() && !accumulate) return tile(in.at(voxel), out.at(voxel));
      sum.resize(std::max(sum.size(), static_cast<size_t>(count * walk.inner)));
      tile(in.gathered(voxel, count, room), sum.data());
      scatter(accumulate, sum.data(), out.row, out.inner, count, out.at(voxel));
    });
  });
}

// ---- over all samples, a part at a time --------------------------------------------------------

void check(const GroupNormFilm& problem, int threads) {
  require(problem.samples >= 0 && problem.voxels >= 0, "group_norm_film: negative size");
  require(problem.channels > 0 && problem.groups > 0 && problem.channels % problem.groups == 0,
          "group_norm_film: groups must divide channels");
  require(!problem.channels_last || problem.x_row >= problem.channels,
          "group_norm_film: x_row is less than channels");
  require(threads >= 1, "group_norm_film: threads must be at least 1");
}

// A part of the problem that is passed over twice in turn, and where it begins in each array: weight, gamma,
// mean, x and y stand for those of the same shape.
struct Round {
  GroupNormFilm problem;
  int64_t weight, gamma, mean, x, y;
};

template <typename T>
int64_t bytes_of(const GroupNormFilm& problem) {
  return problem.samples * problem.channels * problem.voxels * static_cast<int64_t>(sizeof(T));
}

// Some samples at a time; where one is too much and channels lie apart, some groups of it.
template <typename T, typename Body>
void for_each_round(GroupNormFilm whole, const Body& body) {
  if (!whole.channels_last) whole.x_row = 1;
  const int64_t size = whole.channels / whole.groups;
  const auto fitting = [&](int64_t channels) {
    const int64_t bytes = channels * whole.voxels * static_cast<int64_t>(sizeof(T));
    return std::max<int64_t>(1, bytes ? kRound / bytes : kRound);
  };
  const int64_t samples = fitting(whole.channels);
  const bool apart = !whole.channels_last && samples == 1;
  const int64_t groups = apart ? std::min(whole.groups, fitting(size)) : whole.groups;
  const int64_t row = whole.channels_last ? whole.x_row : whole.channels;
  for (int64_t n = 0; n < whole.samples; n += samples) {
    for (int64_t g = 0; g < whole.groups; g += groups) {
      const int64_t c = g * size, gamma = n * whole.channels + c;
      Round round{whole, c, gamma, n * whole.groups + g, whole.voxels * (n * row + c), whole.voxels * gamma};
      GroupNormFilm& part = round.problem;
      part.samples = std::min(samples, whole.samples - n);
      part.groups = std::min(groups, whole.groups - g);
      part.channels = part.groups * size;
      if (part.weight) part.weight += round.weight;
      if (part.bias) part.bias += round.weight;
      if (part.gamma) part.gamma += round.gamma;
      if (part.beta) part.beta += round.gamma;
      body(round);
    }
  }
}

}  // namespace

template <typename T>
void channel_statistics_cpu(const GroupNormFilm& problem, const T* x, int64_t stride, double* mean,
                            double* m2, int threads) {
  check(problem, threads);
  GroupNormFilm whole = problem;
  if (!whole.channels_last) whole.x_row = 1;
  statistics(whole, x, stride, mean, m2, threads);
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
  apply(whole, x, mean, rstd, y, false, threads);
}

template <typename T>
void group_norm_film_cpu(const GroupNormFilm& problem, const T* x, T* y, double* mean, double* rstd,
                         int threads) {
  check(problem, threads);
  const bool past = PastCache::pays(bytes_of<T>(problem));
  for_each_round<T>(problem, [&](const Round& round) {
    const GroupNormFilm& part = round.problem;
    const auto channels = static_cast<size_t>(part.samples * part.channels);
    std::vector<double> channel_mean(channels), channel_m2(channels);
    const T* in = x + round.x;
    double *m = mean + round.mean, *r = rstd + round.mean;
    statistics(part, in, part.channels, channel_mean.data(), channel_m2.data(), threads);
    group_statistics(part, channel_mean.data(), channel_m2.data(), part.channels, m, r);
    apply(part, in, m, r, y + round.y, past, threads);
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
  const bool direct = !accumulate && (!problem.channels_last || problem.x_row == problem.channels);
  const bool pays = direct && PastCache::pays(bytes_of<T>(problem));
  for_each_round<T>(problem, [&](const Round& round) {
    const GroupNormFilm& part = round.problem;
    const double *m = mean + round.mean, *r = rstd + round.mean;
    // What goes past the cache had better not be in it: dz then has a place of its own, for all rounds.
    const bool past = pays && bytes_of<S>(part) < kRoom;
    const Room<S> room(past ? static_cast<size_t>(part.samples * part.channels * part.voxels) : 0);
    S* pulled = past ? room.data() : dz + round.y;
    const T* in = x + round.x;
    const Coefficients of = coefficients(part, m, r);
    const Sums sums = pull_back(part, dy + round.y, in, of, pulled, threads);
    GroupNormFilmGradients here = gradients;
    if (here.weight) here.weight += round.weight;
    if (here.bias) here.bias += round.weight;
    if (here.gamma) here.gamma += round.gamma;
    if (here.beta) here.beta += round.gamma;
    add_parameters(part, r, sums, here);
    gradient_of_x(part, pulled, in, of, feedback(part, r, of, sums), dx + round.x, accumulate, past,
                  threads);
  });
}

#define ATLAS_INSTANTIATE_BOTH(T, S)                                                            \
  template void group_norm_film_apply_cpu(const GroupNormFilm&, const T*, const double*,        \
                                          const double*, S*, int);                              \
  template void group_norm_film_backward_cpu(const GroupNormFilm&, const S*, const T*,          \
                                             const double*, const double*, S*, T*, bool,        \
                                             const GroupNormFilmGradients&, int);
#define ATLAS_INSTANTIATE(T)                                                                    \
  template void channel_statistics_cpu(const GroupNormFilm&, const T*, int64_t, double*,        \
                                       double*, int);                                           \
  template void group_norm_film_cpu(const GroupNormFilm&, const T*, T*, double*, double*, int); \
  ATLAS_INSTANTIATE_BOTH(T, T)
ATLAS_INSTANTIATE(float)
ATLAS_INSTANTIATE(double)
ATLAS_INSTANTIATE(bfloat16)
ATLAS_INSTANTIATE(float16)
ATLAS_INSTANTIATE_BOTH(bfloat16, float)
ATLAS_INSTANTIATE_BOTH(float16, float)

}  // namespace atlas_kernels
