// The products of rows with the encoder's weight matrices, in float. A file of its own: in one with the kernels, the
// compiler reaches its limit of growth and inlines less of them.
#include <algorithm>
#include <cstdint>
#include <memory>

#include "vectors.h"

namespace {

// C = A B in the blocks of BLIS (Van Zee and van de Geijn 2015, https://doi.org/10.1145/2764454). A panel, kDepth rows
// of B and the columns of one tile, is copied to where it stays in the first cache while the rows of A pass by. That copy
// costs a few percent, and turns B round where it lies the other way. Threads share the columns of C; k is cut at
// multiples of kDepth, so each number of C adds up in an order that depends on k alone.

constexpr int64_t kPanel = kTileColumns * kLanes;
constexpr int64_t kDepth = 384;     // a panel of AVX2 has 24 KiB
constexpr int64_t kBlockRows = 240;  // of A: with kDepth columns, 360 KiB of the second cache
constexpr int64_t kStrip = 3;       // panels that a thread takes at once, for which a block of A stays there

// A matrix in memory: element [i, j] is at[i * row + j * column].
struct Matrix {
  const float* at;
  int64_t row, column;

  Matrix from(int64_t i, int64_t j) const { return {at + i * row + j * column, row, column}; }
};

// [k, n] of B as [k, kPanel], with zeros behind its columns. One of B's strides is 1.
void pack(const Matrix& b, int64_t k, int64_t n, float* to) {
  int64_t i = 0;
  if (n == kPanel && b.column == 1) {
    for (; i < k; ++i)
      for (int64_t c = 0; c < kPanel; c += kLanes) save(to + i * kPanel + c, load(b.at + i * b.row + c));
  } else if (n == kPanel) {
    for (; i + kLanes <= k; i += kLanes)
      for (int64_t c = 0; c < kPanel; c += kLanes) {
        vfloat x[kLanes];
        UNROLL for (int j = 0; j < kLanes; ++j) x[j] = load(b.at + (c + j) * b.column + i);
        transpose_square(x);
        UNROLL for (int j = 0; j < kLanes; ++j) save(to + (i + j) * kPanel + c, x[j]);
      }
  }
  for (; i < k; ++i)
    for (int64_t c = 0; c < kPanel; ++c) to[i * kPanel + c] = c < n ? b.at[i * b.row + c * b.column] : 0.0f;
}

// C = A B of a packed panel, n of whose columns are there; or C += A B.
void multiply_panel(int64_t m, int64_t n, int64_t k, const Matrix& a, const float* panel, float* c, int64_t ldc,
                    bool add) {
  if (n < kPanel) {  // through a copy with whole vectors
    float whole[kTileRows * kPanel];
    for (int64_t row = 0; row < m; row += kTileRows) {
      const int64_t rows = std::min<int64_t>(kTileRows, m - row);
      for (int64_t i = 0; add && i < rows; ++i) std::copy_n(c + (row + i) * ldc, n, whole + i * kPanel);
      multiply_panel(rows, kPanel, k, a.from(row, 0), panel, whole, kPanel, add);
      for (int64_t i = 0; i < rows; ++i) std::copy_n(whole + i * kPanel, n, c + (row + i) * ldc);
    }
  } else if (add) {
    columns<kTileColumns, true>(m, kTileRows, k, a.at, a.row, a.column, panel, kPanel, c, ldc);
  } else {
    columns<kTileColumns, false>(m, kTileRows, k, a.at, a.row, a.column, panel, kPanel, c, ldc);
  }
}

// C [m, n] = A B, with A's columns side by side.
void multiply(int64_t m, int64_t n, int64_t k, const Matrix& a, const Matrix& b, float* c, int threads) {
  const int64_t blocks = (m + kBlockRows - 1) / kBlockRows;
  const int64_t tiles = (m + kTileRows * blocks - 1) / std::max<int64_t>(1, kTileRows * blocks);
  const int64_t most = kTileRows * tiles;  // rows of a block: all have about as many
#pragma omp parallel num_threads(threads)
  {
    alignas(64) float panel[kDepth * kPanel];
#pragma omp for schedule(dynamic)
    for (int64_t strip = 0; strip < n; strip += kStrip * kPanel)
      for (int64_t depth = 0; depth < k; depth += kDepth)
        for (int64_t row = 0; row < m; row += most)
          for (int64_t col = strip; col < std::min(n, strip + kStrip * kPanel); col += kPanel) {
            const int64_t wide = std::min(kPanel, n - col), deep = std::min(kDepth, k - depth);
            pack(b.from(depth, col), deep, wide, panel);
            multiply_panel(std::min(most, m - row), wide, deep, a.from(row, depth), panel,
                           c + row * n + col, n, depth > 0);
          }
  }
}

// y = x W^T
const char* product_forward(const float* x, int64_t x_ld, const float* weight, float* y, int64_t rows, int64_t inputs,
                            int64_t outputs, int threads) {
  multiply(rows, outputs, inputs, {x, x_ld, 1}, {weight, 1, inputs}, y, threads);
  return nullptr;
}

// The gradient of x, g W.
const char* product_backward(const float* grad, int64_t grad_ld, const float* weight, float* grad_x, int64_t rows,
                             int64_t outputs, int64_t inputs, int threads) {
  multiply(rows, inputs, outputs, {grad, grad_ld, 1}, {weight, inputs, 1}, grad_x, threads);
  return nullptr;
}

// The gradient of W, g^T x. The columns of g are laid out in the order in which tiles read them: each of a tile's rows
// would else lie in another page.
const char* product_weight_grad(const float* grad, int64_t grad_ld, const float* x, int64_t x_ld, float* grad_weight,
                                int64_t rows, int64_t outputs, int64_t inputs, int threads) {
  const int64_t tiles = (outputs + kTileRows - 1) / kTileRows;
  // [tiles, k, kTileRows], zeros behind the last of g's columns
  const std::unique_ptr<float[]> turned(new float[tiles * kTileRows * std::min(rows, kDepth)]);
#pragma omp parallel num_threads(threads)
  {
    alignas(64) float panel[kDepth * kPanel];
    for (int64_t depth = 0; depth < rows; depth += kDepth) {
      const int64_t deep = std::min(kDepth, rows - depth);
#pragma omp for schedule(static)
      for (int64_t tile = 0; tile < tiles; ++tile) {
        const int64_t first = tile * kTileRows, count = std::min<int64_t>(kTileRows, outputs - first);
        float* to = turned.get() + tile * deep * kTileRows;
        for (int64_t i = 0; i < deep; ++i) {
          const float* from = grad + (depth + i) * grad_ld + first;
          for (int64_t j = 0; j < kTileRows; ++j) to[i * kTileRows + j] = j < count ? from[j] : 0.0f;
        }
      }
#pragma omp for schedule(dynamic)
      for (int64_t col = 0; col < inputs; col += kPanel) {
        const int64_t wide = std::min(kPanel, inputs - col);
        pack({x + depth * x_ld + col, x_ld, 1}, deep, wide, panel);
        for (int64_t tile = 0; tile < tiles; ++tile) {
          const int64_t first = tile * kTileRows, count = std::min<int64_t>(kTileRows, outputs - first);
          multiply_panel(count, wide, deep, {turned.get() + tile * deep * kTileRows, 1, kTileRows}, panel,
                         grad_weight + first * inputs + col, inputs, depth > 0);
        }
      }
    }
  }
  return nullptr;
}

}  // namespace

EXPORT_F32(product_forward)
EXPORT_F32(product_backward)
EXPORT_F32(product_weight_grad)
