// How ma_maps and its statistics walk over foci: study by study, plane by plane (x). All foci of a
// study are drawn into one plane, then its lines (y) are read and erased. Internal.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "common/multiversion.h"
#include "ma_maps/ma_maps.h"

namespace atlas_kernels {

#if defined(__GNUC__)
ATLAS_INLINE int lowest_bit(uint64_t word) { return __builtin_ctzll(word); }
ATLAS_INLINE int count_bits(uint64_t word) { return __builtin_popcountll(word); }
#else
inline int count_bits(uint64_t word) {
  int n = 0;
  for (; word; word &= word - 1) ++n;
  return n;
}
inline int lowest_bit(uint64_t word) { return count_bits((word & (~word + 1)) - 1); }
#endif

struct Voxel {
  int32_t x, y, z;
};

// One study's support and foci, sorted by x; those that cannot reach the grid are gone.
struct Study {
  SupportBox box;
  const Voxel* foci;
  int64_t n;
};

// A study's foci that reach a plane: moves along with x, because all have one support.
struct Window {
  int64_t begin = 0, end = 0;

  ATLAS_INLINE void move_to(int64_t x, const Study& study) {
    const int64_t first = x - study.box.x_first;
    while (end < study.n && study.foci[end].x <= first) ++end;
    while (begin < end && study.foci[begin].x + study.box.x_length <= first) ++begin;
  }
};

// The rows of one focus in one plane: `n` lines from y on, each starting at z; the first is `row`.
struct Patch {
  int64_t y, n, z, row;
};

ATLAS_INLINE Patch patch_of(const Study& study, const Voxel& focus, int64_t x, int64_t n_lines) {
  const SupportBox& box = study.box;
  const int64_t plane = x - focus.x - box.x_first, first = focus.y + box.y_first;
  const int64_t y = std::max<int64_t>(first, 0), end = std::min(first + box.y_length, n_lines);
  return {y, end - y, focus.z + box.z_first, box.rows_before + plane * box.y_length + y - first};
}

// Calls visit(z, length, column) for each run of set bits within `word`, the w-th of its line.
// `word` must lie within the mask's word: then voxels next to each other are columns next to each other.
template <typename Visit>
ATLAS_INLINE void for_each_run(const MaskRows& mask, int64_t place, int64_t w, uint64_t word,
                               const Visit& visit) {
  while (word) {
    const int z = lowest_bit(word);
    const uint64_t beyond = ~(word >> z);
    const int length = beyond ? lowest_bit(beyond) : 64;
    const uint64_t before = z ? mask.bits[place] & (~uint64_t(0) >> (64 - z)) : 0;
    visit(64 * w + z, length, mask.first[place] + count_bits(before));
    word = z + length < 64 ? word >> (z + length) << (z + length) : 0;
  }
}

// Which lines of a plane are drawn on.
class Touched {
 public:
  explicit Touched(int64_t n_lines) : words_(n_lines / 64 + 1) {}

  ATLAS_INLINE void add(int64_t y, int64_t n) {
    for (int64_t end = y + n; y < end; y = (y | 63) + 1) {
      const int64_t length = std::min<int64_t>(end - y, 64);
      words_[y >> 6] |= ~uint64_t(0) >> (64 - length) << (y & 63);
    }
  }

  // Calls visit(y) for each, in order, and forgets them.
  template <typename Visit>
  ATLAS_INLINE void take(const Visit& visit) {
    for (size_t w = 0; w < words_.size(); ++w) {
      uint64_t word = words_[w];
      words_[w] = 0;
      for (; word; word &= word - 1) visit(static_cast<int64_t>(64 * w) + lowest_bit(word));
    }
  }

 private:
  std::vector<uint64_t> words_;
};

// The bits that foci cover in a plane. The w-th words of all lines lie together: a patch is drawn many
// lines at once. Words of padding on either side take what lies outside.
class BitPlane {
 public:
  BitPlane(int64_t n_lines, int64_t words) : n_lines_(n_lines), words_(n_lines * (words + 2)) {}

