// Where the tiles of Winograd's convolutions lie, who computes which, and when they pay.
//
// Some tiles are a block. For the convolution a thread transforms a block's inputs, (points, lines,
// tiles, line), multiplies them with the weights, which were transformed before, and transforms the sums
// back: all of it stays in its second cache. For the weights' gradient the inputs and the gradients of a
// block are transformed and multiplied, tiles are summed over, and the sums of all the blocks of a part are
// kept; the parts are as many for any number of threads, and are joined in order.

#include "dense_block/winograd.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "common/parallel.h"
#include "common/scratch.h"
#include "dense_block/winograd_tile.h"

namespace atlas_kernels {
namespace {

int64_t lines_of(int64_t channels) { return (channels + kLine - 1) / kLine; }

// Points lie this far apart: an odd number of lines, or they would fight for a few sets of the cache.
int64_t stride_of(int64_t lines, int64_t tiles) { return (lines * tiles + 1) * kLine; }

// ---- tiles ------------------------------------------------------------------------------------

// The first of the outputs of each tile along an axis: with a dilation the axis falls into as many phases,
// each with tiles of its own.
std::vector<int64_t> tiles_along(int64_t size, int64_t dilation) {
  std::vector<int64_t> firsts;
  for (int64_t phase = 0; phase < std::min(size, dilation); ++phase) {
    for (int64_t first = phase; first < size; first += Tile::M * dilation) firsts.push_back(first);
  }
  return firsts;
}

struct Grid {
  explicit Grid(const Convolution& of)
      : problem(of),
        xs(tiles_along(of.shape[0], of.dilation)),
        ys(tiles_along(of.shape[1], of.dilation)),
        zs(tiles_along(of.shape[2], of.dilation)),
        tiles(of.samples * static_cast<int64_t>(xs.size() * ys.size() * zs.size())),
        none(of.shape[2] * std::max(of.in_row, of.out_row) + kLine) {}

  int64_t blocks(int64_t of) const { return (tiles + of - 1) / of; }

  const Convolution& problem;
  const std::vector<int64_t> xs, ys, zs;
  const int64_t tiles;
  const std::vector<float> none;  // a row outside the grid
};

// Finds the Side^3 voxels of one tile after the other, the first `before` places before its outputs.
template <int Side>
class Finder {
 public:
  Finder(const Grid& grid, const float* data, int64_t row, int64_t before)
      : grid_(grid), data_(data), row_(row), before_(before) {
    std::fill(window_.none, window_.none + Side * Side, grid.none.data());
  }

  const Window<Side>& at(int64_t tile) {
    const int64_t nz = grid_.zs.size(), line = tile / nz;
    if (line != line_) find_rows(line_ = line);
    find(grid_.zs[tile % nz], grid_.problem.shape[2], [&](int i, int64_t z) {
      window_.offsets[i] = z < 0 ? -1 : z * row_;
    });
    return window_;
  }

 private:
  void find_rows(int64_t line) {
    const int64_t nx = grid_.xs.size(), ny = grid_.ys.size();
    const int64_t* shape = grid_.problem.shape;
    const int64_t sample = line / ny / nx;
    find(grid_.xs[line / ny % nx], shape[0], [&](int i, int64_t x) {
      find(grid_.ys[line % ny], shape[1], [&](int j, int64_t y) {
        const bool inside = x >= 0 && y >= 0;
        const int64_t voxel = ((sample * shape[0] + x) * shape[1] + y) * shape[2];
        window_.rows[i * Side + j] = inside ? data_ + voxel * row_ : window_.none[0];
      });
    });
  }

  // Calls with each of an axis' places, -1 in place of those outside.
  template <typename Call>
  void find(int64_t first, int64_t size, const Call& call) const {
    for (int i = 0; i < Side; ++i) {
      const int64_t place = first + grid_.problem.dilation * (i - before_);
      call(i, place < size ? std::max<int64_t>(place, -1) : -1);
    }
  }

  const Grid& grid_;
  const float* data_;
  const int64_t row_, before_;
  int64_t line_ = -1;
  Window<Side> window_;
};

// A line of a tile's voxels, where fewer than kLine channels are left: copied, with zeros after them.
template <int Side>
class Padded {
 public:
  Padded(const Window<Side>& from, int64_t channel, int64_t channels) {
    const int64_t count = std::min(kLine, channels - channel);
    for (int i = 0; i < Side * Side; ++i) {
      window.rows[i] = window.none[i] = numbers_[i * Side];
      for (int z = 0; z < Side; ++z) {
        const float* voxel = from.at(i, z) + channel;
        float* to = numbers_[i * Side + z];
        std::fill(std::copy(voxel, voxel + count, to), to + kLine, 0.0f);
      }
    }
    for (int z = 0; z < Side; ++z) window.offsets[z] = z * kLine;
  }

