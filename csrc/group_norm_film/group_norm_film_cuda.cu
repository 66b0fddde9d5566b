// group_norm_film on an NVIDIA GPU, for installs without Triton: two plain passes.
//
// The same design as atlas_kernels/group_norm_film/triton_kernel.py: every channel is split into parts,
// a block of threads takes a part of one channel, or of up to 32 that lie side by side, and parts are
// put together in an order that depends on the shape alone. No atomics. Sums of a thread are in the
// arithmetic type (Compute), everything beyond a thread is double.

#include <cuda_runtime.h>

#include <algorithm>
#include <stdexcept>
#include <string>

#include "common/checks.h"
#include "common/numbers_cuda.h"
#include "group_norm_film/group_norm_film.h"

namespace atlas_kernels {
namespace {

constexpr int kThreads = 256;
template <typename C>
constexpr int kUnroll = 32 / sizeof(C);  // numbers that a thread has under way at a time
constexpr int64_t kBlocks = 2048;  // aimed at where something is summed
constexpr int64_t kParts = 512;    // of a channel, at most: one block puts them together

// ---- numbers ----------------------------------------------------------------------------------

__device__ float logistic(float z) { return 1.0f / (1.0f + expf(-z)); }
__device__ double logistic(double z) { return 1.0 / (1.0 + exp(-z)); }

template <typename C>
__device__ C pull_back(C dy, C z, bool silu) {
  if (!silu) return dy;
  const C s = logistic(z);
  return dy * (s + s * (z - z * s));
}

struct Moments {
  double count = 0, mean = 0, m2 = 0;

  // Chan, Golub & LeVeque 1983.
  __device__ void join(const Moments& other) {
    if (other.count == 0) return;
    const double all = count + other.count, delta = other.mean - mean;
    mean += delta * (other.count / all);
    m2 += other.m2 + delta * delta * (count * other.count / all);
    count = all;
  }
};

struct Pair {
  double one = 0, two = 0;
  __device__ void join(const Pair& other) { one += other.one, two += other.two; }
};

// Joins what the threads of a block found, those `width` apart with each other, in a fixed order; the
// first `width` threads then hold the results. `held` has room for all threads.
template <typename Found>
__device__ Found joined(Found found, int width, Found* held) {
  held[threadIdx.x] = found;
  for (int half = kThreads / 2; half >= width; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) held[threadIdx.x].join(held[threadIdx.x + half]);
  }
  return held[threadIdx.x];
}

// ---- the walk over a tensor -------------------------------------------------------------------

struct Walk {
  Walk(const GroupNormFilm& problem, bool sums)
      : voxels(problem.voxels), channels(problem.channels), row(problem.x_row),
        last(problem.channels_last) {
    while (last && width < 32 && width < channels) width *= 2;
    blocks = (channels + width - 1) / width;
    const int64_t tile = kThreads / width * kUnroll<float>, tiles = (voxels + tile - 1) / tile;
    int64_t most = tiles;
    if (sums) most = std::min(std::max<int64_t>(1, kBlocks / std::max<int64_t>(1, problem.samples * blocks)), kParts);
    part_voxels = tile * std::max<int64_t>(1, (tiles + most - 1) / std::max<int64_t>(1, most));
    parts = std::max<int64_t>(1, (voxels + part_voxels - 1) / part_voxels);
    grid = problem.samples * parts * blocks;
  }

  __device__ int64_t at(int64_t sample, int64_t c, int64_t v, int64_t row) const {
    return last ? (sample * voxels + v) * row + c : (sample * channels + c) * voxels + v;
  }

  int64_t voxels, channels, row;
  bool last;
  int width = 1;                                // channels of a block of threads
  int64_t blocks, part_voxels, parts, grid;
};

// What one thread is for: a channel, and voxels from `v` to `end`, `step` apart.
struct Place {
  __device__ explicit Place(const Walk& walk) {
    const int64_t b = blockIdx.x;
    const int64_t block = walk.last ? b % walk.blocks : b / walk.parts % walk.blocks;
    part = walk.last ? b / walk.blocks % walk.parts : b % walk.parts;
    sample = b / (walk.blocks * walk.parts);
    c = block * walk.width + threadIdx.x % walk.width;
    step = kThreads / walk.width;
    v = part * walk.part_voxels + threadIdx.x / walk.width;
    end = c < walk.channels ? min(walk.voxels, (part + 1) * walk.part_voxels) : 0;
    first = threadIdx.x < walk.width && c < walk.channels;  // of its channel: writes the result
  }
  __device__ int64_t slot(const Walk& walk) const {
    return (sample * walk.parts + part) * walk.channels + c;
  }
  int64_t sample, part, c, v, end;
  int step;
  bool first;
};

// A thread's next numbers, 0 past the end: all of them are under way at the same time.
template <typename T>
__device__ void fetch(const Walk& walk, const Place& place, int64_t v, const T* from, int64_t row,
                      Compute<T>* to) {
  using C = Compute<T>;
#pragma unroll
  for (int i = 0; i < kUnroll<C>; ++i) {
    const int64_t at = v + i * place.step;
    to[i] = at < place.end ? read(from[walk.at(place.sample, place.c, at, row)]) : C(0);
  }
}

// ---- coefficients -----------------------------------------------------------------------------

__device__ double or_else(const double* values, int64_t i, double absent) {
  return values ? values[i] : absent;
}

__device__ double film_of(const GroupNormFilm& problem, int64_t sample, int64_t c) {
  return 1 + or_else(problem.gamma, sample * problem.channels + c, 0);
}

// z = (x - mean) * scale + shift of a block's channels, computed once for all its threads.
template <typename C>
struct Affine {
  C mean[32], scale[32], shift[32];

