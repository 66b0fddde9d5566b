// splat on an NVIDIA GPU.
//
// Forward gathers. The output, all volumes in a row, is cut into tiles that start at multiples of 16
// bytes, so that every store is a whole vector whatever the grid's size; a block of threads writes one
// tile, which may hold parts of several volumes. Of each volume's foci the block keeps those that reach
// the tile, 32 at a time by ballots, in their order; their tables (exp of the distance along x, y and
// z) go to shared memory, and a voxel then costs a multiplication. A tile that no focus reaches is only
// stored to. The output is written once and never read.
//
// Backward gathers too: a block takes one focus at one width, reads grad_out over the support and adds
// up in an order that depends on shapes alone. `max` and `union` look the study's other foci up again
// rather than save who won.
//
// No atomics, no sort, nothing waits for the GPU, no memory whose size depends on data. Which voxels
// are covered is decided in double by the same comparison as everywhere.
//
// Siblings: splat.h (contract), splat_focus.h (shared with the CPU), splat_cpu.cpp.

#include <cuda_runtime.h>

#include <algorithm>
#include <stdexcept>
#include <string>

#include "common/checks.h"
#include "common/numbers_cuda.h"
#include "splat/splat_focus.h"

namespace atlas_kernels {
namespace {

constexpr int kThreads = 128;
constexpr int kListed = 32;     // foci that a block has tables of at a time
constexpr int kEntries = 1024;  // numbers in these tables
constexpr int kPiece = kEntries / 3;  // of an axis, where a focus is too long for them
constexpr int kOthers = 512;    // foci that a block lists in the backward
constexpr int kNear = 128;      // voxels of an axis whose exponential the normalising keeps
constexpr int kRow = 16;        // threads that share a row of voxels where a block walks a support
constexpr unsigned kAll = ~0u;

__device__ float times(float a, float b) { return __fmul_rn(a, b); }
__device__ double times(double a, double b) { return __dmul_rn(a, b); }

// Adds up what the threads of a block hold, in a fixed order; thread 0 then has the sums.
template <int n>
__device__ void add_up(double (&sums)[n], double (*held)[n]) {
  for (int i = 0; i < n; ++i) held[threadIdx.x][i] = sums[i];
  for (int half = kThreads / 2; half; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) {
      for (int i = 0; i < n; ++i) held[threadIdx.x][i] += held[threadIdx.x + half][i];
    }
  }
  for (int i = 0; i < n; ++i) sums[i] = held[0][i];
}

// ---- which peaks make a volume ----------------------------------------------------------------

struct Members {
  int64_t first, last;  // peaks [first, last)
};

// Offsets out of range are clamped, as in the reference.
__device__ Members members_of(const SplatProblem& problem, int64_t study) {
  const int64_t zero = 0, n = problem.n_peaks;
  const int64_t first = min(max(problem.offsets[study], zero), n);
  return {first, min(max(problem.offsets[study + 1], first), n)};
}

// The study of a peak. Where offsets fall, a peak that several studies claim has one all the same.
__device__ int64_t study_of(const SplatProblem& problem, int64_t peak) {
  int64_t low = 0, high = problem.n_studies;  // the last study that starts at or before the peak
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (problem.offsets[middle] <= peak ? low : high) = middle;
  }
  return low;
}

// ---- the foci ---------------------------------------------------------------------------------

// A focus at one width: entry peak * n_kernels + kernel of the room.
struct Drawn {
  Focus focus;
  bool bad;  // a number is not finite, or the width not positive: it reaches nothing
};

// One thread a focus and width.
__global__ void __launch_bounds__(kThreads) describe(SplatProblem problem, Drawn* drawn) {
  const int64_t i = blockIdx.x * int64_t(kThreads) + threadIdx.x;
  if (i >= problem.n_peaks * problem.n_kernels) return;
  const int64_t peak = i / problem.n_kernels;
  Focus focus = make_focus(problem, study_of(problem, peak), i % problem.n_kernels, peak);
  const double width = problem.widths[focus.width], *mm = problem.peaks + 3 * peak;
  bool good = isfinite(width) && width > 0 && isfinite(focus.weight);
  for (int axis = 0; axis < 3; ++axis) good = good && isfinite(mm[axis]);
  for (int axis = 0; axis < 3; ++axis) {
    Span& span = focus.axis[axis].span;
    span = good ? reach_span(problem, axis, focus.mm[axis], focus.radius2, {0, problem.shape[axis]})
                : Span{0, 0};
  }
  drawn[i].focus = focus;
  drawn[i].bad = !good;
}