  Window<Side> window;

 private:
  float numbers_[Side * Side * Side][kLine];
};

// ---- a block ----------------------------------------------------------------------------------

constexpr int M = Tile::M, P = Tile::P;
constexpr int64_t kPoints = cube(P);

struct Forward {
  const Grid& grid;
  const float *a, *weights;  // (lines of outputs, points, lines of inputs, line, line)
  float* y;
};

// A part's share: blocks [first, end), input lines [first_line, end_line).
struct Part {
  const Grid& grid;
  const float *a, *g;
  int64_t first, end, first_line, end_line;
  float* sums;  // (lines of outputs, points, lines of inputs, line, line)
};

struct Weights {
  const Convolution& problem;
  ConvWeights from;
  float* to;
};

template <typename Level>
struct Block {
  ATLAS_INLINE static void inputs(const Window<P>& window, int64_t channel, int64_t channels, float* to,
                                  int64_t stride) {
    if (channel + kLine <= channels) return Level::inputs(window, channel, to, stride);
    const Padded<P> padded(window, channel, channels);
    Level::inputs(padded.window, 0, to, stride);
  }

  ATLAS_INLINE static void gradients(const Window<M>& window, int64_t channel, int64_t channels,
                                     float* to, int64_t stride) {
    if (channel + kLine <= channels) return Level::gradients(window, channel, to, stride);
    const Padded<M> padded(window, channel, channels);
    Level::gradients(padded.window, 0, to, stride);
  }

  ATLAS_INLINE static void forward(const Forward& work, int64_t block) {
    constexpr int64_t tiles = Level::kConvolved;
    const Convolution& problem = work.grid.problem;
    const int64_t lines = lines_of(problem.in_channels), stride = stride_of(lines, tiles);
    const int64_t first = block * tiles, count = std::min(tiles, work.grid.tiles - first);
    const Room<float> points(kPoints * stride), sums(kPoints * stride_of(1, tiles));
    Finder<P> finder(work.grid, work.a, problem.in_row, 1);
    for (int64_t tile = 0; tile < count; ++tile) {
      const Window<P>& window = finder.at(first + tile);
      for (int64_t line = 0; line < lines; ++line) {
        inputs(window, line * kLine, problem.in_channels,
               points.data() + (line * tiles + tile) * kLine, stride);
      }
    }
    const float* weights = work.weights;
    for (int64_t channel = 0; channel < problem.out_channels; channel += kLine) {
      for (int64_t point = 0; point < kPoints; ++point, weights += lines * kLine * kLine) {
        Level::multiply(points.data() + point * stride, weights, lines,
                        sums.data() + point * stride_of(1, tiles));
      }
      write(work, first, count, channel, sums.data());
    }
  }

  ATLAS_INLINE static void write(const Forward& work, int64_t first, int64_t count, int64_t channel,
                                 const float* sums) {
    const Convolution& problem = work.grid.problem;
    const int64_t channels = std::min(kLine, problem.out_channels - channel);
    Finder<M> finder(work.grid, work.y, problem.out_row, 0);
    alignas(64) float lines[cube(M)][kLine];
    for (int64_t tile = 0; tile < count; ++tile) {
      const Window<M>& window = finder.at(first + tile);
      Level::outputs(sums + tile * kLine, stride_of(1, Level::kConvolved), lines);
      for (int i = 0; i < cube(M); ++i) {
        if (window.offsets[i % M] < 0 || window.rows[i / M] == window.none[0]) continue;
        float* voxel = const_cast<float*>(window.at(i / M, i % M)) + channel;  // of y
        if (channels == kLine) {
          std::memcpy(voxel, lines[i], sizeof lines[i]);
        } else {
          std::copy(lines[i], lines[i] + channels, voxel);
        }
      }
    }
  }

