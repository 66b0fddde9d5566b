// The weight gradient of a dilated 3^3 convolution on the CPU, tap by tap; and copies.
//
// For each tap it is a matrix product, (in x voxels) (voxels x out), between a and g shifted against
// each other. Vendor libraries are good at it without dilation and poor with it; here the dilation
// only moves where a row begins, and taps that fall outside the grid cost nothing.
//
// The unit of work is (kx, kInputs input channels), for many threads (kx, ky, kInputs): it alone writes
// its part of dw, so no atomics. Within it, a plane of a and strip by strip (kStripVoxels voxels of one
// x plane) of g are copied to words of 32 bits side by side, small enough for the second and the first
// cache, and then read for each ky, kz and each block of dw that fits the registers: vectors of input
// channels times single outputs.
//
// A word is a float; where the processor multiplies pairs of bfloat16, it is such a pair, of the same
// channel and place in two neighbouring planes, and the work is half.

#include "dense_block/dense_block.h"

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <vector>

#include "common/multiversion.h"
#include "common/parallel.h"
#include "dense_block/winograd.h"

namespace atlas_kernels {
namespace {

constexpr int64_t kInputs = 16;        // input channels of an item
constexpr int64_t kStripVoxels = 192;  // of both sides: 24 kB at 16 channels

// ---- the innermost loop -----------------------------------------------------------------------

// One strip, packed: rows of `run` voxels; a voxel is kInputs words of a, `outputs` words of g.
struct Strip {
  const float *a, *g;
  int64_t rows, run, row_voxels, outputs;
};

// Adds to sums, (Outputs, kInputs). Vectors of V hold the kInputs channels.
template <typename V>
struct Floats {
  template <int Outputs>
  ATLAS_INLINE static void run(const Strip& strip, float* sums) {
    constexpr int vectors = kInputs * sizeof(float) / sizeof(V);
    V sum[Outputs][vectors] = {};
    for (int64_t row = 0; row < strip.rows; ++row) {
      const float* a = strip.a + row * strip.row_voxels * kInputs;
      const float* g = strip.g + row * strip.row_voxels * strip.outputs;
      for (int64_t voxel = 0; voxel < strip.run; ++voxel, a += kInputs, g += strip.outputs) {
        V inputs[vectors];
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) std::memcpy(&inputs[v], a + v * (sizeof(V) / 4), sizeof(V));
#pragma GCC unroll 16
        for (int o = 0; o < Outputs; ++o) {
#pragma GCC unroll 4
          for (int v = 0; v < vectors; ++v) sum[o][v] += g[o] * inputs[v];
        }
      }
    }
#pragma GCC unroll 16
    for (int o = 0; o < Outputs; ++o) {
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) {
        float* out = sums + o * kInputs + v * (sizeof(V) / 4);
        V old;
        std::memcpy(&old, out, sizeof old);
        old += sum[o][v];
        std::memcpy(out, &old, sizeof old);
      }
    }
  }
};

// All outputs of a strip (an even number), as many at a time as keep their sums in the registers. The
// lambda is inlined so that it is compiled for the processor that its caller is for.
template <typename Words, int Most, int Some>
ATLAS_INLINE void accumulate_all(Strip strip, float* sums) {
  int64_t left = strip.outputs;
  const auto step = [&](auto outputs) ATLAS_INLINED {
    constexpr int n = decltype(outputs)::value;
    for (; left >= n && !(n > 4 && left == 8 && Some == 4); left -= n) {
      Words::template run<n>(strip, sums);
      strip.g += n;
      sums += n * kInputs;
    }
  };
  step(std::integral_constant<int, Most>());
  step(std::integral_constant<int, Some>());
  step(std::integral_constant<int, 2>());
}

typedef float Vector4 __attribute__((vector_size(16)));
typedef float Vector8 __attribute__((vector_size(32)));
typedef float Vector16 __attribute__((vector_size(64)));

struct Accumulate {
  void (*run)(const Strip&, float*);
  bool pairs = false;  // of bfloat16
};

void accumulate_any(const Strip& strip, float* sums) {
  accumulate_all<Floats<Vector4>, 2, 2>(strip, sums);
}