// What one thread of a group of kRow sees of the rows of a support: rows of the group, then voxels of
// the thread. visit(x, y, first voxel of the row); the caller strides along z.
template <typename Visit>
__device__ void for_each_row(Span x, Span y, const Visit& visit) {
  const int64_t n_y = y.end - y.begin, n = (x.end - x.begin) * n_y;
  for (int64_t row = threadIdx.x / kRow; row < n; row += kThreads / kRow) {
    visit(x.begin + row / n_y, y.begin + row % n_y);
  }
}

// Sums over the voxels of an unbounded grid of the kernel, and of its slope times d and |d|^2.
struct Lattice {
  const SplatProblem& problem;
  const Focus& focus;
  double radius2;
  Span span[3];
  double (*near)[kNear];  // exponentials of the first voxels of each span

  __device__ double mm(int axis, int64_t voxel) const {
    return offset_mm(problem, axis, voxel, focus.mm[axis]);
  }
  __device__ double gauss(int axis, int64_t voxel) const {
    const int64_t place = voxel - span[axis].begin;
    if (place < kNear) return near[axis][place];
    const double d = mm(axis, voxel);
    return exp(-focus.per * product(d, d));
  }

  __device__ void fill() const {
    for (int axis = 0; axis < 3; ++axis) {
      for (int64_t place = threadIdx.x; place < kNear; place += kThreads) {
        const double d = mm(axis, span[axis].begin + place);
        near[axis][place] = exp(-focus.per * product(d, d));
      }
    }
    __syncthreads();
  }

  // A box is a product of sums along the axes: of the exponential and of it times d and d^2.
  __device__ void add_axes(double (&sums)[9]) const {
    for (int axis = 0; axis < 3; ++axis) {
      for (int64_t v = span[axis].begin + threadIdx.x; v < span[axis].end; v += kThreads) {
        const double d = mm(axis, v), g = gauss(axis, v);
        sums[3 * axis] += g;
        sums[3 * axis + 1] += g * d;
        sums[3 * axis + 2] += g * d * d;
      }
    }
  }

  // A ball, voxel by voxel: kernel, x, y, z, square.
  __device__ void add_ball(double (&sums)[9]) const {
    for_each_row(span[0], span[1], [&](int64_t x, int64_t y) {
      const double dx = mm(0, x), dy = mm(1, y), g = gauss(0, x) * gauss(1, y);
      const double xy2 = product(dx, dx) + product(dy, dy);
      for (int64_t z = span[2].begin + threadIdx.x % kRow; z < span[2].end; z += kRow) {
        const double dz = mm(2, z), square = xy2 + product(dz, dz);
        if (square > radius2) continue;
        const double slope = g * gauss(2, z) - focus.edge;
        sums[0] += slope - focus.edge * (focus.end - focus.per * square);
        sums[1] += slope * dx;
        sums[2] += slope * dy;
        sums[3] += slope * dz;
        sums[4] += slope * square;
      }
    });
  }
};

// One block a focus and width: sets its unit and pull.
__global__ void __launch_bounds__(kThreads) normalize(SplatProblem problem, Drawn* drawn) {
  __shared__ double held[kThreads][9], near[3][kNear];
  constexpr double kNothingBeyond = 40;  // sigmas: a Gaussian is less there than a double can hold
  constexpr int64_t kFar = int64_t(1) << 40;
  const Focus focus = drawn[blockIdx.x].focus;
  if (drawn[blockIdx.x].bad) return;
  const bool uncut = problem.truncate > kNothingBeyond;
  const double reach = kNothingBeyond * focus.sigma, radius2 = uncut ? reach * reach : focus.radius2;
  Lattice lattice{problem, focus, radius2, {}, near};
  for (int axis = 0; axis < 3; ++axis) {
    lattice.span[axis] = reach_span(problem, axis, focus.mm[axis], radius2, {-kFar, kFar});
  }
  lattice.fill();
  double s[9] = {};
  const bool box = uncut || problem.support == SplatSupport::box;
  box ? lattice.add_axes(s) : lattice.add_ball(s);
  add_up(s, held);
  if (threadIdx.x) return;
  if (box) {
    const double kernel = s[0] * s[3] * s[6];
    const double x = s[1] * s[3] * s[6], y = s[0] * s[4] * s[6], z = s[0] * s[3] * s[7];
    const double square = s[2] * s[3] * s[6] + s[0] * s[5] * s[6] + s[0] * s[3] * s[8];
    s[0] = kernel, s[1] = x, s[2] = y, s[3] = z, s[4] = square;
  }
  const double kernel = s[0] > 0 ? s[0] : 1;  // no voxel within reach: no value
  Focus& to = drawn[blockIdx.x].focus;
  to.unit = 1 / kernel;
  for (int axis = 0; axis < 3; ++axis) to.pull.axis[axis] = s[1 + axis] / kernel;
  to.pull.square = s[4] / kernel;
  if (problem.normalize == SplatNormalize::mm3) {
    to.unit /= fabs(problem.spacing[0] * problem.spacing[1] * problem.spacing[2]);
  }
}

