// Clusters by runs: each line's voxels above the threshold are runs along z; a run joins those runs of
// the lines before it along y and x that it overlaps (union-find).
#include <cmath>
#include <numeric>

#include "ma_maps/lines_cpu.h"
#include "ma_maps/ma_maps.h"

namespace atlas_kernels {
namespace {

struct Run {
  int64_t begin, end;  // along z
  int64_t column;      // of its first voxel
};

// Which of at most 64 voxels lie above the limit, without a branch for each.
ATLAS_INLINE uint64_t bits_above(const float* statistic, int64_t n, float limit) {
  uint64_t bits = 0;
  for (int64_t i = 0; i < n; ++i) bits |= static_cast<uint64_t>(statistic[i] > limit) << i;
  return bits;
}

// The greatest float that is not above the threshold: a float exceeds both or neither.
float limit_of(double threshold) {
  const float near = static_cast<float>(threshold);
  return static_cast<double>(near) > threshold ? std::nextafter(near, -1.0f) : near;
}

class Clusters {
 public:
  ATLAS_INLINE Clusters(const MaskRows& mask, const float* statistic, double threshold) : starts_{0} {
    const int64_t n_lines = mask.shape[0] * mask.shape[1], words = mask.words();
    const float limit = limit_of(threshold);
    for (int64_t line = 0; line < n_lines; ++line) {
      for (int64_t w = 0; w < words; ++w) {
        const int64_t place = line * words + w;
        uint64_t above = 0;
        for_each_run(mask, place, w, mask.bits[place], [&](int64_t z, int length, int64_t column) {
          above |= bits_above(statistic + column, length, limit) << (z & 63);
        });
        for_each_run(mask, place, w, above,
                     [&](int64_t z, int length, int64_t column) { add(z, length, column); });
      }
      starts_.push_back(static_cast<int64_t>(runs_.size()));
    }
    parents_.resize(runs_.size());
    std::iota(parents_.begin(), parents_.end(), int64_t(0));
    for (int64_t line = 0; line < n_lines; ++line) {
      if (line % mask.shape[1]) join(line, line - 1);
      if (line >= mask.shape[1]) join(line, line - mask.shape[1]);
    }
  }

  const std::vector<Run>& runs() const { return runs_; }

  int64_t root(int64_t run) {
    while (parents_[run] != run) run = parents_[run] = parents_[parents_[run]];
    return run;
  }

 private:
  // A run may go on in the next word.
  void add(int64_t z, int64_t length, int64_t column) {
    if (static_cast<int64_t>(runs_.size()) > starts_.back() && runs_.back().end == z) {
      runs_.back().end += length;
    } else {
      runs_.push_back({z, z + length, column});
    }
  }

  void join(int64_t line, int64_t other) {
    int64_t a = starts_[line], b = starts_[other];
    const int64_t a_end = starts_[line + 1], b_end = starts_[other + 1];
    while (a < a_end && b < b_end) {
      if (runs_[a].begin < runs_[b].end && runs_[b].begin < runs_[a].end) {
        const int64_t p = root(a), q = root(b);
        parents_[std::max(p, q)] = std::min(p, q);
      }
      runs_[a].end < runs_[b].end ? ++a : ++b;
    }
  }

  std::vector<Run> runs_;
  std::vector<int64_t> starts_;  // of each line's runs
  std::vector<int64_t> parents_;
};

ATLAS_INLINE ClusterMaxima maxima_of(const MaskRows& mask, const float* statistic, double threshold) {
  Clusters clusters(mask, statistic, threshold);
  const std::vector<Run>& runs = clusters.runs();
  std::vector<ClusterMaxima> totals(runs.size());
  ClusterMaxima greatest{0, 0.0};
  for (size_t run = 0; run < runs.size(); ++run) {
    ClusterMaxima& total = totals[clusters.root(static_cast<int64_t>(run))];
    const int64_t length = runs[run].end - runs[run].begin;
    total.size += length;
    for (int64_t i = 0; i < length; ++i) {
      total.mass += static_cast<double>(statistic[runs[run].column + i]) - threshold;
    }
    greatest.size = std::max(greatest.size, total.size);
    greatest.mass = std::max(greatest.mass, total.mass);
  }
  return greatest;
}

ATLAS_MULTIVERSION ClusterMaxima maxima(const MaskRows& mask, const float* statistic,
                                        double threshold) {
  return maxima_of(mask, statistic, threshold);
}

}  // namespace

ClusterMaxima cluster_maxima(const MaskRows& mask, const float* statistic, double threshold) {
  return maxima(mask, statistic, threshold);
}

}  // namespace atlas_kernels
