#include "ma_maps/lines_cpu.h"

#include "common/checks.h"

namespace atlas_kernels {
namespace {

bool overlaps(int64_t first, int64_t length, int64_t size) {
  return first < size && first + length > 0;
}

bool reaches(const Voxel& focus, const SupportBox& box, const int64_t* shape) {
  return overlaps(focus.x + box.x_first, box.x_length, shape[0]) &&
         overlaps(focus.y + box.y_first, box.y_length, shape[1]) &&
         overlaps(focus.z + box.z_first, box.z_length, shape[2]);
}

}  // namespace

Foci::Foci(const FociProblem& problem) : starts_{0} {
  require(problem.n_studies >= 0, "ma_maps: negative number of studies");
  require(!problem.supports.values || problem.supports.stride % 8 == 0,
          "ma_maps: stride must be a multiple of 8");
  require(problem.offsets[0] == 0, "ma_maps: offsets must start at 0");
  const auto by_x = [](const Voxel& a, const Voxel& b) { return a.x < b.x; };
  for (int64_t b = 0; b < problem.n_studies; ++b) {
    require(problem.offsets[b] <= problem.offsets[b + 1], "ma_maps: offsets must not decrease");
    boxes_.push_back(problem.supports.boxes[problem.kinds[b]]);
    for (int64_t p = problem.offsets[b]; p < problem.offsets[b + 1]; ++p) {
      const int32_t* at = problem.ijk + 3 * p;
      const Voxel focus{at[0], at[1], at[2]};
      if (reaches(focus, boxes_.back(), problem.mask.shape)) voxels_.push_back(focus);
    }
    std::sort(voxels_.begin() + starts_.back(), voxels_.end(), by_x);
    starts_.push_back(static_cast<int64_t>(voxels_.size()));
  }
}

int64_t count_mask(const uint64_t* bits, int64_t n_words, int64_t* first) {
  int64_t n = 0;
  for (int64_t w = 0; w < n_words; ++w) {
    first[w] = n;
    n += count_bits(bits[w]);
  }
  return n;
}

}  // namespace atlas_kernels