// Not target_clones: each level has its own width and its own number of registers.
#if defined(__x86_64__) && defined(__GNUC__)
__attribute__((target("avx2,fma"))) void accumulate_avx2(const Strip& strip, float* sums) {
  accumulate_all<Floats<Vector8>, 6, 4>(strip, sums);
}
__attribute__((target("avx512f,fma"))) void accumulate_avx512(const Strip& strip, float* sums) {
  accumulate_all<Floats<Vector16>, 16, 8>(strip, sums);
}

// As Floats, of pairs. Not its intrinsic, for which GCC loads each output into a register first: 0.7 of
// the speed.
struct Pairs {
  template <int Outputs>
  __attribute__((target("avx512f,avx512bf16"))) static void run(const Strip& strip, float* sums) {
    static_assert(kInputs * sizeof(float) == sizeof(Vector16));
    Vector16 sum[Outputs] = {}, inputs;
    for (int64_t row = 0; row < strip.rows; ++row) {
      const float* a = strip.a + row * strip.row_voxels * kInputs;
      const float* g = strip.g + row * strip.row_voxels * strip.outputs;
      for (int64_t voxel = 0; voxel < strip.run; ++voxel, a += kInputs, g += strip.outputs) {
        std::memcpy(&inputs, a, sizeof inputs);
#pragma GCC unroll 16
        for (int o = 0; o < Outputs; ++o) {
          asm("vdpbf16ps %2%{1to16%}, %1, %0" : "+v"(sum[o]) : "v"(inputs), "m"(g[o]));
        }
      }
    }
#pragma GCC unroll 16
    for (int o = 0; o < Outputs; ++o) {
      std::memcpy(&inputs, sums + o * kInputs, sizeof inputs);
      inputs += sum[o];
      std::memcpy(sums + o * kInputs, &inputs, sizeof inputs);
    }
  }
};
void accumulate_avx512bf16(const Strip& strip, float* sums) {
  accumulate_all<Pairs, 16, 8>(strip, sums);
}

template <typename T>
Accumulate best_accumulate() {
  const bool avx512 = __builtin_cpu_supports("avx512f");
  if (avx512 && std::is_same_v<T, bfloat16> && __builtin_cpu_supports("avx512bf16")) {
    return {accumulate_avx512bf16, true};
  }
  if (avx512) return {accumulate_avx512};
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return {accumulate_avx2};
  return {accumulate_any};
}
#else
template <typename T>
Accumulate best_accumulate() {
  return {accumulate_any};
}
#endif

// ---- moving channels --------------------------------------------------------------------------

// `voxels` rows of `channels` numbers; `room - channels` zeros follow each in `to`.
template <typename T, typename U>
ATLAS_INLINE void move_voxels(const T* from, int64_t row, int64_t channels, int64_t voxels, U* to,
                              int64_t to_row, int64_t room) {
  if (channels == kInputs && room == kInputs) {  // the usual growth: no loop over what is left over
    for (int64_t voxel = 0; voxel < voxels; ++voxel, from += row, to += to_row) {
      ATLAS_INDEPENDENT
      for (int64_t c = 0; c < kInputs; ++c) narrow(widen(from[c]), to[c]);
    }
    return;
  }
  for (int64_t voxel = 0; voxel < voxels; ++voxel, from += row, to += to_row) {
    ATLAS_INDEPENDENT
    for (int64_t c = 0; c < channels; ++c) narrow(widen(from[c]), to[c]);
    for (int64_t c = channels; c < room; ++c) narrow(Compute<U>(0), to[c]);
  }
}

#define ATLAS_MOVE(T, U)                                                                         \
  ATLAS_MULTIVERSION void move(const T* from, int64_t row, int64_t channels, int64_t voxels,     \
                               U* to, int64_t to_row, int64_t room) {                            \
    move_voxels(from, row, channels, voxels, to, to_row, room);                                  \
  }
ATLAS_MOVE(float, float)
ATLAS_MOVE(double, double)
ATLAS_MOVE(bfloat16, bfloat16)
ATLAS_MOVE(bfloat16, float)
ATLAS_MOVE(float, bfloat16)
ATLAS_MOVE(float16, float16)
ATLAS_MOVE(float16, float)
ATLAS_MOVE(float, float16)
#undef ATLAS_MOVE

