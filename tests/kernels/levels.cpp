// Prints a hash of splat's volumes and gradients over modes, supports, widths and kinds of coordinates.
// test_splat.py builds it with and without the loops for AVX-512: both print the same.
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "splat/splat.h"

using namespace atlas_kernels;

namespace {

std::mt19937 generator(1);

double draw(double low, double high) { return low + (high - low) * (generator() / 4294967296.0); }

template <typename T>
unsigned long long hash(const std::vector<T>& values) {
  unsigned long long sum = 1469598103934665603u;
  const auto* bytes = reinterpret_cast<const unsigned char*>(values.data());
  for (size_t i = 0; i < values.size() * sizeof(T); ++i) sum = (sum ^ bytes[i]) * 1099511628211u;
  return sum;
}

// per_mm: coordinates are multiples of 1 / per_mm, or anything for 0.
void run(SplatProblem problem, int per_mm, double width) {
  const std::vector<int64_t> offsets{0, 13, 13, 60};
  std::vector<double> peaks(180), weights(60);
  for (double& mm : peaks) {
    mm = draw(-100, 110);
    if (per_mm) mm = std::rint(mm * per_mm) / per_mm;
  }
  for (double& weight : weights) weight = problem.mode == SplatMode::union_ ? draw(0, 1) : draw(-1, 2);
  problem.peaks = peaks.data();
  problem.offsets = offsets.data();
  problem.widths = &width;
  if (problem.mode != SplatMode::sphere) problem.weights = weights.data();
  problem.n_peaks = 60;
  problem.n_studies = 3;
  const size_t size = static_cast<size_t>(3 * problem.n_elements());
  std::vector<float> volumes(size), grad(size);
  std::vector<BFloat16> halves(size);
  splat_cpu(problem, volumes.data(), 2);
  splat_cpu(problem, halves.data(), 1);
  std::printf("%016llx %016llx", hash(volumes), hash(halves));
  if (problem.mode != SplatMode::sphere) {
    for (float& g : grad) g = static_cast<float>(draw(-1, 1));
    std::vector<double> of_peaks(180), of_weights(60), of_widths(1);
    splat_backward_cpu(problem, grad.data(), of_peaks.data(), of_weights.data(), of_widths.data(), 2);
    std::printf(" %016llx %016llx %016llx", hash(of_peaks), hash(of_weights), hash(of_widths));
  }
  std::printf("\n");
}

}  // namespace

int main() {
  SplatProblem problem;
  problem.spacing[0] = 4, problem.spacing[1] = -3, problem.spacing[2] = 2;
  problem.origin[0] = -80, problem.origin[1] = 70, problem.origin[2] = -50;
  problem.truncate = 3.3;
  for (const int mode : {0, 1, 2, 3}) {
    for (const int support : {0, 1, 2}) {
      for (const int per_mm : {0, 1, 8}) {
        for (const double width : {6.0, 13.7, 44.0}) {
          problem.shape[0] = 23, problem.shape[1] = 31, problem.shape[2] = width < 44 ? 29 : 91;
          problem.mode = static_cast<SplatMode>(mode);
          problem.support = static_cast<SplatSupport>(mode == 3 ? 0 : support);
          run(problem, per_mm, width);
        }
      }
    }
  }
}
