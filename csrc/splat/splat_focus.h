// One focus: where it is drawn and how far it reaches. The same on the CPU and on a GPU.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "common/host_device.h"
#include "splat/splat.h"

namespace atlas_kernels {

constexpr double kFwhmPerSigma = 2.3548200450309493;  // 2 sqrt(2 ln 2)

// Consecutive voxels [begin, end) of one axis.
struct Span {
  int64_t begin, end;
};

// One focus along one axis: the voxels it can reach; its tables start at `table`.
struct Reach {
  Span span;
  size_t table;
};

// What normalising adds to the gradient: sums over all voxels of an unbounded grid of the kernel's
// slope times d and |d|^2, divided by the sum of the kernel.
struct Pull {
  double axis[3] = {0, 0, 0}, square = 0;
};

struct Focus {
  int64_t peak, width;  // its places in `peaks` and `widths`
  double mm[3];         // where it is drawn
  double sigma, per, radius2;  // per: 1 / (2 sigma^2)
  double weight, unit;  // value = weight * unit * (gauss - tangent)
  double edge, end;     // tangent = edge * (1 + end - per * |d|^2); edge is 0 without taper
  Pull pull;
  Reach axis[3];
  // Of splat_scene.h:
  double centre[3];  // where it lies, counted in places of its tables
  bool floats_decide;
};

// Rounded by itself: fused with an addition, it would decide differently which voxels are covered.
ATLAS_HOST_DEVICE inline double product(double a, double b) {
#ifdef __CUDA_ARCH__
  return __dmul_rn(a, b);
#else
  return a * b;
#endif
}

ATLAS_HOST_DEVICE inline double offset_mm(const SplatProblem& problem, int axis, int64_t voxel,
                                          double peak) {
  return (problem.origin[axis] + product(problem.spacing[axis], static_cast<double>(voxel))) - peak;
}

// To an integer within [low, high], also from infinity (an untruncated kernel) and NaN.
ATLAS_HOST_DEVICE inline int64_t clamped(double value, int64_t low, int64_t high) {
  if (!(value > static_cast<double>(low))) return low;
  return value < static_cast<double>(high) ? static_cast<int64_t>(value) : high;
}

// The voxel centre nearest to a coordinate, half to even.
ATLAS_HOST_DEVICE inline double rounded_to_voxel(const SplatProblem& problem, int axis, double mm) {
  const double origin = problem.origin[axis], step = problem.spacing[axis];
  return origin + product(step, std::nearbyint((mm - origin) / step));
}

// Voxels [begin, end) that the kernel covers along one axis, of those `within`. Division only finds a
// first guess: the ends are decided by the comparison that defines the support, as in the reference.
ATLAS_HOST_DEVICE inline Span reach_span(const SplatProblem& problem, int axis, double peak,
                                         double radius2, Span within) {
  const double radius = std::sqrt(radius2), step = problem.spacing[axis];
  const double centre = (peak - problem.origin[axis]) / step, half = radius / std::abs(step);
  Span span{clamped(std::floor(centre - half), within.begin, within.end),
            clamped(std::ceil(centre + half) + 1, within.begin, within.end)};
  const auto covered = [&](int64_t voxel) {
    const double d = offset_mm(problem, axis, voxel, peak);
    return product(d, d) <= radius2;
  };
  while (span.begin < span.end && !covered(span.begin)) ++span.begin;
  while (span.begin < span.end && !covered(span.end - 1)) --span.end;
  return span;
}

// The focus of peak number `peak`, without its tables and not yet normalised.
ATLAS_HOST_DEVICE inline Focus make_focus(const SplatProblem& problem, int64_t study, int64_t kernel,
                                          int64_t peak) {
  Focus focus{};
  focus.peak = peak;
  focus.width = problem.widths_of == SplatWidths::kernels   ? kernel
                : problem.widths_of == SplatWidths::studies ? study
                                                            : peak;
  for (int axis = 0; axis < 3; ++axis) {
    const double mm = problem.peaks[3 * peak + axis];
    focus.mm[axis] = problem.centre == SplatCentre::voxel ? rounded_to_voxel(problem, axis, mm) : mm;
  }
  const double width = problem.widths[focus.width], truncate = problem.truncate;
  focus.weight = problem.weights ? problem.weights[peak] : 1.0;
  focus.unit = 1;
  if (problem.mode == SplatMode::sphere) {
    focus.radius2 = width * width;
    return focus;
  }
  focus.sigma = width / kFwhmPerSigma;
  focus.per = 0.5 / (focus.sigma * focus.sigma);
  const double radius = truncate * focus.sigma;
  focus.radius2 = radius * radius;
  if (problem.support == SplatSupport::taper && std::isfinite(truncate)) {
    focus.end = 0.5 * truncate * truncate;
    focus.edge = std::exp(-focus.end);
    focus.unit = 1 / (1 - focus.edge * (1 + focus.end));
  }
  return focus;
}

}  // namespace atlas_kernels