// ---- forward: the foci of a tile --------------------------------------------------------------

struct Voxel {
  int64_t number;
  int x, y, z;
};

__device__ Voxel voxel_at(const SplatProblem& problem, int64_t element) {
  const int64_t number = problem.masked() ? problem.voxels[element] : element;
  const int n_y = int(problem.shape[1]), n_z = int(problem.shape[2]);
  int64_t row, x;
  if (number >> 31) {
    row = number / n_z, x = row / n_y;
  } else {  // several times cheaper
    row = uint32_t(number) / uint32_t(n_z), x = uint32_t(row) / uint32_t(n_y);
  }
  return {number, int(x), int(row - x * n_y), int(number - row * n_z)};
}

// A focus that reaches a tile: the voxels that its tables are of, and where they start, less the first
// voxel.
struct Listed {
  const Focus* focus;
  double limit;  // covered up to this distance, squared; a box covers all of its tables
  int begin[3], end[3], table[3];

  // Keeps of the focus what lies among the voxels from a to b, in their order; false if nothing does.
  __device__ bool set(const SplatProblem& problem, const Focus& of, const Voxel& a, const Voxel& b) {
    const bool plane = a.x == b.x, row = plane && a.y == b.y;
    const int low[3] = {a.x, plane ? a.y : 0, row ? a.z : 0};
    const int high[3] = {b.x, plane ? b.y : int(problem.shape[1]) - 1, row ? b.z : int(problem.shape[2]) - 1};
    bool reaches = true;
    for (int axis = 0; axis < 3; ++axis) {
      begin[axis] = max(int(of.axis[axis].span.begin), low[axis]);
      end[axis] = min(int(of.axis[axis].span.end), high[axis] + 1);
      reaches = reaches && begin[axis] < end[axis];
    }
    if (reaches && b.x == a.x + 1) {  // the end of one plane, the beginning of the next
      reaches = (begin[0] == a.x && end[1] > a.y) || (end[0] == b.x + 1 && begin[1] <= b.y);
    }
    focus = &of;
    limit = problem.support == SplatSupport::box ? HUGE_VAL : of.radius2;
    return reaches;
  }

  // Keeps the piece of that number; returns whether it is the last.
  __device__ bool cut(int64_t piece) {
    bool last = true;
    for (int axis = 0; axis < 3; ++axis) {
      const int n = (end[axis] - begin[axis] + kPiece - 1) / kPiece, place = int(piece % n);
      piece /= n;
      last = last && place == n - 1;
      begin[axis] += place * kPiece;
      end[axis] = min(end[axis], begin[axis] + kPiece);
    }
    return last;
  }

  // Lays the tables of the axes in a row from `start` on.
  __device__ int size() const { return end[0] - begin[0] + (end[1] - begin[1]) + (end[2] - begin[2]); }
  __device__ void place(int start) {
    for (int axis = 0; axis < 3; ++axis) {
      table[axis] = start - begin[axis];
      start += end[axis] - begin[axis];
    }
  }
};

template <typename T>
struct Board {
  Listed listed[kListed];
  double square[kEntries];  // of the distance along one axis
  T gauss[kEntries];        // exp(-square / (2 sigma^2)), along x times the height
  int count;
  bool spoilt;   // a focus of the study is bad
  int64_t next;  // the first peak that is still to come,
  int64_t piece;  // and the first of its pieces

  __device__ static void compute(const SplatProblem& problem, const Focus& focus, int axis, int voxel,
                                 double& square, T& gauss) {
    const double d = offset_mm(problem, axis, voxel, focus.mm[axis]);
    square = product(d, d);
    const bool sphere = problem.mode == SplatMode::sphere;
    const double g = sphere ? 1.0 : exp(-0.5 * square / (focus.sigma * focus.sigma));
    gauss = T(axis == 0 ? focus.weight * focus.unit * g : g);
  }
};