  __device__ void fill(const GroupNormFilm& problem, const Place& place, const double* means,
                       const double* rstds) {
    if (place.first) {
      const int64_t group = place.sample * problem.groups + place.c / (problem.channels / problem.groups);
      const double film = film_of(problem, place.sample, place.c);
      mean[threadIdx.x] = C(means[group]);
      scale[threadIdx.x] = C(rstds[group] * or_else(problem.weight, place.c, 1) * film);
      shift[threadIdx.x] = C(or_else(problem.bias, place.c, 0) * film +
                             or_else(problem.beta, place.sample * problem.channels + place.c, 0));
    }
    __syncthreads();
  }
};

// ---- kernels: forward -------------------------------------------------------------------------

template <typename T>
__global__ void __launch_bounds__(kThreads) part_statistics(Walk walk, const T* x, Moments* parts) {
  using C = Compute<T>;
  __shared__ Moments held[kThreads];
  const Place place(walk);
  C pivot = 0, mean = 0, m2 = 0, count = 0;  // the mean is less the thread's first number
  if (place.v < place.end) pivot = read(x[walk.at(place.sample, place.c, place.v, walk.row)]);
  for (int64_t v = place.v; v < place.end; v += kUnroll<C> * place.step) {
    C value[kUnroll<C>], sum = 0, squares = 0, here = 0;
    fetch(walk, place, v, x, walk.row, value);
#pragma unroll
    for (int i = 0; i < kUnroll<C>; ++i) {
      const bool real = v + i * place.step < place.end;
      here += real ? C(1) : C(0);
      sum += real ? value[i] - pivot : C(0);
    }
    sum /= here;
#pragma unroll
    for (int i = 0; i < kUnroll<C>; ++i) {
      const C deviation = v + i * place.step < place.end ? value[i] - pivot - sum : C(0);
      squares += deviation * deviation;
    }
    const C delta = sum - mean, share = here / (count + here);
    mean += delta * share;
    m2 += squares + delta * delta * (count * share);
    count += here;
  }
  Moments found;
  found.count = count, found.mean = double(pivot) + double(mean), found.m2 = m2;
  found = joined(found, walk.width, held);
  if (place.first) parts[place.slot(walk)] = found;
}

// One block a group.
__global__ void __launch_bounds__(kThreads) merge_groups(GroupNormFilm problem, int64_t n_parts,
                                                         const Moments* parts, double* mean,
                                                         double* rstd) {
  __shared__ Moments held[kThreads];
  const int64_t size = problem.channels / problem.groups;
  const int64_t sample = blockIdx.x / problem.groups, first = blockIdx.x % problem.groups * size;
  Moments found;
  for (int64_t i = threadIdx.x; i < size * n_parts; i += kThreads) {
    found.join(parts[(sample * n_parts + i / size) * problem.channels + first + i % size]);
  }
  found = joined(found, 1, held);
  if (threadIdx.x) return;
  const double nothing = found.count ? 0 : nan("");
  mean[blockIdx.x] = found.mean + nothing;
  rstd[blockIdx.x] = 1 / sqrt(found.m2 / found.count + problem.eps);
}

template <typename T>
__global__ void __launch_bounds__(kThreads) apply(GroupNormFilm problem, Walk walk, const T* x,
                                                  const double* mean, const double* rstd, T* y) {
  using C = Compute<T>;
  __shared__ Affine<C> affine;
  const Place place(walk);
  affine.fill(problem, place, mean, rstd);
  const int lane = threadIdx.x % walk.width;
  const C center = affine.mean[lane], scale = affine.scale[lane], shift = affine.shift[lane];
  for (int64_t v = place.v; v < place.end; v += kUnroll<C> * place.step) {
    C value[kUnroll<C>];
    fetch(walk, place, v, x, walk.row, value);
#pragma unroll
    for (int i = 0; i < kUnroll<C>; ++i) {
      const int64_t at = v + i * place.step;
      C z = (value[i] - center) * scale + shift;
      if (problem.silu) z *= logistic(z);
      if (at < place.end) write(z, y[walk.at(place.sample, place.c, at, walk.channels)]);
    }
  }
}

// ---- kernels: backward ------------------------------------------------------------------------

// Sums of dz = dL/dz and of dz (x - mean).
template <typename T>
__global__ void __launch_bounds__(kThreads) part_sums(GroupNormFilm problem, Walk walk, const T* dy,
                                                      const T* x, const double* mean,
                                                      const double* rstd, Pair* parts) {
  using C = Compute<T>;
  __shared__ Affine<C> affine;
  __shared__ Pair held[kThreads];
  const Place place(walk);
  affine.fill(problem, place, mean, rstd);
  const int lane = threadIdx.x % walk.width;
  const C center = affine.mean[lane], scale = affine.scale[lane], shift = affine.shift[lane];
  C one = 0, two = 0;
  for (int64_t v = place.v; v < place.end; v += kUnroll<C> * place.step) {
    C value[kUnroll<C>], back[kUnroll<C>];
    fetch(walk, place, v, x, walk.row, value);
    fetch(walk, place, v, dy, walk.channels, back);
#pragma unroll
    for (int i = 0; i < kUnroll<C>; ++i) {
      const C d = value[i] - center;
      const C dz = pull_back(back[i], d * scale + shift, problem.silu);
      if (v + i * place.step >= place.end) continue;
      one += dz;
      two += dz * d;
    }
  }
  Pair found;
  found.one = one, found.two = two;
  found = joined(found, walk.width, held);
  if (place.first) parts[place.slot(walk)] = found;
}

// One block a group, a warp a channel. Writes the channels' sums, dz (x - mean) times rstd, and what
// every number of the group has in common: dx = scale * dz - one - (x - mean) * two.
__global__ void __launch_bounds__(kThreads)
    finish(GroupNormFilm problem, int64_t n_parts, const Pair* parts, const double* rstd, Pair* sums,
           Pair* common, GroupNormFilmGradients gradients) {
  __shared__ Pair held[kThreads];
  const int64_t size = problem.channels / problem.groups;
  const int64_t sample = blockIdx.x / problem.groups, first = blockIdx.x % problem.groups * size;
  const int lane = threadIdx.x % 32;
  const double spread = rstd[blockIdx.x];
  Pair back;
  for (int64_t c = first + threadIdx.x / 32; c < first + size; c += kThreads / 32) {
    Pair found;
    for (int64_t part = lane; part < n_parts; part += 32) {
      found.join(parts[(sample * n_parts + part) * problem.channels + c]);
    }
    for (int half = 16; half; half /= 2) {
      Pair other;
      other.one = __shfl_down_sync(~0u, found.one, half);
      other.two = __shfl_down_sync(~0u, found.two, half);
      found.join(other);
    }
    if (lane) continue;
    found.two *= spread;
    const int64_t at = sample * problem.channels + c;
    const double weight = or_else(problem.weight, c, 1), gain = weight * film_of(problem, sample, c);
    sums[at] = found;
    if (gradients.beta) gradients.beta[at] = found.one;
    if (gradients.gamma) gradients.gamma[at] = weight * found.two + or_else(problem.bias, c, 0) * found.one;
    back.one += gain * found.one;
    back.two += gain * found.two;
  }
  back = joined(back, 1, held);
  if (threadIdx.x) return;
  const double of_mean = spread / static_cast<double>(size * problem.voxels);
  common[blockIdx.x].one = back.one * of_mean;
  common[blockIdx.x].two = back.two * of_mean * spread;
}

// One thread a channel: adds the samples up.
__global__ void parameters(GroupNormFilm problem, const Pair* sums, GroupNormFilmGradients gradients) {
  const int64_t c = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
  if (c >= problem.channels) return;
  Pair found;
  for (int64_t sample = 0; sample < problem.samples; ++sample) {
    const double film = film_of(problem, sample, c);
    const Pair& of = sums[sample * problem.channels + c];
    found.one += film * of.one, found.two += film * of.two;
  }
  if (gradients.weight) gradients.weight[c] = found.two;
  if (gradients.bias) gradients.bias[c] = found.one;
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    gradient(GroupNormFilm problem, Walk walk, const T* dy, const T* x, const double* mean,
             const double* rstd, const Pair* common, T* dx, bool accumulate) {
  using C = Compute<T>;
  __shared__ Affine<C> affine;
  const Place place(walk);
  affine.fill(problem, place, mean, rstd);
  if (place.v >= place.end) return;
  const int lane = threadIdx.x % walk.width;
  const C center = affine.mean[lane], scale = affine.scale[lane], shift = affine.shift[lane];
  const Pair& of = common[place.sample * problem.groups + place.c / (problem.channels / problem.groups)];
  const C offset = C(of.one), slope = C(of.two);
  for (int64_t v = place.v; v < place.end; v += kUnroll<C> * place.step) {
    C value[kUnroll<C>], back[kUnroll<C>];
    fetch(walk, place, v, x, walk.row, value);
    fetch(walk, place, v, dy, walk.channels, back);
#pragma unroll
    for (int i = 0; i < kUnroll<C>; ++i) {
      const int64_t at = v + i * place.step;
      const C d = value[i] - center;
      const C dz = pull_back(back[i], d * scale + shift, problem.silu);
      const C result = (scale * dz - offset) - d * slope;
      if (at >= place.end) continue;
      T& to = dx[walk.at(place.sample, place.c, at, walk.row)];
      write(accumulate ? read(to) + result : result, to);
    }
  }
}

// ---- launches ---------------------------------------------------------------------------------

unsigned blocks_of(int64_t blocks) {
  require(blocks < int64_t(1) << 31, "x is too large: it needs more than 2^31 blocks of threads");
  return static_cast<unsigned>(blocks);
}

void check(const GroupNormFilm& problem) {
  require(problem.samples >= 0 && problem.channels > 0 && problem.voxels >= 0, "x has a wrong shape");
  require(problem.groups > 0 && problem.channels % problem.groups == 0, "groups must divide the channels");
  require(!problem.channels_last || problem.x_row >= problem.channels, "x_row is less than the channels");
}

// After the kernels of one call: whether they could be queued.
void check_launch() {
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string("group_norm_film: CUDA says: ") + cudaGetErrorString(error));
  }
}

}  // namespace