  ATLAS_INLINE void draw(const Patch& patch, const uint64_t* patterns) {
    const int64_t at = patch.z + 64, n = patch.n;
    const int shift = static_cast<int>(at & 63);
    const uint64_t* from = patterns + patch.row;
    uint64_t* to = words_.data() + (at >> 6) * n_lines_ + patch.y;
    uint64_t* next = to + n_lines_;
    ATLAS_INDEPENDENT
    for (int64_t i = 0; i < n; ++i) {
      to[i] |= from[i] << shift;
      next[i] |= from[i] >> 1 >> (63 - shift);
    }
  }

  // Word w of line y is words()[w * n_lines + y].
  ATLAS_INLINE uint64_t* words() { return words_.data() + n_lines_; }

  // Returns word w of line y and erases it.
  ATLAS_INLINE uint64_t take(int64_t y, int64_t w) {
    return std::exchange(words()[w * n_lines_ + y], 0);
  }

 private:
  int64_t n_lines_;
  std::vector<uint64_t> words_;
};

// The sums or maxima of the rows of foci in a plane. Each line has a margin on either side for what
// sticks out: as long as a row, and what is written or read in whole steps beyond it.
template <typename T>
class ValuePlane {
 public:
  static constexpr int64_t kStep = 32 / sizeof(T);

  ValuePlane(int64_t n_lines, int64_t line_length, int64_t row_length)
      : margin_(row_length + 16), stride_(line_length + 2 * margin_), values_(n_lines * stride_),
        spans_(n_lines) {}

  template <MaKind kind>
  ATLAS_INLINE void draw(const Patch& patch, const T* table, int64_t table_stride, int64_t length) {
    const T* from = table + patch.row * table_stride;
    T* to = line(patch.y) + patch.z;
    for (int64_t i = 0; i < patch.n; ++i, from += table_stride, to += stride_) {
      draw_row<kind>(to, from, length);
      Span& span = spans_[patch.y + i];
      span.begin = std::min(span.begin, static_cast<int32_t>(patch.z));
      span.end = std::max(span.end, static_cast<int32_t>(patch.z + length));
    }
  }

  ATLAS_INLINE T* line(int64_t y) { return values_.data() + y * stride_ + margin_; }

  // Adds a line to `sum`, where that is not null, and erases it.
  ATLAS_INLINE void take(int64_t y, T* ATLAS_RESTRICT sum) {
    T* ATLAS_RESTRICT from = line(y);
    const Span span = spans_[y];
    spans_[y] = Span();
    const int64_t n = whole_steps(span.end - span.begin + kStep - 1);  // beyond the span all is 0
    for (int64_t z = span.begin; z < span.begin + n; ++z) {
      if (sum) sum[z] += from[z];
      from[z] = T(0);
    }
  }

 private:
  struct Span {
    int32_t begin = INT32_MAX, end = INT32_MIN;
  };

  // Tells the compiler that nothing is left over beyond the vectors.
  static ATLAS_INLINE int64_t whole_steps(int64_t n) { return n & -kStep; }

  // `length` is a multiple of kStep.
  template <MaKind kind>
  static ATLAS_INLINE void draw_row(T* ATLAS_RESTRICT to, const T* ATLAS_RESTRICT from,
                                    int64_t length) {
    const int64_t n = whole_steps(length);
    for (int64_t i = 0; i < n; ++i) {
      to[i] = kind == MaKind::count ? to[i] + from[i] : (from[i] > to[i] ? from[i] : to[i]);
    }
  }

  int64_t margin_, stride_;
  std::vector<T> values_;
  std::vector<Span> spans_;
};

// Sorted foci of all studies. Throws where the problem is not a legal one.
class Foci {
 public:
  explicit Foci(const FociProblem& problem);
  Study study(int64_t b) const {
    return {boxes_[b], voxels_.data() + starts_[b], starts_[b + 1] - starts_[b]};
  }

 private:
  std::vector<Voxel> voxels_;
  std::vector<int64_t> starts_;
  std::vector<SupportBox> boxes_;
};

}  // namespace atlas_kernels
