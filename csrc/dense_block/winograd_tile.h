// The arithmetic of Winograd's minimal filtering in three dimensions, for vectors of any width: transforms
// of one tile and products of a few. No target of its own: each is inlined into a function that has one.
//
// With matrices B, G and A of one axis, applied along all three, a tile's outputs y are made of its inputs d
// and a filter's taps w by
//
//   v = B d,  u = G w,  m = sum over channels of u v (point by point),  y = A m
//
// and gradients go through the transposes of A and G.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/multiversion.h"

namespace atlas_kernels {

constexpr int64_t kLine = 16;   // channels that lie side by side: one line of the cache
constexpr int64_t kTiles = 16;  // that a gradient of weights multiplies together

// F(2, 3). F(4, 3) makes fewer products, errors of 3e-5 in floats, and little more speed: its tiles of 6^3
// points are more than the caches like.
struct Tile {
  static constexpr int M = 2, P = 4;  // outputs and points along an axis
  static constexpr float B[4][4] = {{1, 0, -1, 0}, {0, 1, 1, 0}, {0, -1, 1, 0}, {0, 1, 0, -1}};
  static constexpr float G[4][3] = {{1, 0, 0}, {.5, .5, .5}, {.5, -.5, .5}, {0, 0, 1}};
  static constexpr float A[2][4] = {{1, 1, 1, 0}, {0, 1, -1, -1}};
};

constexpr int cube(int side) { return side * side * side; }

// Where the Side^3 voxels of a tile lie: rows (x, y) along z, and offsets in them, -1 outside the grid.
// `none` points to zeros of a row's length.
template <int Side>
struct Window {
  const float* rows[Side * Side];
  const float* none[Side * Side];
  int64_t offsets[Side];

  ATLAS_INLINE const float* at(int row, int z) const {
    return offsets[z] < 0 ? none[row] : rows[row] + offsets[z];
  }
};

// V: a vector of floats. Sums: how many of its sums are kept in registers for each vector of a line. Convolved:
// how many tiles a convolution multiplies together, few enough for its points and weights to stay in the second
// cache.
template <typename V, int Sums, int64_t Convolved>
struct Winograd {
  static constexpr int M = Tile::M, P = Tile::P;
  static constexpr int kWidth = sizeof(V) / sizeof(float), kVectors = kLine / kWidth;
  static constexpr int64_t kConvolved = Convolved;

  // A line of each of P^3 voxels, `channel` numbers into it, to the points, `stride` numbers apart.
  ATLAS_INLINE static void inputs(const Window<P>& window, int64_t channel, float* points,
                                  int64_t stride) {
    const auto inputs_matrix = [](int row, int column) ATLAS_INLINED { return Tile::B[row][column]; };
    const float* const* rows[P];
    int64_t at[P];
    for (int z = 0; z < P; ++z) {
      const bool inside = window.offsets[z] >= 0;
      rows[z] = inside ? window.rows : window.none;
      at[z] = channel + (inside ? window.offsets[z] : 0);
    }
    for (int v = 0; v < kVectors; ++v) {
#pragma GCC unroll 4
      for (int z = 0; z < P; ++z) {
        V d[P * P];
#pragma GCC unroll 16
        for (int i = 0; i < P * P; ++i) {
          d[i] = dot<P>([&](int k) ATLAS_INLINED { return Tile::B[z][k]; },
                        [&](int k) ATLAS_INLINED { return load(rows[k][i] + at[k] + v * kWidth); });
        }
#pragma GCC unroll 4
        for (int x = 0; x < P; ++x) apply<P, P>(inputs_matrix, d + P * x, 1, d + P * x, 1);
#pragma GCC unroll 4
        for (int y = 0; y < P; ++y) apply<P, P>(inputs_matrix, d + y, P, d + y, P);
        float* to = points + z * stride + v * kWidth;
#pragma GCC unroll 16
        for (int i = 0; i < P * P; ++i) store(d[i], to + i * P * stride);
      }
    }
  }

  // The points to a line of each of the M^3 outputs.
  ATLAS_INLINE static void outputs(const float* points, int64_t stride, float (*to)[kLine]) {
    gather<M>([](int row, int column) ATLAS_INLINED { return Tile::A[row][column]; }, points, stride, to);
  }

  // The transpose of `outputs`: a line of each of M^3 voxels, `channel` numbers into it, to the points.
  ATLAS_INLINE static void gradients(const Window<M>& window, int64_t channel, float* points,
                                     int64_t stride) {
    spread<M>([](int row, int column) ATLAS_INLINED { return Tile::A[column][row]; },
              [&](int i) ATLAS_INLINED { return window.at(i / M, i % M) + channel; }, points, stride);
  }

  // 27 lines of taps to the points.
  ATLAS_INLINE static void weights(const float (*taps)[kLine], float* points, int64_t stride) {
    spread<3>([](int row, int column) ATLAS_INLINED { return Tile::G[row][column]; },
              [&](int i) ATLAS_INLINED { return taps[i]; }, points, stride);
  }

  // The transpose of `weights`.
  ATLAS_INLINE static void weights_transposed(const float* points, int64_t stride,
                                              float (*taps)[kLine]) {
    gather<3>([](int row, int column) ATLAS_INLINED { return Tile::G[column][row]; }, points, stride, taps);
  }

  // sums (Convolved, kLine) = sum over the input channels of a (lines, Convolved, kLine) w (lines, kLine, kLine).
  ATLAS_INLINE static void multiply(const float* a, const float* w, int64_t lines, float* sums) {
    static_assert(Convolved % Sums == 0);
    for (int64_t first = 0; first < Convolved; first += Sums) {
      V sum[Sums][kVectors] = {};
      const float *input = a + first * kLine, *weight = w;
      for (int64_t line = 0; line < lines; ++line, input += (Convolved - 1) * kLine) {
        for (int64_t channel = 0; channel < kLine; ++channel, ++input, weight += kLine) {
          add_product(input, kLine, weight, sum);
        }
      }
      write<false>(sum, sums + first * kLine);
    }
  }

