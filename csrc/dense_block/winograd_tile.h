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
constexpr int64_t kTiles = 16;  // that are multiplied together

// F(2, 3). F(4, 3) makes fewer products, errors of 3e-5 in floats, and little more speed: its tiles of 6^3
// points are more than the caches like.
struct Tile {
  static constexpr int kOutputs = 2, kPoints = 4;
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

// V: a vector of floats. Sums: how many of its sums are kept in registers for each vector of a line.
template <typename V, int Sums>
struct Winograd {
  static constexpr int M = Tile::kOutputs, P = Tile::kPoints;  // of an axis
  static constexpr int kWidth = sizeof(V) / sizeof(float), kVectors = kLine / kWidth;

  // A line of each of P^3 voxels, `channel` numbers into it, to the points, `stride` numbers apart.
  ATLAS_INLINE static void inputs(const Window<P>& window, int64_t channel, float* points,
                                  int64_t stride) {
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
        for (int x = 0; x < P; ++x) apply<P, P>(Tile::B, d + P * x, 1, d + P * x, 1);
#pragma GCC unroll 4
        for (int y = 0; y < P; ++y) apply<P, P>(Tile::B, d + y, P, d + y, P);
        float* to = points + z * stride + v * kWidth;
#pragma GCC unroll 16
        for (int i = 0; i < P * P; ++i) store(d[i], to + i * P * stride);
      }
    }
  }

  // The points to a line of each of the M^3 outputs.
  ATLAS_INLINE static void outputs(const float* points, int64_t stride, float (*to)[kLine]) {
    for (int v = 0; v < kVectors; ++v) {
      const float* from = points + v * kWidth;
#pragma GCC unroll 4
      for (int x = 0; x < M; ++x) {
        V plane[P * P], rows[M * P];
#pragma GCC unroll 16
        for (int i = 0; i < P * P; ++i) {
          plane[i] = dot<P>([&](int k) ATLAS_INLINED { return Tile::A[x][k]; },
                            [&](int k) ATLAS_INLINED { return load(from + (k * P * P + i) * stride); });
        }
#pragma GCC unroll 4
        for (int z = 0; z < P; ++z) apply<M, P>(Tile::A, plane + z, P, rows + z, P);
#pragma GCC unroll 4
        for (int y = 0; y < M; ++y) {
          V line[M];
          apply<M, P>(Tile::A, rows + y * P, 1, line, 1);
          for (int z = 0; z < M; ++z) store(line[z], to[(x * M + y) * M + z] + v * kWidth);
        }
      }
    }
  }

  // The transpose of `outputs`: a line of each of M^3 voxels, `channel` numbers into it, to the points.
  ATLAS_INLINE static void gradients(const Window<M>& window, int64_t channel, float* points,
                                     int64_t stride) {
    for (int v = 0; v < kVectors; ++v) {
      V g[M * M * M];
#pragma GCC unroll 8
      for (int i = 0; i < M * M * M; ++i) g[i] = load(window.at(i / M, i % M) + channel + v * kWidth);
#pragma GCC unroll 4
      for (int x = 0; x < P; ++x) {
        V plane[M * M];
#pragma GCC unroll 4
        for (int i = 0; i < M * M; ++i) {
          plane[i] = dot<M>([&](int k) ATLAS_INLINED { return Tile::A[k][x]; },
                            [&](int k) ATLAS_INLINED { return g[k * M * M + i]; });
        }
#pragma GCC unroll 4
        for (int y = 0; y < P; ++y) {
          V row[M];
#pragma GCC unroll 4
          for (int z = 0; z < M; ++z) {
            row[z] = dot<M>([&](int k) ATLAS_INLINED { return Tile::A[k][y]; },
                            [&](int k) ATLAS_INLINED { return plane[k * M + z]; });
          }
          float* to = points + (x * P + y) * P * stride + v * kWidth;
#pragma GCC unroll 4
          for (int z = 0; z < P; ++z) {
            store(dot<M>([&](int k) ATLAS_INLINED { return Tile::A[k][z]; },
                         [&](int k) ATLAS_INLINED { return row[k]; }),
                  to + z * stride);
          }
        }
      }
    }
  }

  // 27 lines of taps to the points.
  ATLAS_INLINE static void weights(const float (*taps)[kLine], float* points, int64_t stride) {
    for (int v = 0; v < kVectors; ++v) {
      V w[27], planes[P * 9], rows[P * P * 3];
      for (int i = 0; i < 27; ++i) w[i] = load(taps[i] + v * kWidth);
      for (int i = 0; i < 9; ++i) apply<P, 3>(Tile::G, w + i, 9, planes + i, 9);
      for (int i = 0; i < P * 3; ++i) {
        const int x = i / 3, z = i % 3;
        apply<P, 3>(Tile::G, planes + x * 9 + z, 3, rows + x * P * 3 + z, 3);
      }
      for (int i = 0; i < P * P; ++i) {
        V line[P];
        apply<P, 3>(Tile::G, rows + i * 3, 1, line, 1);
        for (int z = 0; z < P; ++z) store(line[z], points + (i * P + z) * stride + v * kWidth);
      }
    }
  }

  // The transpose of `weights`.
  ATLAS_INLINE static void weights_transposed(const float* points, int64_t stride,
                                              float (*taps)[kLine]) {
    for (int v = 0; v < kVectors; ++v) {
      V rows[P * P * 3], planes[P * 9], line[P], w[27];
      for (int i = 0; i < P * P; ++i) {
        for (int z = 0; z < P; ++z) line[z] = load(points + (i * P + z) * stride + v * kWidth);
        apply_transposed<P, 3>(Tile::G, line, 1, rows + i * 3, 1);
      }
      for (int i = 0; i < P * 3; ++i) {
        const int x = i / 3, z = i % 3;
        apply_transposed<P, 3>(Tile::G, rows + x * P * 3 + z, 3, planes + x * 9 + z, 3);
      }
      for (int i = 0; i < 9; ++i) apply_transposed<P, 3>(Tile::G, planes + i, 9, w + i, 9);
      for (int i = 0; i < 27; ++i) store(w[i], taps[i] + v * kWidth);
    }
  }

  // sums (kTiles, kLine) = sum over the input channels of a (lines, kTiles, kLine) w (lines, kLine, kLine).
  ATLAS_INLINE static void multiply(const float* a, const float* w, int64_t lines, float* sums) {
    static_assert(kTiles % Sums == 0);
    for (int64_t first = 0; first < kTiles; first += Sums) {
      V sum[Sums][kVectors] = {};
      const float *input = a + first * kLine, *weight = w;
      for (int64_t line = 0; line < lines; ++line, input += (kTiles - 1) * kLine) {
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
  template <int Rows, int Columns>
  ATLAS_INLINE static void apply(const float (&matrix)[Rows][Columns], const V* from, int step, V* to,
                                 int to_step) {
    V result[Rows];
#pragma GCC unroll 4
    for (int row = 0; row < Rows; ++row) {
      result[row] = dot<Columns>([&](int k) ATLAS_INLINED { return matrix[row][k]; },
                                 [&](int k) ATLAS_INLINED { return from[k * step]; });
    }
#pragma GCC unroll 4
    for (int row = 0; row < Rows; ++row) to[row * to_step] = result[row];
  }

  template <int Rows, int Columns>
  ATLAS_INLINE static void apply_transposed(const float (&matrix)[Rows][Columns], const V* from, int step,
                                            V* to, int to_step) {
#pragma GCC unroll 4
    for (int column = 0; column < Columns; ++column) {
      to[column * to_step] = dot<Rows>([&](int k) ATLAS_INLINED { return matrix[k][column]; },
                                       [&](int k) ATLAS_INLINED { return from[k * step]; });
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
