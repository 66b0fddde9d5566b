// splat: peaks of many studies -> one volume for each study and width.
//
// The value of a peak p of study b at a voxel v, whose centre lies d mm from it:
//   gaussian   weight_p * norm * exp(-|d|^2 / (2 sigma^2))   sigma = fwhm / (2 sqrt(2 ln 2))
//   taper      the same less its tangent in |d|^2 at the cut-off, so that it ends there at slope 0
//   sphere     1
// where p's support holds v, and 0 elsewhere. The support is |d| <= truncate * sigma (of a sphere:
// its radius), in Euclidean distance (ball, taper) or along each axis (box). Modes:
//   sum        out[b, k, v] = sum of the values
//   max        their maximum and the background 0: never negative
//   union_     1 - prod(1 - value)
//   sphere     1 where any sphere reaches, or with `count` the number of those that do
// Maths and gradients: docs/kernels/splat.md.
//
// Implementations: splat_cpu.cpp, splat_backward_cpu.cpp and splat_cuda.cu here; in atlas_kernels/splat
// reference.py (PyTorch, the specification), numba_kernel.py and triton_kernel.py. Plain pointers and
// sizes: neither Python nor torch is needed to call this.
#pragma once

#include <cstdint>

#include "common/half.h"
#include "common/host_device.h"

namespace atlas_kernels {

enum class SplatMode { sum, max, union_, sphere };
enum class SplatWidths { kernels, studies, peaks };  // whose each width is
enum class SplatSupport { ball, box, taper };
enum class SplatNormalize { peak, sum, mm3 };  // what is 1: the centre, the sum, the integral
enum class SplatCentre { peak, voxel };        // voxel: the nearest one, half to even

struct SplatProblem {
  // Inputs, C order; numbers must be finite and widths positive.
  const double* peaks = nullptr;     // (P, 3) mm
  const int64_t* offsets = nullptr;  // (B + 1): study b owns [offsets[b], offsets[b + 1]); ends at P
  const double* widths = nullptr;    // fwhm (K,), (B,) or (P,), or radii (K,), mm
  const double* weights = nullptr;   // (P,), or null for ones
  const int64_t* voxels = nullptr;   // (V,) ascending flat numbers of those to write
  int64_t n_peaks = 0;               // P
  int64_t n_studies = 0;             // B
  int64_t n_kernels = 1;             // K; 1 unless widths are those of kernels
  int64_t n_voxels = -1;             // V; -1 to write all

  // Grid: the centre of voxel n along axis a lies at origin[a] + spacing[a] * n mm.
  int64_t shape[3] = {0, 0, 0};
  double spacing[3] = {1, 1, 1};
  double origin[3] = {0, 0, 0};

  SplatMode mode = SplatMode::sum;
  SplatWidths widths_of = SplatWidths::kernels;
  SplatSupport support = SplatSupport::ball;
  SplatNormalize normalize = SplatNormalize::peak;
  SplatCentre centre = SplatCentre::peak;
  double truncate = 4.0;  // in sigmas; infinity for no cut
  bool count = false;

  ATLAS_HOST_DEVICE bool masked() const { return n_voxels >= 0; }
  int64_t n_widths() const {
    if (widths_of == SplatWidths::studies) return n_studies;
    return widths_of == SplatWidths::peaks ? n_peaks : n_kernels;
  }
  ATLAS_HOST_DEVICE int64_t n_elements() const {  // of one volume in `out`
    return masked() ? n_voxels : shape[0] * shape[1] * shape[2];
  }
};

// out: (B, K, X, Y, Z), or (B, K, V) with voxels; C order; every element is written. The bits do not
// depend on `threads`. Half types are rounded once from float; uint8_t stops at 255.
template <typename Out>
void splat_cpu(const SplatProblem& problem, Out* out, int threads);

extern template void splat_cpu(const SplatProblem&, float*, int);
extern template void splat_cpu(const SplatProblem&, double*, int);
extern template void splat_cpu(const SplatProblem&, BFloat16*, int);
extern template void splat_cpu(const SplatProblem&, Float16*, int);
extern template void splat_cpu(const SplatProblem&, uint8_t*, int);

// grad_out: as out. Writes grad_peaks (P, 3), grad_weights (P,) and grad_widths (as widths). The bits
// do not depend on `threads`. Not for spheres.
template <typename Out>
void splat_backward_cpu(const SplatProblem& problem, const Out* grad_out, double* grad_peaks,
                        double* grad_weights, double* grad_widths, int threads);

extern template void splat_backward_cpu(const SplatProblem&, const float*, double*, double*, double*,
                                        int);
extern template void splat_backward_cpu(const SplatProblem&, const double*, double*, double*, double*,
                                        int);
extern template void splat_backward_cpu(const SplatProblem&, const BFloat16*, double*, double*,
                                        double*, int);
extern template void splat_backward_cpu(const SplatProblem&, const Float16*, double*, double*,
                                        double*, int);

// The same on a GPU. All pointers are the device's; `stream` is a cudaStream_t of the current device,
// and nothing waits for it. No value is checked: a number that is not finite, or a width that is not
// positive, makes the volumes of its own study NaN; offsets are clamped to [0, n_peaks].
// `room`: splat_room(problem) bytes of scratch, a multiple of 8 at a multiple of 8, for this stream.
int64_t splat_room(const SplatProblem& problem);

template <typename Out>
void splat_cuda(const SplatProblem& problem, Out* out, void* room, void* stream);

template <typename Out>
void splat_backward_cuda(const SplatProblem& problem, const Out* grad_out, double* grad_peaks,
                         double* grad_weights, double* grad_widths, void* room, void* stream);

}  // namespace atlas_kernels
