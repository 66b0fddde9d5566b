#include "ma_maps/ma_maps.h"

#include "common/parallel.h"
#include "ma_maps/lines.h"

namespace atlas_kernels {
namespace {

// Calls draw(patch) for each focus of a study in each plane, then read(x, y) for each line drawn on.
template <typename Draw, typename Read>
ATLAS_INLINE void for_each_plane(const FociProblem& problem, const Study& study, const Draw& draw,
                                 const Read& read) {
  const int64_t n_lines = problem.mask.shape[1];
  Touched touched(n_lines);
  Window window;
  for (int64_t x = 0; x < problem.mask.shape[0]; ++x) {
    window.move_to(x, study);
    for (int64_t f = window.begin; f < window.end; ++f) {
      const Patch patch = patch_of(study, study.foci[f], x, n_lines);
      touched.add(patch.y, patch.n);
      draw(patch);
    }
    touched.take([&](int64_t y) { read(x, y); });
  }
}

ATLAS_INLINE int64_t count_study(const FociProblem& problem, const Study& study) {
  const int64_t words = problem.mask.words(), n_lines = problem.mask.shape[1];
  BitPlane covered(n_lines, words);
  int64_t size = 0;
  for_each_plane(
      problem, study, [&](const Patch& patch) { covered.draw(patch, problem.supports.patterns); },
      [&](int64_t x, int64_t y) {
        const uint64_t* mask = problem.mask.bits + (x * n_lines + y) * words;
        for (int64_t w = 0; w < words; ++w) size += count_bits(covered.take(y, w) & mask[w]);
      });
  return size;
}

template <MaKind kind>
ATLAS_INLINE void fill_study(const FociProblem& problem, const Study& study, float value,
                             int32_t* indices, float* data) {
  const Supports& supports = problem.supports;
  const int64_t words = problem.mask.words(), n_lines = problem.mask.shape[1];
  const int64_t length = (study.box.z_length + 7) & ~int64_t(7);
  BitPlane covered(n_lines, words);
  ValuePlane<float> plane(kind == MaKind::cover ? 0 : n_lines, problem.mask.shape[2]);
  const auto draw = [&](const Patch& patch) {
    covered.draw(patch, supports.patterns);
    if constexpr (kind != MaKind::cover) {
      plane.template draw<kind>(patch, static_cast<const float*>(supports.values), supports.stride, length);
    }
  };
  const auto read = [&](int64_t x, int64_t y) {
    for (int64_t w = 0; w < words; ++w) {
      const int64_t place = (x * n_lines + y) * words + w;
      const uint64_t word = covered.take(y, w) & problem.mask.bits[place];
      for_each_run(problem.mask, place, w, word, [&](int64_t z, int run, int64_t column) {
        for (int i = 0; i < run; ++i) indices[i] = static_cast<int32_t>(column) + i;
        if constexpr (kind == MaKind::cover) {
          for (int i = 0; i < run; ++i) data[i] = value;
        } else {
          const float* ATLAS_RESTRICT values = plane.line(y) + z;
          for (int i = 0; i < run; ++i) data[i] = kind == MaKind::count ? values[i] * value : values[i];
        }
        indices += run;
        data += run;
      });
    }
    if constexpr (kind != MaKind::cover) plane.take(y, nullptr);
  };
  for_each_plane(problem, study, draw, read);
}

ATLAS_MULTIVERSION int64_t count(const FociProblem& problem, const Study& study) {
  return count_study(problem, study);
}
ATLAS_MULTIVERSION void fill_cover(const FociProblem& problem, const Study& study, float value,
                                   int32_t* indices, float* data) {
  fill_study<MaKind::cover>(problem, study, value, indices, data);
}
ATLAS_MULTIVERSION void fill_count(const FociProblem& problem, const Study& study, float value,
                                   int32_t* indices, float* data) {
  fill_study<MaKind::count>(problem, study, value, indices, data);
}
ATLAS_MULTIVERSION void fill_max(const FociProblem& problem, const Study& study, float value,
                                 int32_t* indices, float* data) {
  fill_study<MaKind::max>(problem, study, value, indices, data);
}

}  // namespace

void ma_sizes(const FociProblem& problem, int64_t* sizes, int threads) {
  const Foci foci(problem);
  parallel_for(problem.n_studies, threads,
               [&](int64_t b) { sizes[b] = count(problem, foci.study(b)); });
}

void ma_fill(const FociProblem& problem, MaKind kind, float value, const int64_t* starts,
             int32_t* indices, float* data, int threads) {
  const Foci foci(problem);
  const auto fill = kind == MaKind::cover   ? fill_cover
                    : kind == MaKind::count ? fill_count
                                            : fill_max;
  parallel_for(problem.n_studies, threads, [&](int64_t b) {
    fill(problem, foci.study(b), value, indices + starts[b], data + starts[b]);
  });
}

}  // namespace atlas_kernels
