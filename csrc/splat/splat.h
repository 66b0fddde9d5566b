// splat: peaks of many studies -> one volume for each study and width.
//
//   out[b, k, v] = sum (or max) over the peaks p of study b of
//                  weight_p * exp(-|v - p|^2 / (2 sigma_k^2))   where p's support holds v
//
// v is a voxel's centre and p a peak, both in mm, so peaks keep their sub-voxel position.
// sigma = fwhm / (2 sqrt(2 ln 2)); the support is |v - p| <= truncate * sigma, in Euclidean distance
// (ball) or along each axis (box). A maximum starts from the background, 0: it is 0 where no peak
// reaches and never negative. Maths and gradients: docs/kernels/splat.md.
//
// Implementations: splat_cpu.cpp here; atlas_kernels/splat/reference.py (PyTorch, the
// specification). Plain pointers and sizes: neither Python nor torch is needed to call this.
#pragma once

#include <cstdint>

namespace atlas_kernels {

enum class SplatMode { sum, max };
enum class SplatSupport { ball, box };

struct SplatProblem {
  // Inputs, C order. The caller has checked that numbers are finite and widths positive.
  const double* peaks;     // (P, 3) mm
  const int64_t* offsets;  // (B + 1): study b owns peaks [offsets[b], offsets[b + 1]); ends with P
  const double* fwhm;      // (K,) mm
  const double* weights;   // (P,), or null for ones
  int64_t n_studies;       // B
  int64_t n_widths;        // K

  // Grid: the centre of voxel n along axis a lies at origin[a] + spacing[a] * n mm.
  int64_t shape[3];
  double spacing[3];
  double origin[3];

  SplatMode mode;
  SplatSupport support;
  double truncate;  // in sigmas; infinity for no cut
};

// out: (B, K, X, Y, Z), C order; every voxel is written. The bits do not depend on `threads`.
void splat_cpu(const SplatProblem& problem, float* out, int threads);
void splat_cpu(const SplatProblem& problem, double* out, int threads);

// grad_out: (B, K, X, Y, Z), C order. Writes grad_peaks (P, 3), grad_weights (P,), grad_fwhm (K,).
// The bits do not depend on `threads`.
void splat_backward_cpu(const SplatProblem& problem, const float* grad_out, double* grad_peaks,
                        double* grad_weights, double* grad_fwhm, int threads);
void splat_backward_cpu(const SplatProblem& problem, const double* grad_out, double* grad_peaks,
                        double* grad_weights, double* grad_fwhm, int threads);

}  // namespace atlas_kernels
