// The largest error of a convolution and of its weight gradient, relative to the largest value, against the
// definition in doubles. test_dense_block.py builds it for each level of the processor; prints "none" where
// the processor lacks it.
#include "dense_block/winograd_cpu.cpp"

#include <cmath>
#include <cstdio>
#include <random>

using namespace atlas_kernels;

namespace {

std::mt19937 generator(1);

std::vector<float> numbers(int64_t n) {
  std::vector<float> values(n);
  for (float& value : values) value = generator() / 2147483648.0f - 1;
  return values;
}

double error(const std::vector<float>& got, const std::vector<double>& want) {
  double worst = 0, most = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    worst = std::fmax(worst, std::isfinite(got[i]) ? std::fabs(got[i] - want[i]) : INFINITY);
    most = std::fmax(most, std::fabs(want[i]));
  }
  return worst / most;
}

void run(const Convolution& problem) {
  const auto [nx, ny, nz] = problem.shape;
  const int64_t voxels = problem.samples * nx * ny * nz, in = problem.in_channels;
  const std::vector<float> a = numbers(voxels * problem.in_row), g = numbers(voxels * problem.out_row);
  const std::vector<float> w = numbers(problem.out_channels * in * 27);
  std::vector<float> y(g.size(), 0), dw(w.size(), 0);
  std::vector<double> exact_y(y.size()), exact_dw(w.size());
  for (int64_t v = 0; v < voxels; ++v) {
    for (int tap = 0; tap < 27; ++tap) {
      const int64_t d = problem.dilation, x = v / nz / ny % nx + d * (tap / 9 - 1);
      const int64_t yy = v / nz % ny + d * (tap / 3 % 3 - 1), z = v % nz + d * (tap % 3 - 1);
      if (x < 0 || x >= nx || yy < 0 || yy >= ny || z < 0 || z >= nz) continue;
      const float* from = &a[(((v / nz / ny / nx * nx + x) * ny + yy) * nz + z) * problem.in_row];
      for (int64_t o = 0; o < problem.out_channels; ++o) {
        for (int64_t c = 0; c < in; ++c) {
          const int64_t weight = (o * in + c) * 27 + tap, to = v * problem.out_row + o;
          exact_y[to] += double(from[c]) * w[weight];
          exact_dw[weight] += double(from[c]) * g[to];
        }
      }
    }
  }
  convolution_cpu(problem, a.data(), {w.data(), in * 27, 27, 1}, y.data(), 2);
  winograd_weight_gradient(problem, a.data(), g.data(), dw.data(), 2);
  std::printf("%g %g\n", error(y, exact_y), error(dw, exact_dw));
}

}  // namespace

int main() {
#if defined(__x86_64__)
  if (&best_code() != &code_any && !__builtin_cpu_supports("avx2")) return std::puts("none"), 0;
  if (&best_code() == &code_avx512 && !__builtin_cpu_supports("avx512f")) return std::puts("none"), 0;
#endif
  run({2, {9, 7, 11}, 32, 16, 1, 32, 16});
  run({1, {7, 8, 5}, 16, 48, 2, 20, 50});
  run({2, {5, 3, 9}, 7, 21, 3, 9, 24});
  run({1, {1, 2, 30}, 33, 3, 1, 33, 3});
}
