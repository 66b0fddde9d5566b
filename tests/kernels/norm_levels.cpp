// Prints the largest errors of group_norm_film's values and gradients beside its own in double, of the largest
// value: a line for float, bfloat16 and float16 each. test_group_norm_film.py builds it for each width of
// vectors; "none" where the processor has no such ones.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "group_norm_film/group_norm_film.h"

using namespace atlas_kernels;

namespace {

struct Results {
  std::vector<double> y, dx, parameters;
};

template <typename T>
Results run(GroupNormFilm problem, const std::vector<double>& given) {
  const auto size = static_cast<size_t>(problem.samples * problem.channels * problem.voxels);
  const auto groups = static_cast<size_t>(problem.samples * problem.groups);
  const auto c = static_cast<size_t>(problem.channels), nc = static_cast<size_t>(problem.samples) * c;
  std::vector<T> x(size), dy(size), y(size), dx(size);
  std::vector<double> mean(groups), rstd(groups);
  for (size_t i = 0; i < size; ++i) {
    narrow(static_cast<Compute<T>>(given[i]), x[i]);
    narrow(static_cast<Compute<T>>(given[size - 1 - i]), dy[i]);
  }
  Results results;
  results.parameters.resize(2 * c + 2 * nc);
  double* to = results.parameters.data();
  group_norm_film_cpu(problem, x.data(), y.data(), mean.data(), rstd.data(), 2);
  group_norm_film_backward_cpu(problem, dy.data(), x.data(), mean.data(), rstd.data(), dx.data(), dx.data(),
                               false, {to, to + c, to + 2 * c, to + 2 * c + nc}, 2);
  for (size_t i = 0; i < size; ++i) {
    results.y.push_back(static_cast<double>(widen(y[i])));
    results.dx.push_back(static_cast<double>(widen(dx[i])));
  }
  return results;
}

double error(const std::vector<double>& got, const std::vector<double>& want) {
  double worst = 0, largest = 1e-30;
  for (size_t i = 0; i < got.size(); ++i) {
    if (std::isnan(got[i])) return 1;
    worst = std::max(worst, std::fabs(got[i] - want[i]));
    largest = std::max(largest, std::fabs(want[i]));
  }
  return worst / largest;
}

template <typename T>
void compare() {
  std::mt19937 generator(1);
  std::normal_distribution<double> normal;
  double y = 0, dx = 0, parameters = 0;
  for (const int64_t channels : {1, 3, 8, 16, 32, 48, 64, 65, 80, 96}) {
    for (const int64_t voxels : {1, 7, 64, 77, 4099, 70001}) {
      if (voxels > 4099 && channels != 16) continue;  // large enough to go past the cache
      for (const bool last : {false, true}) {
        for (const bool silu : {false, true}) {
          std::vector<double> given(static_cast<size_t>(2 * channels * voxels)), film(6 * channels);
          for (double& g : given) {  // what all types hold exactly
            bfloat16 rounded;
            narrow(static_cast<float>(4 * normal(generator)), rounded);
            g = widen(rounded);
          }
          for (double& f : film) f = normal(generator);
          const double* of = film.data();
          const GroupNormFilm problem{2,          channels,          voxels,            1,    last, channels,
                                      of,         of + channels,     of + 2 * channels, of + 4 * channels,
                                      silu, 1e-5};
          const Results got = run<T>(problem, given), want = run<double>(problem, given);
          y = std::max(y, error(got.y, want.y));
          if (channels * voxels > 1) dx = std::max(dx, error(got.dx, want.dx));  // else 0
          parameters = std::max(parameters, error(got.parameters, want.parameters));
        }
      }
    }
  }
  std::printf("%.3g %.3g %.3g\n", y, dx, parameters);
}

bool supported() {
#if defined(__x86_64__)
  if (ATLAS_VECTOR == 32) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (ATLAS_VECTOR == 64) return __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
  return true;
}

}  // namespace

int main() {
  if (!supported()) return std::puts("none"), 0;
  compare<float>();
  compare<bfloat16>();
  compare<float16>();
}
