#include "ma_maps/ma_maps.h"

#include "common/parallel.h"
#include "ma_maps/lines_cpu.h"

namespace atlas_kernels {
namespace {

// Studies first, first + step, ... of a problem: what one thread draws with one set of planes.
struct Share {
  const FociProblem& problem;
  const Foci& foci;
  int64_t first, step;
};

// For each study b of the share: begin(b), then in each plane draw(patch) for each focus and
// read(x, y) for each line drawn on.
template <typename Begin, typename Draw, typename Read>
ATLAS_INLINE void for_each_plane(const Share& share, const Begin& begin, const Draw& draw,
                                 const Read& read) {
  const int64_t n_lines = share.problem.mask.shape[1];
  Touched touched(n_lines);
  for (int64_t b = share.first; b < share.problem.n_studies; b += share.step) {
    const Study study = share.foci.study(b);
    begin(b);
    Window window;
    for (int64_t x = 0; x < share.problem.mask.shape[0]; ++x) {
      window.move_to(x, study);
      for (int64_t f = window.begin; f < window.end; ++f) {
        const Patch patch = patch_of(study, study.foci[f], x, n_lines);
        touched.add(patch.y, patch.n);
        draw(patch);
      }
      touched.take([&](int64_t y) { read(x, y); });
    }
  }
}

ATLAS_INLINE void count_share(const Share& share, int64_t* sizes) {
  const MaskRows mask = share.problem.mask;
  const uint64_t* const patterns = share.problem.supports.patterns;
  const int64_t words = mask.words(), n_lines = mask.shape[1];
  BitPlane covered(n_lines, words);
  int64_t* size = nullptr;
  for_each_plane(
      share, [&](int64_t b) { *(size = sizes + b) = 0; },
      [&](const Patch& patch) { covered.draw(patch, patterns); },
      [&](int64_t x, int64_t y) {
        const uint64_t* bits = mask.bits + (x * n_lines + y) * words;
        for (int64_t w = 0; w < words; ++w) *size += count_bits(covered.take(y, w) & bits[w]);
      });
}

// The arrays of the matrix.
struct Csr {
  float value;
  const int64_t* starts;
  int32_t* indices;
  float* data;
};

// to[i] = value(i) for i in [0, n), sixteen at a time: what is written beyond n, but before `end`, is
// written again later.
template <typename T, typename Value>
ATLAS_INLINE void write_run(T* ATLAS_RESTRICT to, const T* end, int64_t n, const Value& value) {
  if (end - to >= n + 15) {
    for (int64_t i = 0; i < n; i += 16) {
      for (int64_t j = i; j < i + 16; ++j) to[j] = value(j);
    }
  } else {
    for (int64_t i = 0; i < n; ++i) to[i] = value(i);
  }
}

template <MaKind kind>
ATLAS_INLINE void fill_share(const Share& share, const Csr& csr) {
  const MaskRows mask = share.problem.mask;
  const Supports supports = share.problem.supports;
  const float* const table = static_cast<const float*>(supports.values);
  const int64_t words = mask.words(), n_lines = mask.shape[1];
  const float value = csr.value;
  BitPlane covered(n_lines, words);
  ValuePlane<float> plane(n_lines, mask.shape[2], supports.stride);
  int64_t length = 0, at = 0, end = 0;
  const auto begin = [&](int64_t b) {
    length = (supports.boxes[share.problem.kinds[b]].z_length + 7) & ~int64_t(7);
    at = csr.starts[b];
    end = csr.starts[b + 1];
  };
  const auto draw = [&](const Patch& patch) {
    covered.draw(patch, supports.patterns);
    if (kind != MaKind::cover) plane.template draw<kind>(patch, table, supports.stride, length);
  };
  const auto read = [&](int64_t x, int64_t y) {
    for (int64_t w = 0; w < words; ++w) {
      const int64_t place = (x * n_lines + y) * words + w;
      const uint64_t word = covered.take(y, w) & mask.bits[place];
      for_each_run(mask, place, w, word, [&](int64_t z, int run, int64_t column) {
        const int32_t first = static_cast<int32_t>(column);
        const float* values = plane.line(y) + z;
        write_run(csr.indices + at, csr.indices + end, run,
                  [&](int64_t i) { return first + static_cast<int32_t>(i); });
        write_run(csr.data + at, csr.data + end, run, [&](int64_t i) {
          return kind == MaKind::cover ? value : kind == MaKind::count ? values[i] * value : values[i];
        });
        at += run;
      });
    }
    if (kind != MaKind::cover) plane.take(y, nullptr);
  };
  for_each_plane(share, begin, draw, read);
}

ATLAS_MULTIVERSION_V3 void count(const Share& share, int64_t* sizes) { count_share(share, sizes); }
ATLAS_MULTIVERSION_V3 void fill_cover(const Share& share, const Csr& csr) {
  fill_share<MaKind::cover>(share, csr);
}
ATLAS_MULTIVERSION_V3 void fill_count(const Share& share, const Csr& csr) {
  fill_share<MaKind::count>(share, csr);
}
ATLAS_MULTIVERSION_V3 void fill_max(const Share& share, const Csr& csr) {
  fill_share<MaKind::max>(share, csr);
}

// Calls body(share) on each thread's shares: several, because studies differ in size.
template <typename Body>
void for_each_share(const FociProblem& problem, int threads, const Body& body) {
  const Foci foci(problem);
  const int64_t shares = threads > 1 ? 8 * static_cast<int64_t>(threads) : 1;
  parallel_for(shares, threads, [&](int64_t i) { body(Share{problem, foci, i, shares}); });
}

}  // namespace

void ma_sizes(const FociProblem& problem, int64_t* sizes, int threads) {
  for_each_share(problem, threads, [&](const Share& share) { count(share, sizes); });
}

void ma_fill(const FociProblem& problem, MaKind kind, float value, const int64_t* starts,
             int32_t* indices, float* data, int threads) {
  const Csr csr{value, starts, indices, data};
  const auto fill = kind == MaKind::cover   ? fill_cover
                    : kind == MaKind::count ? fill_count
                                            : fill_max;
  for_each_share(problem, threads, [&](const Share& share) { fill(share, csr); });
}

}  // namespace atlas_kernels