// Warp 0: lists the foci of peaks [peak, last) that reach the voxels from a to b, as far as there is
// room for them and their tables.
template <typename T>
__device__ void cull(const SplatProblem& problem, const Drawn* drawn, int64_t kernel, int64_t peak,
                     int64_t piece, int64_t last, const Voxel& a, const Voxel& b, Board<T>& board) {
  const int lane = threadIdx.x;
  int count = 0, entries = 0;
  bool spoilt = false, full = false;
  while (peak < last && !full && !spoilt) {
    Listed one;
    bool bad = false, reaches = false;
    if (peak + lane < last) {
      const Drawn& from = drawn[(peak + lane) * problem.n_kernels + kernel];
      bad = from.bad;
      reaches = one.set(problem, from.focus, a, b);
    }
    const int size = reaches ? one.size() : 0;
    int sum = size;
    for (int by = 1; by < 32; by *= 2) {
      const int before = __shfl_up_sync(kAll, sum, by);
      if (lane >= by) sum += before;
    }
    spoilt = __ballot_sync(kAll, bad);
    const unsigned all = __ballot_sync(kAll, reaches);
    const int place = count + __popc(all & ((1u << lane) - 1));
    const bool fits = reaches && place < kListed && entries + sum <= kEntries;
    if (fits) {
      one.place(entries + sum - size);
      board.listed[place] = one;
    }
    const unsigned left = __ballot_sync(kAll, reaches && !fits);  // no gaps: the last ones
    full = left;
    count += __popc(all & ~left);
    entries += __shfl_sync(kAll, sum, 31);
    peak += full ? __ffs(left) - 1 : 32;
    if (full && count == 0) {  // a focus that no tables hold, alone and in pieces
      bool last = lane == __ffs(left) - 1 && one.cut(piece);
      if (lane == __ffs(left) - 1) {
        one.place(0);
        board.listed[0] = one;
      }
      last = __ballot_sync(kAll, last);
      count = 1, peak += last, piece = last ? 0 : piece + 1;
    }
  }
  if (lane == 0) board.count = count, board.spoilt = spoilt, board.next = peak, board.piece = piece;
}

// A warp a focus.
template <typename T>
__device__ void fill_tables(const SplatProblem& problem, Board<T>& board) {
  for (int f = threadIdx.x / 32; f < board.count; f += kThreads / 32) {
    const Listed& one = board.listed[f];
    for (int axis = 0; axis < 3; ++axis) {
      for (int v = one.begin[axis] + threadIdx.x % 32; v < one.end[axis]; v += 32) {
        const int at = one.table[axis] + v;
        board.compute(problem, *one.focus, axis, v, board.square[at], board.gauss[at]);
      }
    }
  }
}

// ---- forward: the voxels of a tile ------------------------------------------------------------

template <SplatMode mode, typename T>
__device__ T combined(T before, T value) {
  if constexpr (mode == SplatMode::sum) return before + value;
  if constexpr (mode == SplatMode::union_) return before + times(value, T(1) - before);
  return value > before ? value : before;
}

// Draws the listed foci on elements [begin, end) of a vector, which lie side by side in one row of
// voxels from `voxel` on. Every product is rounded by itself, so that all types of output agree.
template <SplatMode mode, typename T, int n>
__device__ void draw_row(const SplatProblem& problem, const Board<T>& board, const Voxel& voxel,
                         int begin, int end, T* values) {
  for (int f = 0; f < board.count; ++f) {
    const Listed& one = board.listed[f];
    if (voxel.x < one.begin[0] || voxel.x >= one.end[0]) continue;
    if (voxel.y < one.begin[1] || voxel.y >= one.end[1]) continue;
    if (voxel.z >= one.end[2] || voxel.z + (end - begin) <= one.begin[2]) continue;
    T base = 0, rise = 0;
    const int x = one.table[0] + voxel.x, y = one.table[1] + voxel.y;
    const double xy2 = board.square[x] + board.square[y];
    const T scale = times(board.gauss[x], board.gauss[y]);
    const bool taper = problem.support == SplatSupport::taper;
    if (taper) {
      const Focus& focus = *one.focus;
      const double height = focus.weight * focus.unit;
      base = T(-height * focus.edge * (1 + focus.end - xy2 * focus.per));
      rise = T(height * focus.edge * focus.per);
    }
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const int z = voxel.z + i - begin;
      if (i < begin || i >= end || z < one.begin[2] || z >= one.end[2]) continue;
      const double z2 = board.square[one.table[2] + z];
      if (!(xy2 + z2 <= one.limit)) continue;
      T value = times(scale, board.gauss[one.table[2] + z]);
      if (taper) value += base + times(rise, T(z2));
      values[i] = combined<mode>(values[i], value);
    }
  }
}

template <typename Out>
struct Tile {
  static constexpr int vector = 16 / sizeof(Out);
  static constexpr int each = sizeof(Out) < 8 ? 16 : 8;  // elements of a thread
  static constexpr int size = kThreads * each;
};

