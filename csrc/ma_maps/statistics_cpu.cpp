#include <array>
#include <cmath>
#include <vector>

#include "ma_maps/lines_cpu.h"
#include "ma_maps/ma_maps.h"

namespace atlas_kernels {
namespace {

// Calls draw(b, patch) for each focus of study b in a plane, then read(b, x, y) for each line drawn on;
// for all studies, then end(x).
template <typename Draw, typename Read, typename End>
ATLAS_INLINE void for_each_plane(const FociProblem& problem, const Draw& draw, const Read& read,
                                 const End& end) {
  const Foci foci(problem);
  const int64_t n_lines = problem.mask.shape[1];
  Touched touched(n_lines);
  std::vector<Window> windows(static_cast<size_t>(problem.n_studies));
  for (int64_t x = 0; x < problem.mask.shape[0]; ++x) {
    for (int64_t b = 0; b < problem.n_studies; ++b) {
      const Study study = foci.study(b);
      Window& window = windows[b];
      window.move_to(x, study);
      for (int64_t f = window.begin; f < window.end; ++f) {
        const Patch patch = patch_of(study, study.foci[f], x, n_lines);
        touched.add(patch.y, patch.n);
        draw(b, patch);
      }
      touched.take([&](int64_t y) { read(b, x, y); });
    }
    end(x);
  }
}

// The statistic of one plane.
class Sums {
 public:
  Sums(const int64_t* shape, int64_t row_length)
      : margin_(row_length + 16), stride_(shape[2] + 2 * margin_), values_(shape[1] * stride_) {}
  ATLAS_INLINE double* line(int64_t y) { return values_.data() + y * stride_ + margin_; }

  // Calls write(column, sum) for each voxel of the mask in plane x and sets all sums to 0.
  template <typename Write>
  ATLAS_INLINE void take(const MaskRows& mask, int64_t x, const Write& write) {
    const int64_t words = mask.words();
    for (int64_t y = 0; y < mask.shape[1]; ++y) {
      for (int64_t w = 0; w < words; ++w) {
        const int64_t place = (x * mask.shape[1] + y) * words + w;
        for_each_run(mask, place, w, mask.bits[place], [&](int64_t z, int length, int64_t column) {
          for (int i = 0; i < length; ++i) write(column + i, line(y)[z + i]);
        });
      }
    }
    std::fill(values_.begin(), values_.end(), 0.0);
  }

 private:
  int64_t margin_, stride_;
  std::vector<double> values_;
};

// ---- (M)KDA -----------------------------------------------------------------------------------

// What four voxels get at once: for each of the sixteen patterns of four bits, the weight where a bit
// is set.
using Fours = std::array<double, 64>;

Fours fours_of(double weight) {
  Fours fours;
  for (int i = 0; i < 64; ++i) fours[i] = (i / 4) >> (i % 4) & 1 ? weight : 0.0;
  return fours;
}

ATLAS_INLINE void add_bits(double* line, uint64_t word, const Fours& fours) {
  if (!word) return;
  const int skipped = lowest_bit(word) & ~3;
  word >>= skipped;
  for (line += skipped; word; word >>= 4, line += 4) {
    const double* add = fours.data() + 4 * (word & 15);
    for (int i = 0; i < 4; ++i) line[i] += add[i];
  }
}

ATLAS_INLINE void coverage_of_planes(const FociProblem& problem, const double* weights, bool counted,
                                     float* out) {
  const int64_t words = problem.mask.words(), n_lines = problem.mask.shape[1];
  const uint64_t* patterns = problem.supports.patterns;
  std::vector<Fours> fours;
  for (int64_t b = 0; b < problem.n_studies; ++b) fours.push_back(fours_of(weights[b]));
  BitPlane covered(n_lines, words);
  Sums sums(problem.mask.shape, counted ? 64 : 0);
  for_each_plane(
      problem,
      [&](int64_t b, const Patch& patch) {
        if (!counted) return covered.draw(patch, patterns);
        for (int64_t i = 0; i < patch.n; ++i) {
          add_bits(sums.line(patch.y + i) + patch.z, patterns[patch.row + i], fours[b]);
        }
      },
      [&](int64_t b, int64_t x, int64_t y) {
        const uint64_t* mask = problem.mask.bits + (x * n_lines + y) * words;
        for (int64_t w = 0; w < words; ++w) {
          add_bits(sums.line(y) + 64 * w, covered.take(y, w) & mask[w], fours[b]);
        }
      },
      [&](int64_t x) {
        sums.take(problem.mask, x,
                  [&](int64_t column, double sum) { out[column] = static_cast<float>(sum); });
      });
}

// ---- ALE --------------------------------------------------------------------------------------

ATLAS_INLINE void ale_of_planes(const FociProblem& problem, float* out) {
  const double* table = static_cast<const double*>(problem.supports.values);
  const int64_t stride = problem.supports.stride;
  ValuePlane<double> plane(problem.mask.shape[1], problem.mask.shape[2], stride);
  Sums sums(problem.mask.shape, stride);
  for_each_plane(
      problem,
      [&](int64_t b, const Patch& patch) {
        const int64_t length = problem.supports.boxes[problem.kinds[b]].z_length + 3;
        plane.draw<MaKind::max>(patch, table, stride, length & ~int64_t(3));
      },
      [&](int64_t, int64_t, int64_t y) { plane.take(y, sums.line(y)); },
      [&](int64_t x) {
        sums.take(problem.mask, x, [&](int64_t column, double sum) {
          out[column] = static_cast<float>(1.0 - std::exp(-sum));
        });
      });
}

ATLAS_MULTIVERSION void coverage(const FociProblem& problem, const double* weights, bool counted,
                                 float* out) {
  coverage_of_planes(problem, weights, counted, out);
}

ATLAS_MULTIVERSION_V3 void ale(const FociProblem& problem, float* out) {
  ale_of_planes(problem, out);
}

}  // namespace

void coverage_statistic(const FociProblem& problem, const double* weights, bool count, float* out) {
  coverage(problem, weights, count, out);
}

void ale_statistic(const FociProblem& problem, float* out) { ale(problem, out); }

}  // namespace atlas_kernels