  ATLAS_INLINE static void part(const Part& work) {
    const Convolution& problem = work.grid.problem;
    const int64_t lines = lines_of(problem.in_channels), stride = stride_of(1, kTiles);
    const Room<float> points(kPoints * stride), gradient(kPoints * stride);
    Finder<P> inputs_finder(work.grid, work.a, problem.in_row, 1);
    Finder<M> outputs_finder(work.grid, work.g, problem.out_row, 0);
    for (int64_t block = work.first; block < work.end; ++block) {
      const int64_t first = block * kTiles, count = std::min(kTiles, work.grid.tiles - first);
      if (count < kTiles) {  // what is left of the block before counts for nothing
        std::fill(gradient.data(), gradient.data() + kPoints * stride, 0.0f);
        std::fill(points.data(), points.data() + kPoints * stride, 0.0f);
      }
      float* sums = work.sums;
      for (int64_t channel = 0; channel < problem.out_channels; channel += kLine) {
        for (int64_t tile = 0; tile < count; ++tile) {
          gradients(outputs_finder.at(first + tile), channel, problem.out_channels,
                    gradient.data() + tile * kLine, stride);
        }
        for (int64_t line = work.first_line; line < work.end_line; ++line) {
          for (int64_t tile = 0; tile < count; ++tile) {
            inputs(inputs_finder.at(first + tile), line * kLine, problem.in_channels,
                   points.data() + tile * kLine, stride);
          }
          for (int64_t point = 0; point < kPoints; ++point) {
            Level::multiply_transposed(points.data() + point * stride, gradient.data() + point * stride,
                                       sums + (point * lines + line) * kLine * kLine);
          }
        }
        sums += kPoints * lines * kLine * kLine;
      }
    }
  }

  // The weights between one input channel and a line of outputs.
  ATLAS_INLINE static void weights(const Weights& work, int64_t line, int64_t channel) {
    const int64_t inputs = lines_of(work.problem.in_channels) * kLine;
    alignas(64) float taps[27][kLine] = {};
    if (channel < work.problem.in_channels) {
      const int64_t outputs = std::min(kLine, work.problem.out_channels - line * kLine);
      const float* from = work.from.data + channel * work.from.in_stride;
      for (int64_t o = 0; o < outputs; ++o) {
        const float* filter = from + (line * kLine + o) * work.from.out_stride;
        for (int tap = 0; tap < 27; ++tap) taps[tap][o] = filter[tap * work.from.tap_stride];
      }
    }
    Level::weights(taps, work.to + (line * kPoints * inputs + channel) * kLine, inputs * kLine);
  }
};

struct Code {
  int64_t convolved;  // tiles of a block of the convolution
  void (*forward)(const Forward&, int64_t block);
  void (*part)(const Part&);
  void (*weights)(const Weights&, int64_t line, int64_t channel);
  void (*weights_transposed)(const float*, int64_t, float (*)[kLine]);
};

// The width of vectors, the number of registers and the size of the second cache are each level's own.
#define ATLAS_WINOGRAD(name, target, bytes, sums, tiles)                                          \
  typedef float Vector_##name __attribute__((vector_size(bytes)));                                \
  using Level_##name = Winograd<Vector_##name, sums, tiles>;                                      \
  using Block_##name = Block<Level_##name>;                                                       \
  target void forward_##name(const Forward& work, int64_t i) { Block_##name::forward(work, i); }  \
  target void part_##name(const Part& work) { Block_##name::part(work); }                         \
  target void weights_##name(const Weights& work, int64_t line, int64_t channel) {                \
    Block_##name::weights(work, line, channel);                                                   \
  }                                                                                               \
  target void transposed_##name(const float* points, int64_t stride, float (*taps)[kLine]) {      \
    Level_##name::weights_transposed(points, stride, taps);                                       \
  }                                                                                               \
  constexpr Code code_##name{tiles, forward_##name, part_##name, weights_##name, transposed_##name};

ATLAS_WINOGRAD(any, , 16, 2, 16)
#if defined(__x86_64__) && defined(__GNUC__)
#define ATLAS_AVX2 __attribute__((target("avx2,fma")))
#define ATLAS_AVX512 __attribute__((target("avx512f,fma")))
ATLAS_WINOGRAD(avx2, ATLAS_AVX2, 32, 4, 8)
ATLAS_WINOGRAD(avx512, ATLAS_AVX512, 64, 16, 16)
#undef ATLAS_AVX2
#undef ATLAS_AVX512
#endif
#undef ATLAS_WINOGRAD

const Code& best_code() {
#if defined(ATLAS_LEVEL)  // tests name one
  return ATLAS_LEVEL;
#elif defined(__x86_64__) && defined(__GNUC__)
  if (__builtin_cpu_supports("avx512f")) return code_avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return code_avx2;
  return code_any;
#else
  return code_any;
#endif
}

// ---- when it pays -----------------------------------------------------------------------------