// Elements [first, last) of a tile, of one volume, in which the tile starts at element `origin`; a
// thread's vectors lie kThreads apart.
template <SplatMode mode, typename Out, typename T>
__device__ void draw_volume(const SplatProblem& problem, const Drawn* drawn, int64_t volume,
                            int64_t origin, int first, int last, Board<T>& board, T* values) {
  constexpr int n = Tile<Out>::vector, vectors = Tile<Out>::each / n;
  const Members members = members_of(problem, volume / problem.n_kernels);
  if (members.first == members.last) return;
  const Voxel a = voxel_at(problem, origin + first), b = voxel_at(problem, origin + last - 1);
  int64_t peak = members.first, piece = 0;
  while (peak < members.last) {
    __syncthreads();  // nobody reads the board any more
    if (threadIdx.x < 32) {
      cull(problem, drawn, volume % problem.n_kernels, peak, piece, members.last, a, b, board);
    }
    __syncthreads();
    peak = board.next, piece = board.piece;
    if (board.count) {
      fill_tables(problem, board);
      __syncthreads();
    }
#pragma unroll
    for (int j = 0; j < vectors; ++j) {
      const int base = (j * kThreads + int(threadIdx.x)) * n;
      int begin = min(max(first - base, 0), n);
      const int end = min(max(last - base, 0), n);
      if (board.spoilt) {
#pragma unroll
        for (int i = 0; i < n; ++i) values[j * n + i] = i >= begin && i < end ? T(NAN) : values[j * n + i];
      } else if (board.count) {
        while (begin < end) {
          const int64_t element = origin + base + begin;
          const Voxel voxel = voxel_at(problem, element);
          int stop = min(end, begin + int(problem.shape[2]) - voxel.z);
          if (problem.masked()) {
            const int most = stop;
            for (stop = begin + 1; stop < most; ++stop) {
              if (problem.voxels[element + stop - begin] != voxel.number + stop - begin) break;
            }
          }
          draw_row<mode, T, n>(problem, board, voxel, begin, stop, values + j * n);
          begin = max(stop, begin + 1);
        }
      }
    }
  }
}

template <typename Out>
struct alignas(16) Vector {
  Out element[Tile<Out>::vector];
};

// One block a tile. The tiles start `head` elements before `out`, at a multiple of 16 bytes.
template <SplatMode mode, typename Out>
__global__ void __launch_bounds__(kThreads, sizeof(Out) < 4 ? 5 : 4)  // registers without spills
    draw(SplatProblem problem, const Drawn* drawn, Out* out, int64_t total, int head) {
  using T = typename Arithmetic<Out>::type;
  using Of = Tile<Out>;
  __shared__ Board<T> board;
  T values[Of::each] = {};
  const int64_t start = int64_t(blockIdx.x) * Of::size - head, size = problem.n_elements();
  const int stop = int(min(total - start, int64_t(Of::size)));
  const int begin = blockIdx.x ? 0 : head;
  int first = begin;
  for (int64_t volume = (start + first) / size; first < stop; ++volume) {
    const int64_t origin = start - volume * size;
    const int last = int(min(int64_t(stop), size - origin));
    draw_volume<mode, Out>(problem, drawn, volume, origin, first, last, board, values);
    first = last;
  }
#pragma unroll
  for (int j = 0; j < Of::each / Of::vector; ++j) {
    const int base = (j * kThreads + int(threadIdx.x)) * Of::vector;
    Vector<Out> packed;
#pragma unroll
    for (int i = 0; i < Of::vector; ++i) write(values[j * Of::vector + i], packed.element[i]);
    if (base >= begin && base + Of::vector <= stop) {
      uint4 bits;  // in one store, which an assignment would be split from
      memcpy(&bits, &packed, sizeof bits);
      __stcs(reinterpret_cast<uint4*>(out + start + base), bits);
      continue;
    }
#pragma unroll
    for (int i = 0; i < Of::vector; ++i) {
      if (base + i >= begin && base + i < stop) out[start + base + i] = packed.element[i];
    }
  }
}

// ---- backward ---------------------------------------------------------------------------------

// What one focus at one width adds to the gradients: entry peak * n_kernels + kernel.
struct Share {
  double mm[3], weight, width;
};

// The kernel of weight 1, less its unit, and its slope. In one rounding of u = |d|^2 / (2 sigma^2), so
// that equal distances tie.
template <typename T>
struct Kernel {
  T value, slope;

  __device__ Kernel(const Focus& focus, double square) {
    const T u = T(times(focus.per, square)), edge = T(focus.edge);
    slope = exp(-u) - edge;
    value = slope - times(edge, T(focus.end) - u);
  }
};