// Two planes to words; without a second one it is 0.
ATLAS_INLINE void pair_voxels(const bfloat16* from, const bfloat16* second, int64_t row,
                              int64_t channels, int64_t voxels, float* to, int64_t room) {
  const uint32_t mask = second ? 0xffff0000u : 0;
  const bfloat16* other = second ? second : from;
  for (int64_t voxel = 0; voxel < voxels; ++voxel, from += row, other += row, to += room) {
    ATLAS_INDEPENDENT
    for (int64_t c = 0; c < channels; ++c) {
      to[c] = bits_float(from[c].bits | (static_cast<uint32_t>(other[c].bits) << 16 & mask));
    }
    for (int64_t c = channels; c < room; ++c) to[c] = 0;
  }
}

ATLAS_MULTIVERSION void pair(const bfloat16* from, const bfloat16* second, int64_t row,
                             int64_t channels, int64_t voxels, float* to, int64_t room) {
  if (channels == kInputs && room == kInputs) {
    pair_voxels(from, second, row, kInputs, voxels, to, kInputs);
  } else {
    pair_voxels(from, second, row, channels, voxels, to, room);
  }
}

// ---- over the grid ----------------------------------------------------------------------------

// Voxels v of one axis for which both v and v + shift lie in the grid.
struct Range {
  Range(int64_t size, int64_t shift) : begin(std::max<int64_t>(0, -shift)), end(size - std::max<int64_t>(0, shift)) {}
  int64_t size() const { return std::max<int64_t>(0, end - begin); }
  int64_t begin, end;
};

struct Item {
  int64_t kx, ky_begin, ky_end, channel, channels;
};

template <typename T>
class Worker {
 public:
  Worker(const Convolution& problem, const Accumulate& accumulate, const T* a, const T* g,
         const Item& item)
      : problem_(problem),
        accumulate_(accumulate),
        a_(a + item.channel),
        g_(g),
        item_(item),
        outputs_((problem.out_channels + 1) / 2 * 2),
        strip_rows_(std::max<int64_t>(1, kStripVoxels / problem.shape[2])),
        packed_a_(problem.shape[1] * problem.shape[2] * kInputs),
        packed_g_(strip_rows_ * problem.shape[2] * outputs_),
        sums_(9 * kInputs * outputs_) {}

  void run() {
    const auto [nx, ny, nz] = problem_.shape;
    const int64_t shift = problem_.dilation * (item_.kx - 1), planes = accumulate_.pairs ? 2 : 1;
    const Range xs(nx, shift);
    for (int64_t n = 0; n < problem_.samples; ++n) {
      for (int64_t x = xs.begin; x < xs.end; x += planes) {
        const bool two = x + planes <= xs.end;
        const int64_t g_row = (n * nx + x) * ny, a_row = g_row + shift * ny;
        pack(a_ + a_row * nz * problem_.in_row, problem_.in_row, item_.channels, ny * nz, two,
             packed_a_.data(), kInputs);
        for (int64_t y = 0; y < ny; y += strip_rows_) {
          const int64_t rows = std::min(strip_rows_, ny - y);
          pack(g_ + (g_row + y) * nz * problem_.out_row, problem_.out_row, problem_.out_channels, rows * nz,
               two, packed_g_.data(), outputs_);
          for (int64_t ky = item_.ky_begin; ky < item_.ky_end; ++ky) add_strip(y, rows, ky);
        }
      }
    }
  }

  void write(float* dw) const {
    for (int64_t k = 3 * item_.ky_begin; k < 3 * item_.ky_end; ++k) {
      for (int64_t c = 0; c < item_.channels; ++c) {
        const float* sum = sums_.data() + k * outputs_ * kInputs + c;
        for (int64_t o = 0; o < problem_.out_channels; ++o) {
          const int64_t filter = o * problem_.in_channels + item_.channel + c;
          dw[filter * 27 + item_.kx * 9 + k] = sum[o * kInputs];
        }
      }
    }
  }

