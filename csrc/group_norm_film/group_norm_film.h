// group_norm_film: normalise, modulate, activate.
//
//   y[n, c, v] = act((x[n, c, v] - mean[n, g]) * rstd[n, g] * w + b),  g the group of channel c
//   w = weight[c] * (1 + gamma[n, c]),  b = bias[c] * (1 + gamma[n, c]) + beta[n, c]
//   act(z) = z, or SiLU: z / (1 + e^-z);  rstd = 1 / sqrt(variance + eps), variance over the group
//
// GroupNorm: Wu & He 2018, ECCV. FiLM: Perez et al. 2018, AAAI. Maths and gradients:
// docs/kernels/group_norm_film.md.
//
// Implementations: group_norm_film_cpu.cpp; group_norm_film_cuda.cu;
// atlas_kernels/group_norm_film/{reference,triton_kernel}.py. Neither Python nor torch is needed here.
#pragma once

#include <cstdint>

#include "common/floats.h"

namespace atlas_kernels {

struct GroupNormFilm {
  int64_t samples, channels, voxels, groups;  // groups divides channels

  // Memory is (N, C, V), or with channels_last (N, V, C). There, the channels of x may be the first
  // of a wider buffer: x_row elements lie between two voxels (dense: x_row = channels). y and its
  // gradient are dense.
  bool channels_last;
  int64_t x_row;

  // (C) and (N, C); null where absent: 1, 0, 0, 0.
  const double* weight;
  const double* bias;
  const double* gamma;
  const double* beta;

  bool silu;
  double eps;
};

// Where the gradients of the parameters go; null where nobody asks.
struct GroupNormFilmGradients {
  double* weight;  // (C)
  double* bias;    // (C)
  double* gamma;   // (N, C)
  double* beta;    // (N, C)
};

// T and S are float, double, bfloat16 or float16; S is T, or float. Sums are double, over partial sums
// in float of at most a few thousand elements whose order is fixed: the bits do not depend on
// `threads`.

// Writes each channel's mean and sum of squared deviations, (N, C) each, `stride` apart from sample to sample:
// what a group's statistics are made of, whatever channels it takes in. The groups of `problem` are not
// looked at.
template <typename T>
void channel_statistics_cpu(const GroupNormFilm& problem, const T* x, int64_t stride, double* mean,
                            double* m2, int threads);

// Statistics of the channels, `stride` apart from sample to sample, -> mean and rstd of the groups,
// (N, G) each.
void group_statistics(const GroupNormFilm& problem, const double* channel_mean,
                      const double* channel_m2, int64_t stride, double* mean, double* rstd);

// y from x and its statistics.
template <typename T, typename S>
void group_norm_film_apply_cpu(const GroupNormFilm& problem, const T* x, const double* mean,
                               const double* rstd, S* y, int threads);

// Both steps, sample by sample, so that the second finds x in the cache; writes mean and rstd.
template <typename T>
void group_norm_film_cpu(const GroupNormFilm& problem, const T* x, T* y, double* mean, double* rstd,
                         int threads);

// Gradients. dz is room for dy's number of elements, laid out like it: it may be dy itself, which is
// then lost, or dx where that is of the same type and dense. dx has the layout of x; with `accumulate`
// it is added to what dx holds.
template <typename T, typename S>
void group_norm_film_backward_cpu(const GroupNormFilm& problem, const S* dy, const T* x,
                                  const double* mean, const double* rstd, S* dz, T* dx,
                                  bool accumulate, const GroupNormFilmGradients& gradients,
                                  int threads);

// On an NVIDIA GPU (target atlas_kernels_cuda). All addresses are the device's, those in `problem` and
// `gradients` too; the work is queued on `stream`, a cudaStream_t of the current device, and nothing
// waits for it. `room` is memory for group_norm_film_room() bytes, aligned to 8, until it is done.
// What cannot be queued throws std::runtime_error.
int64_t group_norm_film_room(const GroupNormFilm& problem);

template <typename T>
void group_norm_film_cuda(const GroupNormFilm& problem, const T* x, T* y, double* mean, double* rstd,
                          void* room, void* stream);

template <typename T>
void group_norm_film_backward_cuda(const GroupNormFilm& problem, const T* dy, const T* x,
                                   const double* mean, const double* rstd, T* dx, bool accumulate,
                                   const GroupNormFilmGradients& gradients, void* room, void* stream);

}  // namespace atlas_kernels
