#include <array>
#include <cmath>
#include <vector>

#include "ma_maps/lines_cpu.h"
#include "ma_maps/ma_maps.h"

namespace atlas_kernels {
namespace {

// In each plane, calls draw(b, patch) for each focus of study b that reaches it, then drawn(b, x) if any
// did; for all studies, then end(x).
template <typename Draw, typename Drawn, typename End>
ATLAS_INLINE void for_each_plane(const FociProblem& problem, const Draw& draw, const Drawn& drawn,
                                 const End& end) {
  const Foci foci(problem);
  const int64_t n_lines = problem.mask.shape[1];
  std::vector<Window> windows(static_cast<size_t>(problem.n_studies));
  for (int64_t x = 0; x < problem.mask.shape[0]; ++x) {
    for (int64_t b = 0; b < problem.n_studies; ++b) {
      const Study study = foci.study(b);
      Window& window = windows[b];
      window.move_to(x, study);
      for (int64_t f = window.begin; f < window.end; ++f) {
        draw(b, patch_of(study, study.foci[f], x, n_lines));
      }
      if (window.begin < window.end) drawn(b, x);
    }
    end(x);
  }
}

// Calls visit(place, y, w) for each word of the mask in plane x.
template <typename Visit>
ATLAS_INLINE void for_each_word(const MaskRows& mask, int64_t x, const Visit& visit) {
  const int64_t words = mask.words();
  for (int64_t y = 0; y < mask.shape[1]; ++y) {
    for (int64_t w = 0; w < words; ++w) {
      const int64_t place = (x * mask.shape[1] + y) * words + w;
      if (mask.bits[place]) visit(place, y, w);
    }
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
    for_each_word(mask, x, [&](int64_t place, int64_t y, int64_t w) {
      for_each_run(mask, place, w, mask.bits[place], [&](int64_t z, int length, int64_t column) {
        for (int i = 0; i < length; ++i) write(column + i, line(y)[z + i]);
      });
    });
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
  Touched touched(n_lines);
  Sums sums(problem.mask.shape, counted ? 64 : 0);
  for_each_plane(
      problem,
      [&](int64_t b, const Patch& patch) {
        if (counted) {
          for (int64_t i = 0; i < patch.n; ++i) {
            add_bits(sums.line(patch.y + i) + patch.z, patterns[patch.row + i], fours[b]);
          }
        } else {
          touched.add(patch.y, patch.n);
          covered.draw(patch, patterns);
        }
      },
      [&](int64_t b, int64_t x) {
        touched.take([&](int64_t y) {
          const uint64_t* mask = problem.mask.bits + (x * n_lines + y) * words;
          for (int64_t w = 0; w < words; ++w) {
            add_bits(sums.line(y) + 64 * w, covered.take(y, w) & mask[w], fours[b]);
          }
        });
      },
      [&](int64_t x) {
        sums.take(problem.mask, x,
                  [&](int64_t column, double sum) { out[column] = static_cast<float>(sum); });
      });
}

// How many studies cover each voxel of a plane. Digit d of all counts, in binary, is a plane of bits: so
// one addition serves the 64 voxels of a word, and studies are added eight at a time.
class Counts {
 public:
  Counts(const MaskRows& mask, int64_t n_studies)
      : n_lines_(mask.shape[1]), size_(n_lines_ * mask.words()),
        planes_(8, BitPlane(n_lines_, mask.words())) {
    while (n_studies >> n_digits_) ++n_digits_;
    digits_.resize(n_digits_ * size_);
    carry_.resize(size_);
  }

  // What a study covers is drawn on the plane, then added.
  ATLAS_INLINE BitPlane& plane() { return planes_[n_drawn_]; }
  ATLAS_INLINE void add() {
    if (++n_drawn_ == 8) add_planes();
  }

  // Calls write(column, count) for each voxel of the mask in plane x and sets all counts to 0.
  template <typename Write>
  ATLAS_INLINE void take(const MaskRows& mask, int64_t x, const Write& write) {
    add_planes();
    for_each_word(mask, x, [&](int64_t place, int64_t y, int64_t w) ATLAS_INLINED {
      const std::array<uint32_t, 64> counts = counts_of(w * n_lines_ + y);
      for_each_run(mask, place, w, mask.bits[place], [&](int64_t z, int length, int64_t column) {
        for (int i = 0; i < length; ++i) write(column + i, counts[(z & 63) + i]);
      });
    });
    std::fill(digits_.begin(), digits_.end(), 0);
  }

 private:
  // Adds three digits: `a` becomes the lower one of the sum, the upper one is returned.
  static ATLAS_INLINE uint64_t add_digits(uint64_t& a, uint64_t b, uint64_t c) {
    const uint64_t odd = a ^ b, carry = (a & b) | (odd & c);
    a = odd ^ c;
    return carry;
  }

  // The same, and erases b and c.
  static ATLAS_INLINE uint64_t take_digits(uint64_t& a, uint64_t& b, uint64_t& c) {
    const uint64_t carry = add_digits(a, b, c);
    b = c = 0;
    return carry;
  }

  ATLAS_INLINE void add_planes() {
    const int64_t size = size_;
    uint64_t *ones = digits_.data(), *twos = ones + size, *fours = twos + size, *carry = carry_.data();
    uint64_t* p[8];
    for (int i = 0; i < 8; ++i) p[i] = planes_[i].words();
    ATLAS_INDEPENDENT
    for (int64_t i = 0; i < size; ++i) {
      const uint64_t two_a = take_digits(ones[i], p[0][i], p[1][i]);
      const uint64_t two_b = take_digits(ones[i], p[2][i], p[3][i]);
      const uint64_t two_c = take_digits(ones[i], p[4][i], p[5][i]);
      const uint64_t two_d = take_digits(ones[i], p[6][i], p[7][i]);
      const uint64_t four_a = add_digits(twos[i], two_a, two_b);
      const uint64_t four_b = add_digits(twos[i], two_c, two_d);
      carry[i] = add_digits(fours[i], four_a, four_b);
    }
    for (int64_t d = 3; d < n_digits_; ++d) {
      uint64_t* digit = ones + d * size;
      ATLAS_INDEPENDENT
      for (int64_t i = 0; i < size; ++i) carry[i] = add_digits(digit[i], carry[i], 0);
    }
    n_drawn_ = 0;
  }

  // In halves, because a vector holds twice as many of those.
  ATLAS_INLINE std::array<uint32_t, 64> counts_of(int64_t word) const {
    std::array<uint32_t, 64> counts{};
    for (int64_t d = 0; d < n_digits_; ++d) {
      const uint64_t digit = digits_[d * size_ + word];
      const uint32_t low = static_cast<uint32_t>(digit), high = static_cast<uint32_t>(digit >> 32);
      for (int i = 0; i < 32; ++i) counts[i] |= (low >> i & 1) << d;
      for (int i = 0; i < 32; ++i) counts[32 + i] |= (high >> i & 1) << d;
    }
    return counts;
  }

  int64_t n_lines_, size_, n_digits_ = 3, n_drawn_ = 0;
  std::vector<BitPlane> planes_;
  std::vector<uint64_t> digits_, carry_;
};

// Where all studies have one weight, the sum is a matter of their number.
ATLAS_INLINE void equal_coverage_of_planes(const FociProblem& problem, double weight, float* out) {
  std::vector<float> sums;
  double sum = 0.0;
  for (int64_t n = 0; n <= problem.n_studies; ++n, sum += weight) {
    sums.push_back(static_cast<float>(sum));
  }
  Counts counts(problem.mask, problem.n_studies);
  for_each_plane(
      problem,
      [&](int64_t, const Patch& patch) { counts.plane().draw(patch, problem.supports.patterns); },
      [&](int64_t, int64_t) { counts.add(); },
      [&](int64_t x) ATLAS_INLINED {
        counts.take(problem.mask, x,
                    [&](int64_t column, uint32_t count) { out[column] = sums[count]; });
      });
}

// ---- ALE --------------------------------------------------------------------------------------

ATLAS_INLINE void ale_of_planes(const FociProblem& problem, float* out) {
  const double* table = static_cast<const double*>(problem.supports.values);
  const int64_t stride = problem.supports.stride;
  ValuePlane<double> plane(problem.mask.shape[1], problem.mask.shape[2], stride);
  Touched touched(problem.mask.shape[1]);
  Sums sums(problem.mask.shape, stride);
  for_each_plane(
      problem,
      [&](int64_t b, const Patch& patch) {
        const int64_t length = problem.supports.boxes[problem.kinds[b]].z_length + 3;
        touched.add(patch.y, patch.n);
        plane.draw<MaKind::max>(patch, table, stride, length & ~int64_t(3));
      },
      [&](int64_t, int64_t) {
        touched.take([&](int64_t y) { plane.take(y, sums.line(y)); });
      },
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

ATLAS_MULTIVERSION void equal_coverage(const FociProblem& problem, double weight, float* out) {
  equal_coverage_of_planes(problem, weight, out);
}

ATLAS_MULTIVERSION_V3 void ale(const FociProblem& problem, float* out) {
  ale_of_planes(problem, out);
}

}  // namespace

void coverage_statistic(const FociProblem& problem, const double* weights, bool count, float* out) {
  const double* end = weights + problem.n_studies;
  const bool equal = std::all_of(weights, end, [&](double weight) { return weight == *weights; });
  if (equal && !count) return equal_coverage(problem, problem.n_studies ? *weights : 0.0, out);
  coverage(problem, weights, count, out);
}

void ale_statistic(const FociProblem& problem, float* out) { ale(problem, out); }

}  // namespace atlas_kernels
