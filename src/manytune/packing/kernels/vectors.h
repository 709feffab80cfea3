// What the kernels and the products share: numbers, vectors, and tiles of a matrix product.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>

namespace {

struct bf16 {
  uint16_t bits;
};

inline float as_float(uint32_t x) {
  float f;
  std::memcpy(&f, &x, 4);
  return f;
}

inline uint32_t as_bits(float f) {
  uint32_t x;
  std::memcpy(&x, &f, 4);
  return x;
}

inline float get(float x) { return x; }
inline float get(bf16 x) { return as_float(uint32_t(x.bits) << 16); }
inline void put(float& to, float x) { to = x; }
inline void put(bf16& to, float x) {  // to nearest, ties to even, as torch rounds
  const uint32_t bits = as_bits(x);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  to.bits = uint16_t(x != x ? 0x7fc0 : rounded);
}

// ---- vectors ----
//
// As wide as the target's registers: a compiler cuts a wider vector into several, through memory. A tile of sums has
// at most as many vectors as the registers hold beside what is multiplied. AVX2 and SSE have sixteen registers, for
// twelve sums, two vectors of B and a number of A; NEON has thirty-two, for twenty sums, four vectors of B and five
// numbers of A. AVX-512 has as many, but a head of 32 or 64 columns is two or four of its vectors wide.

#if defined(__AVX512F__)
constexpr int kLanes = 16, kTileRows = 6, kTileColumns = 2;
#elif defined(__AVX__)
constexpr int kLanes = 8, kTileRows = 6, kTileColumns = 2;
#elif defined(__aarch64__)
constexpr int kLanes = 4, kTileRows = 5, kTileColumns = 4;
#else
constexpr int kLanes = 4, kTileRows = 6, kTileColumns = 2;
#endif

typedef float vfloat __attribute__((vector_size(4 * kLanes)));
typedef uint32_t vuint __attribute__((vector_size(4 * kLanes)));
typedef int32_t vint __attribute__((vector_size(4 * kLanes)));
typedef uint16_t vshort __attribute__((vector_size(2 * kLanes)));
// The same anywhere in memory. A copy by memcpy goes through the stack where the compiler cuts it into halves.
typedef vfloat vfloat_at __attribute__((aligned(4), may_alias));
typedef vshort vshort_at __attribute__((aligned(2), may_alias));

inline vfloat as_floats(vuint x) { return vfloat(x); }  // the same bits
inline vfloat load(const float* from) { return *reinterpret_cast<const vfloat_at*>(from); }
inline vfloat load(const bf16* from) {
  const vshort x = *reinterpret_cast<const vshort_at*>(from);
  return as_floats(__builtin_convertvector(x, vuint) << 16);
}

inline void save(float* to, vfloat x) { *reinterpret_cast<vfloat_at*>(to) = x; }

inline void save(bf16* to, vfloat x) {  // as `put` rounds
  const vuint bits = vuint(x);
  const vuint rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  *reinterpret_cast<vshort_at*>(to) = __builtin_convertvector(x != x ? vuint{} + 0x7fc0 : rounded, vshort);
}

// Before a loop over an array of vectors: only where all its indices are constants are the vectors kept in registers.
#ifdef __clang__
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

// Of two vectors, lane j of the first where j & STEP is 0, else lane j - STEP of the second; and of the other halves.
template <int STEP, bool HIGH, int... J>
inline vfloat exchange(vfloat one, vfloat other, std::integer_sequence<int, J...>) {
#ifdef __clang__
  return __builtin_shufflevector(one, other, (J & STEP ? kLanes + J - !HIGH * STEP : J + HIGH * STEP)...);
#else
  return __builtin_shuffle(one, other, vint{(J & STEP ? kLanes + J - !HIGH * STEP : J + HIGH * STEP)...});
#endif
}

// Transpose [kLanes, kLanes] in place, in rounds that exchange blocks of 1, 2, 4, …
template <int STEP = 1>
inline void transpose_square(vfloat* x) {
  if constexpr (STEP < kLanes) {
    constexpr std::make_integer_sequence<int, kLanes> lanes;
    UNROLL for (int i = 0; i < kLanes; ++i)
      if (!(i & STEP)) {
        const vfloat one = x[i], other = x[i + STEP];
        x[i] = exchange<STEP, false>(one, other, lanes);
        x[i + STEP] = exchange<STEP, true>(one, other, lanes);
      }
    transpose_square<2 * STEP>(x);
  }
}

// ---- a product of small matrices: C = A B, or C += A B where ADD is set ----

// Each number of C is one chain of multiply-adds along k, whatever the tile: a row does not depend on the others.
template <int M, int N, bool ADD>
inline void tile(int64_t k, const float* a, int64_t am, int64_t ak, const float* b, int64_t ldb, float* c,
                 int64_t ldc) {
  vfloat sums[M][N] = {};
  if constexpr (ADD) {
    UNROLL for (int m = 0; m < M; ++m)
      UNROLL for (int n = 0; n < N; ++n) sums[m][n] = load(c + m * ldc + kLanes * n);
  }
  for (int64_t i = 0; i < k; ++i) {
    vfloat row[N];
    UNROLL for (int n = 0; n < N; ++n) row[n] = load(b + i * ldb + kLanes * n);
    UNROLL for (int m = 0; m < M; ++m) {
      const float x = a[m * am + i * ak];
      UNROLL for (int n = 0; n < N; ++n) sums[m][n] += x * row[n];
    }
  }
  UNROLL for (int m = 0; m < M; ++m)
    UNROLL for (int n = 0; n < N; ++n) save(c + m * ldc + kLanes * n, sums[m][n]);
}

// The columns of N vectors of C; of the rows, `most` at a time.
template <int N, bool ADD>
inline void columns(int64_t m, int64_t most, int64_t k, const float* a, int64_t am, int64_t ak, const float* b,
                    int64_t ldb, float* c, int64_t ldc) {
  for (int64_t row = 0; row < m; row += most) {
    const float* at = a + row * am;
    float* to = c + row * ldc;
    switch (std::min(most, m - row)) {
      case 1: tile<1, N, ADD>(k, at, am, ak, b, ldb, to, ldc); break;
      case 2: tile<2, N, ADD>(k, at, am, ak, b, ldb, to, ldc); break;
      case 3: tile<3, N, ADD>(k, at, am, ak, b, ldb, to, ldc); break;
      case 4: tile<4, N, ADD>(k, at, am, ak, b, ldb, to, ldc); break;
      case 5: tile<5, N, ADD>(k, at, am, ak, b, ldb, to, ldc); break;
      case 6: tile<6, N, ADD>(k, at, am, ak, b, ldb, to, ldc); break;
    }
  }
}

}  // namespace

// What compiled.py finds by name: a pointer to a function, of floats where it has a variant for each type.
#define EXPORT_F32(NAME) extern "C" void* const NAME##_f32 = reinterpret_cast<void*>(&NAME);