// Of the other foci of a study, what a focus needs to know at a voxel: whether it wins, or the product
// that they leave. `others` are their places in the study, in order, or null for all.
template <SplatMode mode, typename T>
__device__ T share_of(const SplatProblem& problem, const Drawn* study, int64_t own, const int* others,
                      int64_t n, const int (&voxel)[3], T own_value) {
  T left = 1;
  if (mode == SplatMode::max && !(own_value > 0)) return 0;
  for (int64_t i = 0; i < n; ++i) {
    const int64_t other = others ? others[i] : i;
    const Focus& focus = study[other * problem.n_kernels].focus;
    if (other == own) continue;
    double square[3];
    bool covered = true;
    for (int axis = 0; axis < 3; ++axis) {
      const Span span = focus.axis[axis].span;
      covered = covered && voxel[axis] >= span.begin && voxel[axis] < span.end;
      const double d = offset_mm(problem, axis, voxel[axis], focus.mm[axis]);
      square[axis] = product(d, d);
    }
    const double far = square[0] + square[1] + square[2];
    if (!covered || (problem.support != SplatSupport::box && !(far <= focus.radius2))) continue;
    const T value = times(T(focus.weight * focus.unit), Kernel<T>(focus, far).value);
    if constexpr (mode == SplatMode::union_) left = times(left, T(1) - value);
    if (mode == SplatMode::max && (other < own ? !(own_value > value) : !(own_value >= value))) return 0;
  }
  return left;
}

// Warp 0: lists those of n foci whose support meets that of `own`; returns how many, or -1 if too many.
__device__ int list_others(const SplatProblem& problem, const Drawn* study, int64_t n, const Focus& own,
                           int* others) {
  const int lane = threadIdx.x;
  int count = 0;
  for (int64_t first = 0; first < n; first += 32) {
    bool meets = first + lane < n;
    if (meets) {
      const Focus& focus = study[(first + lane) * problem.n_kernels].focus;
      for (int axis = 0; axis < 3; ++axis) {
        const Span a = focus.axis[axis].span, b = own.axis[axis].span;
        meets = meets && max(a.begin, b.begin) < min(a.end, b.end);
      }
    }
    const unsigned all = __ballot_sync(kAll, meets);
    const int place = count + __popc(all & ((1u << lane) - 1));
    if (meets && place < kOthers) others[place] = int(first) + lane;
    count += __popc(all);
  }
  return count <= kOthers ? count : -1;
}

// The first of the ascending voxels that is not below a number.
__device__ int64_t first_from(const SplatProblem& problem, int64_t number) {
  int64_t low = 0, high = problem.n_voxels;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (problem.voxels[middle] < number) low = middle + 1; else high = middle;
  }
  return low;
}

// kernel, slope times x, y, z, and times |d|^2: sums over the voxels of a focus, each times what arrives
// there (grad_out times the share that this focus has in the voxel).
template <SplatMode mode, typename Out>
__device__ void add_moments(const SplatProblem& problem, const Drawn* study, int64_t own, int64_t n_study,
                            const int* others, int64_t n_others, const Out* grad, double (&sums)[5]) {
  using T = typename Arithmetic<Out>::type;
  const Focus& focus = study[own * problem.n_kernels].focus;
  const double limit = problem.support == SplatSupport::box ? HUGE_VAL : focus.radius2;
  const T height = T(focus.weight * focus.unit);
  const Span zs = focus.axis[2].span;
  for_each_row(focus.axis[0].span, focus.axis[1].span, [&](int64_t x, int64_t y) {
    const double dx = offset_mm(problem, 0, x, focus.mm[0]), dy = offset_mm(problem, 1, y, focus.mm[1]);
    const double xy2 = product(dx, dx) + product(dy, dy);
    const int64_t row = (x * problem.shape[1] + y) * problem.shape[2];
    const auto visit = [&](int64_t z, int64_t element) {
      const double dz = offset_mm(problem, 2, z, focus.mm[2]), square = xy2 + product(dz, dz);
      if (!(square <= limit)) return;
      const Kernel<T> kernel(focus, square);
      const int voxel[3] = {int(x), int(y), int(z)};
      T share = 1;
      if constexpr (mode != SplatMode::sum) {
        share = share_of<mode, T>(problem, study, own, others, others ? n_others : n_study, voxel,
                                  times(height, kernel.value));
        if (mode == SplatMode::max && share == 0) return;
      }
      const double flow = read(grad[element]) * share, slope = flow * kernel.slope;
      sums[0] += flow * kernel.value;
      sums[1] += slope * dx;
      sums[2] += slope * dy;
      sums[3] += slope * dz;
      sums[4] += slope * square;
    };
    const int lane = threadIdx.x % kRow;
    if (!problem.masked()) {
      for (int64_t z = zs.begin + lane; z < zs.end; z += kRow) visit(z, row + z);
      return;
    }
    for (int64_t i = first_from(problem, row + zs.begin) + lane; i < problem.n_voxels; i += kRow) {
      const int64_t z = problem.voxels[i] - row;
      if (z >= zs.end) break;
      if (z >= zs.begin) visit(z, i);
    }
  });
}