int64_t group_norm_film_room(const GroupNormFilm& problem) {
  check(problem);
  const int64_t all = problem.samples * problem.channels, parts = Walk(problem, true).parts;
  return std::max<int64_t>(all * parts * sizeof(Moments), (all * (parts + 2)) * sizeof(Pair));
}

template <typename T>
void group_norm_film_cuda(const GroupNormFilm& problem, const T* x, T* y, double* mean, double* rstd,
                          void* room, void* stream) {
  check(problem);
  if (!problem.samples) return;
  const Walk sums(problem, true), all(problem, false);
  const auto queue = static_cast<cudaStream_t>(stream);
  const unsigned groups = blocks_of(problem.samples * problem.groups);
  auto* parts = static_cast<Moments*>(room);
  part_statistics<<<blocks_of(sums.grid), kThreads, 0, queue>>>(sums, x, parts);
  merge_groups<<<groups, kThreads, 0, queue>>>(problem, sums.parts, parts, mean, rstd);
  apply<<<blocks_of(all.grid), kThreads, 0, queue>>>(problem, all, x, mean, rstd, y);
  check_launch();
}

template <typename T>
void group_norm_film_backward_cuda(const GroupNormFilm& problem, const T* dy, const T* x,
                                   const double* mean, const double* rstd, T* dx, bool accumulate,
                                   const GroupNormFilmGradients& gradients, void* room, void* stream) {
  check(problem);
  const Walk sums(problem, true), all(problem, false);
  const auto queue = static_cast<cudaStream_t>(stream);
  const unsigned groups = blocks_of(problem.samples * problem.groups);
  auto* parts = static_cast<Pair*>(room);
  Pair* channels = parts + problem.samples * sums.parts * problem.channels;
  Pair* common = channels + problem.samples * problem.channels;
  if (problem.samples) {
    part_sums<<<blocks_of(sums.grid), kThreads, 0, queue>>>(problem, sums, dy, x, mean, rstd, parts);
    finish<<<groups, kThreads, 0, queue>>>(problem, sums.parts, parts, rstd, channels, common, gradients);
    gradient<<<blocks_of(all.grid), kThreads, 0, queue>>>(problem, all, dy, x, mean, rstd, common, dx,
                                                         accumulate);
  }
  if (gradients.weight || gradients.bias) {
    const unsigned blocks = blocks_of((problem.channels + 31) / 32);
    parameters<<<blocks, 32, 0, queue>>>(problem, channels, gradients);
  }
  check_launch();
}

#define ATLAS_INSTANTIATE(T)                                                                        \
  template void group_norm_film_cuda(const GroupNormFilm&, const T*, T*, double*, double*, void*,   \
                                     void*);                                                        \
  template void group_norm_film_backward_cuda(const GroupNormFilm&, const T*, const T*,             \
                                              const double*, const double*, T*, bool,               \
                                              const GroupNormFilmGradients&, void*, void*);
ATLAS_INSTANTIATE(float)
ATLAS_INSTANTIATE(double)
ATLAS_INSTANTIATE(bfloat16)
ATLAS_INSTANTIATE(float16)

}  // namespace atlas_kernels