  // sums (kLine, kLine) += sum over tiles of a (kTiles, kLine), rows of sums, times g (kTiles, kLine).
  ATLAS_INLINE static void multiply_transposed(const float* a, const float* g, float* sums) {
    static_assert(kLine % Sums == 0);
    for (int64_t first = 0; first < kLine; first += Sums) {
      V sum[Sums][kVectors] = {};
      for (int64_t tile = 0; tile < kTiles; ++tile) {
        add_product(a + tile * kLine + first, 1, g + tile * kLine, sum);
      }
      write<true>(sum, sums + first * kLine);
    }
  }

 private:
  ATLAS_INLINE static V load(const float* from) {
    V to;
    std::memcpy(&to, from, sizeof to);
    return to;
  }
  ATLAS_INLINE static void store(V from, float* to) { std::memcpy(to, &from, sizeof from); }

  // The sum of number(k) vector(k) over k < N; numbers are known when this is compiled, and a 0 costs
  // nothing.
  template <int N, typename Number, typename Vector>
  ATLAS_INLINE static V dot(const Number& number, const Vector& vector) {
    V sum = {};
    bool any = false;
#pragma GCC unroll 4
    for (int k = 0; k < N; ++k) {
      if (number(k) == 0) continue;
      const V term = number(k) == 1 ? vector(k) : number(k) == -1 ? -vector(k) : number(k) * vector(k);
      sum = any ? sum + term : term;
      any = true;
    }
    return sum;
  }

  // to = matrix from, of numbers that lie `step` and `to_step` apart; may be in place.
  template <int Rows, int Columns, typename Matrix>
  ATLAS_INLINE static void apply(const Matrix& matrix, const V* from, int step, V* to, int to_step) {
    V result[Rows];
#pragma GCC unroll 4
    for (int row = 0; row < Rows; ++row) {
      result[row] = dot<Columns>([&](int k) ATLAS_INLINED { return matrix(row, k); },
                                 [&](int k) ATLAS_INLINED { return from[k * step]; });
    }
#pragma GCC unroll 4
    for (int row = 0; row < Rows; ++row) to[row * to_step] = result[row];
  }

  // N^3 lines to the points, by a matrix of (P, N) along each axis.
  template <int N, typename Matrix, typename Line>
  ATLAS_INLINE static void spread(const Matrix& matrix, const Line& line, float* points,
                                  int64_t stride) {
    for (int v = 0; v < kVectors; ++v) {
      V from[N * N * N], planes[P * N * N], rows[P * P * N], row[P];
#pragma GCC unroll 8
      for (int i = 0; i < N * N * N; ++i) from[i] = load(line(i) + v * kWidth);
#pragma GCC unroll 9
      for (int i = 0; i < N * N; ++i) apply<P, N>(matrix, from + i, N * N, planes + i, N * N);
#pragma GCC unroll 12
      for (int i = 0; i < P * N; ++i) {
        apply<P, N>(matrix, planes + i / N * N * N + i % N, N, rows + i / N * P * N + i % N, N);
      }
#pragma GCC unroll 16
      for (int i = 0; i < P * P; ++i) {
        apply<P, N>(matrix, rows + i * N, 1, row, 1);
#pragma GCC unroll 4
        for (int z = 0; z < P; ++z) store(row[z], points + (i * P + z) * stride + v * kWidth);
      }
    }
  }

  // The points to N^3 lines, by a matrix of (N, P) along each axis.
  template <int N, typename Matrix>
  ATLAS_INLINE static void gather(const Matrix& matrix, const float* points, int64_t stride,
                                  float (*to)[kLine]) {
    for (int v = 0; v < kVectors; ++v) {
      V rows[P * P * N], planes[P * N * N], row[P], column[N];
#pragma GCC unroll 16
      for (int i = 0; i < P * P; ++i) {
#pragma GCC unroll 4
        for (int z = 0; z < P; ++z) row[z] = load(points + (i * P + z) * stride + v * kWidth);
        apply<N, P>(matrix, row, 1, rows + i * N, 1);
      }
#pragma GCC unroll 12
      for (int i = 0; i < P * N; ++i) {
        apply<N, P>(matrix, rows + i / N * P * N + i % N, N, planes + i / N * N * N + i % N, N);
      }
#pragma GCC unroll 9
      for (int i = 0; i < N * N; ++i) {
        apply<N, P>(matrix, planes + i, N * N, column, 1);
#pragma GCC unroll 3
        for (int x = 0; x < N; ++x) store(column[x], to[x * N * N + i] + v * kWidth);
      }
    }
  }

  // sum[i] += column[i] row
  ATLAS_INLINE static void add_product(const float* column, int64_t step, const float* row,
                                       V (*sum)[kVectors]) {
    V right[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) right[v] = load(row + v * kWidth);
#pragma GCC unroll 16
    for (int i = 0; i < Sums; ++i) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[i][v] += column[i * step] * right[v];
    }
  }

  template <bool Add>
  ATLAS_INLINE static void write(const V (*sum)[kVectors], float* to) {
#pragma GCC unroll 16
    for (int i = 0; i < Sums; ++i) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        float* out = to + i * kLine + v * kWidth;
        store(Add ? load(out) + sum[i][v] : sum[i][v], out);
      }
    }
  }
};

}  // namespace atlas_kernels