__device__ Share share_of_sums(const SplatProblem& problem, const Focus& focus, const double (&sums)[5]) {
  const double height = focus.weight * focus.unit, slope = height / (focus.sigma * focus.sigma);
  Share share;
  for (int axis = 0; axis < 3; ++axis) {
    const double moment = slope * (sums[1 + axis] - sums[0] * focus.pull.axis[axis]);
    share.mm[axis] = problem.centre == SplatCentre::voxel ? 0 : moment;
  }
  share.weight = focus.unit * sums[0];
  share.width = slope / focus.sigma * (sums[4] - sums[0] * focus.pull.square) / kFwhmPerSigma;
  return share;
}

// One block a focus and width.
template <SplatMode mode, typename Out>
__global__ void __launch_bounds__(kThreads, 4)
    gather(SplatProblem problem, const Drawn* drawn, const Out* grad_out, Share* shares) {
  __shared__ double held[kThreads][5];
  __shared__ int others[kOthers], n_others;
  const int64_t peak = blockIdx.x / problem.n_kernels, kernel = blockIdx.x % problem.n_kernels;
  const int64_t b = problem.n_studies ? study_of(problem, peak) : 0;
  const Members members = problem.n_studies ? members_of(problem, b) : Members{0, 0};
  const bool owned = peak >= members.first && peak < members.last;  // not so where offsets are broken
  const Drawn* study = drawn + members.first * problem.n_kernels + kernel;
  double sums[5] = {};
  if (owned) {
    if (mode != SplatMode::sum) {
      if (threadIdx.x < 32) {
        const int n = list_others(problem, study, members.last - members.first, drawn[blockIdx.x].focus, others);
        if (threadIdx.x == 0) n_others = n;
      }
      __syncthreads();
    }
    const bool listed = mode != SplatMode::sum && n_others >= 0;
    add_moments<mode>(problem, study, peak - members.first, members.last - members.first,
                      listed ? others : nullptr, listed ? n_others : 0,
                      grad_out + (b * problem.n_kernels + kernel) * problem.n_elements(), sums);
  }
  add_up(sums, held);
  if (threadIdx.x) return;
  const bool bad = owned && drawn[blockIdx.x].bad;
  const Share none{};
  shares[blockIdx.x] = owned && !bad ? share_of_sums(problem, drawn[blockIdx.x].focus, sums) : none;
  if (bad) shares[blockIdx.x] = {{NAN, NAN, NAN}, NAN, NAN};
}

// One thread a peak: adds its widths up.
__global__ void __launch_bounds__(kThreads)
    add_kernels(SplatProblem problem, const Share* shares, double* grad_peaks, double* grad_weights,
                double* grad_widths) {
  const int64_t peak = blockIdx.x * int64_t(kThreads) + threadIdx.x;
  if (peak >= problem.n_peaks) return;
  Share sum{};
  for (int64_t k = 0; k < problem.n_kernels; ++k) {
    const Share& share = shares[peak * problem.n_kernels + k];
    for (int axis = 0; axis < 3; ++axis) sum.mm[axis] += share.mm[axis];
    sum.weight += share.weight, sum.width += share.width;
  }
  for (int axis = 0; axis < 3; ++axis) grad_peaks[3 * peak + axis] = sum.mm[axis];
  grad_weights[peak] = sum.weight;
  if (problem.widths_of == SplatWidths::peaks) grad_widths[peak] = sum.width;
}

// One block a width, of all peaks or of a study's: adds the peaks up.
__global__ void __launch_bounds__(kThreads)
    add_peaks(SplatProblem problem, const Share* shares, double* grad_widths) {
  __shared__ double held[kThreads][1];
  const bool of_study = problem.widths_of == SplatWidths::studies;
  const Members members = of_study ? members_of(problem, blockIdx.x) : Members{0, problem.n_peaks};
  double sum[1] = {0};
  for (int64_t peak = members.first + threadIdx.x; peak < members.last; peak += kThreads) {
    sum[0] += shares[peak * problem.n_kernels + (of_study ? 0 : blockIdx.x)].width;
  }
  add_up(sum, held);
  if (threadIdx.x == 0) grad_widths[blockIdx.x] = sum[0];
}

// ---- launches ---------------------------------------------------------------------------------

unsigned blocks_of(int64_t blocks) {
  require(blocks < int64_t(1) << 31, "splat: it needs more than 2^31 blocks of threads");
  return static_cast<unsigned>(blocks);
}

unsigned blocks_for(int64_t threads) { return blocks_of((threads + kThreads - 1) / kThreads); }