// What a sample takes, in multiplications of a line by a number.
struct Work {
  explicit Work(const Convolution& problem) {
    constexpr double input = 9, output = 5;  // of a point of a line, measured
    const double in = lines_of(problem.in_channels), out = lines_of(problem.out_channels);
    ours = kPoints * (in * kLine * out + input * in + output * out);
    inside = all = problem.in_channels * out;
    for (const int64_t size : problem.shape) {
      ours *= static_cast<double>(tiles_along(size, problem.dilation).size());
      inside *= size + 2 * std::max<int64_t>(0, size - problem.dilation);
      all *= 3 * size;
    }
  }

  double ours, inside, all;  // the definition's, without and with taps outside the grid
};

// ---- the weights' gradient --------------------------------------------------------------------

constexpr int64_t kMostParts = 4;  // more would be more room for sums

int64_t parts_of(const Grid& grid) {
  return std::max<int64_t>(1, std::min(kMostParts, grid.blocks(kTiles) / 8));
}

// Sums over the parts, transforms, writes what of dw belongs to one input channel and a line of outputs.
void write_weights(const Convolution& problem, const Code& code, const float* sums, int64_t parts,
                   int64_t line, int64_t channel, float* dw) {
  const int64_t all = lines_of(problem.in_channels) * kLine * kLine;
  alignas(64) float points[kPoints][kLine] = {}, taps[27][kLine];
  for (int64_t part = 0; part < parts; ++part) {
    const float* from = sums + (part * lines_of(problem.out_channels) + line) * kPoints * all;
    for (int64_t point = 0; point < kPoints; ++point) {
      for (int64_t o = 0; o < kLine; ++o) points[point][o] += from[point * all + channel * kLine + o];
    }
  }
  code.weights_transposed(points[0], kLine, taps);
  const int64_t outputs = std::min(kLine, problem.out_channels - line * kLine);
  for (int64_t o = 0; o < outputs; ++o) {
    float* filter = dw + ((line * kLine + o) * problem.in_channels + channel) * 27;
    for (int tap = 0; tap < 27; ++tap) filter[tap] = taps[tap][o];
  }
}

}  // namespace

bool winograd_pays(const Convolution& problem) {
  const Work work(problem);
  return work.ours < work.inside;
}

bool convolution_pays(const Convolution& problem) {
  // What oneDNN's took was as if it left out half of what lies outside the grid and did a little more.
  constexpr double more = 1.5e5;
  const Work work(problem);
  return work.ours < (work.inside + work.all) / 2 + more;
}

void convolution_cpu(const Convolution& problem, const float* a, const ConvWeights& w, float* y,
                     int threads) {
  check(problem, threads);
  const Code& code = best_code();
  const Grid grid(problem);
  const int64_t ins = lines_of(problem.in_channels) * kLine, outs = lines_of(problem.out_channels);
  const Room<float> weights(outs * kPoints * ins * kLine);
  const Weights work{problem, w, weights.data()};
  parallel_for(outs * ins / kLine, threads, [&](int64_t i) {
    for (int64_t c = i * kLine; c < (i + 1) * kLine; ++c) code.weights(work, c / ins, c % ins);
  });
  const Forward forward{grid, a, weights.data(), y};
  parallel_for(grid.blocks(code.convolved), threads, [&](int64_t block) { code.forward(forward, block); });
}

void winograd_weight_gradient(const Convolution& problem, const float* a, const float* g, float* dw,
                              int threads) {
  const Code& code = best_code();
  const Grid grid(problem);
  const int64_t lines = lines_of(problem.in_channels), outs = lines_of(problem.out_channels);
  const int64_t blocks = grid.blocks(kTiles), parts = parts_of(grid), size = outs * kPoints * lines * kLine * kLine;
  const Room<float> sums(parts * size);
  std::fill(sums.data(), sums.data() + parts * size, 0.0f);
  const int64_t shares = parts < 2 * threads ? lines : 1;  // each transforms the gradient again
  parallel_for(parts * shares, threads, [&](int64_t i) {
    const int64_t part = i / shares, share = i % shares;
    code.part({grid, a, g, blocks * part / parts, blocks * (part + 1) / parts,
               lines * share / shares, lines * (share + 1) / shares, sums.data() + part * size});
  });
  parallel_for(outs * problem.in_channels, threads, [&](int64_t i) {
    write_weights(problem, code, sums.data(), parts, i / problem.in_channels, i % problem.in_channels, dw);
  });
}

}  // namespace atlas_kernels