 private:
  // Voxels of a plane, where words are pairs also those of the next plane, if there are `two`.
  void pack(const T* from, int64_t row, int64_t channels, int64_t voxels, bool two, float* to,
            int64_t room) {
    if constexpr (std::is_same_v<T, bfloat16>) {
      const T* second = two ? from + problem_.shape[1] * problem_.shape[2] * row : nullptr;
      if (accumulate_.pairs) return pair(from, second, row, channels, voxels, to, room);
    }
    move(from, row, channels, voxels, to, room, room);
  }

  // The rows [y, y + rows) of g against those of a that ky shifts them to.
  void add_strip(int64_t y, int64_t rows, int64_t ky) {
    const int64_t ny = problem_.shape[1], nz = problem_.shape[2], d = problem_.dilation;
    const int64_t shift = d * (ky - 1);
    const Range all(ny, shift);
    const int64_t begin = std::max(y, all.begin), end = std::min(y + rows, all.end);
    if (begin >= end) return;
    for (int64_t kz = 0; kz < 3; ++kz) {
      const Range zs(nz, d * (kz - 1));
      if (!zs.size()) continue;
      const Strip strip{packed_a_.data() + ((begin + shift) * nz + zs.begin + d * (kz - 1)) * kInputs,
                        packed_g_.data() + ((begin - y) * nz + zs.begin) * outputs_, end - begin,
                        zs.size(), nz, outputs_};
      accumulate_.run(strip, sums_.data() + (ky * 3 + kz) * outputs_ * kInputs);
    }
  }

  const Convolution& problem_;
  const Accumulate& accumulate_;
  const T *a_, *g_;
  const Item item_;
  const int64_t outputs_, strip_rows_;
  std::vector<float> packed_a_, packed_g_, sums_;
};

}  // namespace

template <typename T>
void conv_weight_gradient_cpu(const Convolution& problem, const T* a, const T* g, float* dw,
                              int threads) {
  check(problem, threads);
  if constexpr (std::is_same_v<T, float>) {
    if (winograd_pays(problem)) return winograd_weight_gradient(problem, a, g, dw, threads);
  }
  const Accumulate accumulate = best_accumulate<T>();
  const int64_t blocks = (problem.in_channels + kInputs - 1) / kInputs;
  const int64_t kys = blocks < threads ? 1 : 3;  // of an item
  parallel_for(9 / kys * blocks, threads, [&](int64_t i) {
    // The middle plane of taps, which loses no voxels at the border, comes first.
    const int64_t tap = i / blocks * kys, channel = i % blocks * kInputs;
    const Item item{(tap / 3 + 1) % 3, tap % 3, tap % 3 + kys, channel,
                    std::min(kInputs, problem.in_channels - channel)};
    Worker<T> worker(problem, accumulate, a, g, item);
    worker.run();
    worker.write(dw);
  });
}

template <typename T, typename U>
void copy_channels_cpu(int64_t voxels, int64_t channels, const T* from, int64_t from_row, U* to,
                       int64_t to_row, int threads) {
  constexpr int64_t chunk = 4096;
  parallel_for((voxels + chunk - 1) / chunk, threads, [&](int64_t i) {
    const int64_t first = i * chunk, count = std::min(chunk, voxels - first);
    move(from + first * from_row, from_row, channels, count, to + first * to_row, to_row, channels);
  });
}

#define ATLAS_INSTANTIATE_COPY(T, U)                                                              \
  template void copy_channels_cpu(int64_t, int64_t, const T*, int64_t, U*, int64_t, int);
ATLAS_INSTANTIATE_COPY(float, float)
ATLAS_INSTANTIATE_COPY(double, double)
ATLAS_INSTANTIATE_COPY(bfloat16, bfloat16)
ATLAS_INSTANTIATE_COPY(bfloat16, float)
ATLAS_INSTANTIATE_COPY(float, bfloat16)
ATLAS_INSTANTIATE_COPY(float16, float16)
ATLAS_INSTANTIATE_COPY(float16, float)
ATLAS_INSTANTIATE_COPY(float, float16)

#define ATLAS_INSTANTIATE(T)                                                                        \
  template void conv_weight_gradient_cpu(const Convolution&, const T*, const T*, float*, int);
ATLAS_INSTANTIATE(float)
ATLAS_INSTANTIATE(bfloat16)
ATLAS_INSTANTIATE(float16)

}  // namespace atlas_kernels