void check_problem(const SplatProblem& problem) {
  require(problem.n_studies >= 0 && problem.n_kernels >= 0 && problem.n_peaks >= 0,
          "splat: negative number of studies, widths or peaks");
  require(problem.widths_of == SplatWidths::kernels || problem.n_kernels == 1,
          "splat: widths of studies or peaks give one volume a study");
  for (int axis = 0; axis < 3; ++axis) {
    require(problem.shape[axis] > 0 && problem.shape[axis] < int64_t(1) << 31,
            "splat: an axis of the grid is empty or longer than 2^31");
    require(problem.spacing[axis] != 0, "splat: the grid has a zero spacing");
  }
}

// After the kernels of one call: whether they could be queued.
void check_launch() {
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string("splat: CUDA says: ") + cudaGetErrorString(error));
  }
}

// Fills the room with the foci of all studies.
Drawn* describe_foci(const SplatProblem& problem, void* room, cudaStream_t queue) {
  auto* drawn = static_cast<Drawn*>(room);
  const int64_t n = problem.n_studies ? problem.n_peaks * problem.n_kernels : 0;
  if (!n) return drawn;
  describe<<<blocks_for(n), kThreads, 0, queue>>>(problem, drawn);
  if (problem.normalize != SplatNormalize::peak) {
    normalize<<<blocks_of(n), kThreads, 0, queue>>>(problem, drawn);
  }
  return drawn;
}

// Calls run(mode) with the way in which values are put together, a constant.
template <SplatMode mode>
struct Mode {
  static constexpr SplatMode value = mode;
};
template <typename Run>
void with_mode(const SplatProblem& problem, const Run& run) {
  if (problem.mode == SplatMode::sum || problem.count) return run(Mode<SplatMode::sum>{});
  if (problem.mode == SplatMode::union_) return run(Mode<SplatMode::union_>{});
  run(Mode<SplatMode::max>{});
}

}  // namespace

int64_t splat_room(const SplatProblem& problem) {
  check_problem(problem);
  return problem.n_peaks * problem.n_kernels * static_cast<int64_t>(sizeof(Drawn) + sizeof(Share));
}

template <typename Out>
void splat_cuda(const SplatProblem& problem, Out* out, void* room, void* stream) {
  check_problem(problem);
  const int64_t total = problem.n_studies * problem.n_kernels * problem.n_elements();
  if (!total) return;
  const auto queue = static_cast<cudaStream_t>(stream);
  const Drawn* drawn = describe_foci(problem, room, queue);
  const int head = static_cast<int>(reinterpret_cast<uintptr_t>(out) % 16 / sizeof(Out));
  const unsigned tiles = blocks_of((total + head + Tile<Out>::size - 1) / Tile<Out>::size);
  with_mode(problem, [&](auto mode) {
    constexpr SplatMode of = decltype(mode)::value;
    draw<of, Out><<<tiles, kThreads, 0, queue>>>(problem, drawn, out, total, head);
  });
  check_launch();
}

template <typename Out>
void splat_backward_cuda(const SplatProblem& problem, const Out* grad_out, double* grad_peaks,
                         double* grad_weights, double* grad_widths, void* room, void* stream) {
  check_problem(problem);
  require(problem.mode != SplatMode::sphere, "splat: mode 'sphere' has no gradient");
  const auto queue = static_cast<cudaStream_t>(stream);
  const int64_t n = problem.n_peaks * problem.n_kernels;
  const Drawn* drawn = describe_foci(problem, room, queue);
  auto* shares = reinterpret_cast<Share*>(static_cast<Drawn*>(room) + n);
  if (n) {
    with_mode(problem, [&](auto mode) {
      constexpr SplatMode of = decltype(mode)::value;
      gather<of, Out><<<blocks_of(n), kThreads, 0, queue>>>(problem, drawn, grad_out, shares);
    });
    add_kernels<<<blocks_for(problem.n_peaks), kThreads, 0, queue>>>(problem, shares, grad_peaks,
                                                                     grad_weights, grad_widths);
  }
  const bool of_studies = problem.widths_of == SplatWidths::studies;
  const int64_t widths = of_studies ? problem.n_studies : problem.n_kernels;
  if (problem.widths_of != SplatWidths::peaks && widths) {
    add_peaks<<<blocks_of(widths), kThreads, 0, queue>>>(problem, shares, grad_widths);
  }
  check_launch();
}

template void splat_cuda(const SplatProblem&, uint8_t*, void*, void*);

#define ATLAS_INSTANTIATE(T)                                                                      \
  template void splat_cuda(const SplatProblem&, T*, void*, void*);                                \
  template void splat_backward_cuda(const SplatProblem&, const T*, double*, double*, double*,     \
                                    void*, void*);
ATLAS_INSTANTIATE(float)
ATLAS_INSTANTIATE(double)
ATLAS_INSTANTIATE(BFloat16)
ATLAS_INSTANTIATE(Float16)

}  // namespace atlas_kernels
