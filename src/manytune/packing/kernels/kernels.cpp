// The element-wise work and the attention of a packed encoder layer, fused: kernels on a CPU are bound by memory, so
// each row is read once, worked on while it is in the cache, and written once.
//
// reference.py computes the same in torch; the tests compare the two. Rows are tokens (in the last layer: sequences),
// sorted by run. T is the type of activations, float or bf16; sums, norms, softmax and the residual stream are float.
// Nothing draws from a generator: dropout masks are hashes of keys (dropout.py). Work is cut the same way whatever the
// number of threads and whatever the neighbouring runs, so no result depends on them.
//
// Names: `x_ld` is the row stride of x in elements, 0 where all runs share one row; [a, b] is a shape, row by row.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "vectors.h"

namespace {

// ---- checks ----
//
// Shapes, types and strides are checked by the caller (signature.py), which cannot afford to read what index tensors
// hold. A kernel reads that itself, before it writes anything, and returns the name of the argument at fault, or null.

inline bool all_below(const int64_t* indices, int64_t count, int64_t limit) {
  uint64_t largest = 0;
  for (int64_t i = 0; i < count; ++i) largest = std::max(largest, uint64_t(indices[i]));  // a negative one is huge
  return count == 0 || largest < uint64_t(limit);
}

// Whether run r may hold the rows bounds[r] to bounds[r + 1], of `rows` rows in all, and none has more than `longest`.
inline bool are_bounds(const int64_t* bounds, int64_t runs, int64_t rows, int64_t longest = INT64_MAX) {
  if (bounds[0] < 0 || bounds[runs] > rows) return false;
  for (int64_t r = 0; r < runs; ++r)
    if (bounds[r] > bounds[r + 1] || bounds[r + 1] - bounds[r] > longest) return false;
  return true;
}

// ---- keyed randomness: the hash of dropout.py ----

constexpr uint32_t kMultiply1 = 0x7feb352d, kMultiply2 = 0x846ca68b, kGolden = 0x9e3779b9;
constexpr uint32_t kHeadStride = 1 << 16;

template <typename U>  // uint32_t, or a vector of them
inline U finish(U x) {
  x *= kMultiply1;
  x ^= x >> 15;
  x *= kMultiply2;
  return x ^ (x >> 16);
}

template <typename U>
inline U mix(U x) {
  return finish(x ^ (x >> 16));
}

// The 16-bit hashes of 2 * pairs channels of the row whose mixed key is `row`.
inline void hash_row(uint32_t row, const uint32_t* channels, int64_t pairs, uint32_t* hashes) {
#pragma omp simd
  for (int64_t i = 0; i < pairs; ++i) hashes[i] = finish(row ^ channels[i]);
}

inline int16_t half(const uint32_t* hashes, int64_t channel) {
  return int16_t(hashes[channel >> 1] >> ((channel & 1) * 16));
}

struct DropArgs {
  const int32_t* keys;       // [rows]; null: nothing is dropped
  const uint32_t* channels;  // [(width + 1) / 2] the mixed key of each pair of channels; null for attention weights
  uint32_t site;             // key of the module and of this call of it
  int32_t threshold;         // the least 16-bit hash that is kept
  float kept;                // 1 / (1 - p)
};

// factors [width]: what each channel of a row is multiplied with, 0 or 1 / (1 - p).
inline void row_factors(const DropArgs& drop, int64_t row, int64_t width, uint32_t* hashes, float* factors) {
  const int32_t threshold = drop.threshold;
  const float kept = drop.kept;
  hash_row(mix(uint32_t(drop.keys[row]) ^ drop.site), drop.channels, (width + 1) / 2, hashes);
  int16_t halves[16];
  int64_t c = 0;
  for (; c + 16 <= width; c += 16) {
    std::memcpy(halves, hashes + c / 2, 32);
#pragma omp simd
    for (int64_t i = 0; i < 16; ++i) factors[c + i] = halves[i] >= threshold ? kept : 0.0f;
  }
  for (; c < width; ++c) factors[c] = half(hashes, c) >= threshold ? kept : 0.0f;
}

// The factors of the row that a thread works on; all ones where nothing is dropped. One object a thread: no allocation
// for each row.
class Factors {
 public:
  explicit Factors(int64_t width) : width_(width), factors_(width + 16, 1.0f), hashes_(width / 2 + 16) {}

  const float* of(const DropArgs& drop, int64_t row) {
    if (drop.keys) row_factors(drop, row, width_, hashes_.data(), factors_.data());
    return factors_.data();
  }

  const float* last() const { return factors_.data(); }

 private:
  int64_t width_;
  std::vector<float> factors_;
  std::vector<uint32_t> hashes_;
};

// ---- vectors ----

inline vfloat larger(vfloat x, vfloat y) { return x > y ? x : y; }
inline vfloat kept_or_not(vint hashes, int32_t threshold, float kept) {
  return hashes >= threshold ? vfloat{} + kept : vfloat{};
}

// n rounded up to whole vectors.
inline int64_t whole(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

// ---- elementary functions, which the compiler turns into vector code ----

inline vfloat exponential(vfloat x) {  // 2^n * p(r), |relative error| < 2e-7
  x = x < -87.0f ? vfloat{} - 87.0f : x;
  x = x > 88.0f ? vfloat{} + 88.0f : x;
  const vfloat n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;  // to the nearest whole number
  const vfloat r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  vfloat p = vfloat{} + 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  return p * as_floats(vuint((__builtin_convertvector(n, vint) + 127) << 23));
}

// An odd function as a rational one, x P(x²) / Q(x²); for |x| > limit it is ±1/2.
struct OddRational {
  float limit, p[6], q[6];
};

inline float at(const OddRational& f, float any) {
  const float x = std::min(std::max(any, -f.limit), f.limit);
  const float t = x * x;
  float p = f.p[5], q = f.q[5];
  for (int i = 4; i >= 0; --i) {
    p = p * t + f.p[i];
    q = q * t + f.q[i];
  }
  float value = x * p / q;
  value = any > f.limit ? 0.5f : value;
  return any < -f.limit ? -0.5f : value;
}

// Φ(x) - 1/2 of the normal distribution, and the derivative of x Φ(x) less 1/2. Minimax fits: their errors are 5e-9 and
// 1.4e-7, evaluated in float 1.6e-7 and 2.9e-7. An exponential and erf took 1.5 times as long.
constexpr OddRational kNormal = {
    5.4f,
    {3.989422454e-1f, 3.337227033e-2f, 4.650854096e-3f, 1.643221657e-4f, 6.360027305e-6f, 2.338673147e-8f},
    {1.0f, 2.503179653e-1f, 2.837871224e-2f, 1.858984146e-3f, 7.240035709e-5f, 1.216591430e-6f}};
constexpr OddRational kSlope = {
    6.0f,
    {7.978845325e-1f, -3.074345294e-2f, 1.420917440e-2f, 2.418409716e-5f, 3.585057552e-5f, 1.908851095e-7f},
    {1.0f, 2.948056798e-1f, 4.106469640e-2f, 3.528762476e-3f, 1.935198504e-4f, 8.887478435e-6f}};

// ---- a product of small matrices ----

// A is [m, k] with the strides am and ak, B is [k, n] with rows of ldb; n is a multiple of kLanes.
void product(int64_t m, int64_t n, int64_t k, const float* a, int64_t am, int64_t ak, const float* b, int64_t ldb,
             float* c, int64_t ldc) {
  // Rows are cut evenly: in a tile of one row, each multiply-add waits for the one before.
  const int64_t tiles = (m + kTileRows - 1) / kTileRows, most = (m + tiles - 1) / tiles;
  int64_t col = 0;
  for (; col + kTileColumns * kLanes <= n; col += kTileColumns * kLanes)
    columns<kTileColumns, false>(m, most, k, a, am, ak, b + col, ldb, c + col, ldc);
  for (; col < n; col += kLanes) columns<1, false>(m, most, k, a, am, ak, b + col, ldb, c + col, ldc);
}

// ---- attention ----

// The arguments of both directions. `hidden` is heads * width; the heads' columns lie side by side.
template <typename T>
struct Attention {
  const T* q;                  // [queries, hidden]
  int64_t q_ld;
  const T* k;                  // [rows, hidden]
  int64_t k_ld;
  const T* v;                  // [rows, hidden]
  int64_t v_ld;
  const float* bias;           // [runs or 1, 3 * hidden]: of q, k and v
  int64_t bias_ld;
  const int64_t *starts, *lengths, *run_of;  // [sequences]: first row, tokens, run
  const DropArgs& drop;        // of the weights, keyed by the queries' tokens
  const float* position_bias;  // [heads, offsets], added to scaled scores by the query's place less the key's; or null
  int64_t offsets;             // 2 * most - 1 for sequences of up to `most` tokens; place 0 is in the middle
  int64_t sequences, heads, width;
  int32_t first_only;          // one query a sequence, its first token, in row s of q and of the output
  float scale;

  const char* fault(int64_t queries, int64_t hidden, int64_t rows, int64_t runs) const {
    if (heads < 1 || heads * width != hidden) return "heads";
    if (sequences < 1) return "starts";
    if (queries != (first_only ? sequences : rows)) return "q";
    for (int64_t s = 0; s < sequences; ++s) {
      if (starts[s] < 0 || starts[s] >= rows) return "starts";
      if (lengths[s] < 1 || lengths[s] > rows - starts[s]) return "lengths";
      if (position_bias && (offsets % 2 == 0 || lengths[s] > (offsets + 1) / 2)) return "position_bias";
    }
    return all_below(run_of, sequences, runs) ? nullptr : "run_of";
  }
};

// The workspace of one thread, for sequences of up to `longest` tokens. Attention weights lie transposed, [keys,
// queries], so that the softmax of kLanes queries is computed at once, a vector for each key.
struct AttentionSpace {
  int64_t whole_width;
  std::vector<float> memory;
  float *q, *k, *v, *d, *t, *p, *m, *g, *out;
  float *b, *b_grad;  // [length - 1 + queries, padded] the position bias from the lowest place on, and its gradient
  AttentionSpace(int64_t longest, int64_t width) : whole_width(whole(width)) {
    const int64_t flat = whole(longest) * whole_width, square = whole(longest) * whole(longest);
    const int64_t places = 2 * whole(longest);
    memory.assign(6 * flat + 3 * square + 2 * places, 0.0f);
    float* at = memory.data();
    for (float** part : {&q, &k, &v, &d, &t, &out}) *part = at, at += flat;
    for (float** part : {&p, &m, &g}) *part = at, at += square;
    for (float** part : {&b, &b_grad}) *part = at, at += places;
  }
};

template <typename T>
inline void fetch(const T* from, int64_t ld, const float* bias, int64_t rows, int64_t width, int64_t whole_width,
                  float* to) {
  if (width == whole_width) {
    for (int64_t c = 0; c < width; c += kLanes) {
      const vfloat added = bias ? load(bias + c) : vfloat{};
      for (int64_t i = 0; i < rows; ++i) save(to + i * whole_width + c, load(from + i * ld + c) + added);
    }
    return;
  }
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t c = 0; c < width; ++c) to[i * whole_width + c] = get(from[i * ld + c]) + (bias ? bias[c] : 0.0f);
    for (int64_t c = width; c < whole_width; ++c) to[i * whole_width + c] = 0.0f;
  }
}

// [rows, whole_width] → [whole_width, padded], with zeros behind the rows; `padded` is whole vectors too.
inline void transpose(const float* from, int64_t rows, int64_t whole_width, float* to, int64_t padded) {
  for (int64_t i = 0; i < padded; i += kLanes)
    for (int64_t c = 0; c < whole_width; c += kLanes) {
      vfloat x[kLanes];
      UNROLL for (int r = 0; r < kLanes; ++r) x[r] = i + r < rows ? load(from + (i + r) * whole_width + c) : vfloat{};
      transpose_square(x);
      UNROLL for (int r = 0; r < kLanes; ++r) save(to + (c + r) * padded + i, x[r]);
    }
}

// Fetch one head of one sequence and compute p [keys, queries], the attention weights before dropout, and m, the
// factors of dropout. The backward pass computes them again, so that no weights are kept in memory.
template <typename T>
void weights(const Attention<T>& a, int64_t s, int64_t head, AttentionSpace& w) {
  const int64_t length = a.lengths[s], queries = a.first_only ? 1 : length, padded = whole(queries);
  const int64_t first = a.starts[s], q_row = a.first_only ? s : first;
  const int64_t column = head * a.width, hidden = a.heads * a.width;
  const float* bias = a.bias + a.run_of[s] * a.bias_ld + column;
  fetch(a.q + q_row * a.q_ld + column, a.q_ld, bias, queries, a.width, w.whole_width, w.q);
  fetch(a.k + first * a.k_ld + column, a.k_ld, bias + hidden, length, a.width, w.whole_width, w.k);
  fetch(a.v + first * a.v_ld + column, a.v_ld, bias + 2 * hidden, length, a.width, w.whole_width, w.v);
  transpose(w.q, queries, w.whole_width, w.t, padded);
  product(length, padded, a.width, w.k, w.whole_width, 1, w.t, padded, w.p, padded);
  float scale = a.scale;
  if (a.position_bias) {
    const int64_t places = length - 1 + queries, lowest = (a.offsets + 1) / 2 - length;
    std::copy_n(a.position_bias + head * a.offsets + lowest, places, w.b);
    std::fill(w.b + places, w.b + length - 1 + padded, 0.0f);
    for (int64_t j = 0; j < length; ++j)
      for (int64_t i = 0; i < padded; i += kLanes) {
        float* p = w.p + j * padded + i;
        save(p, load(p) * scale + load(w.b + length - 1 + i - j));
      }
    scale = 1.0f;
  }
  for (int64_t block = 0; block < padded; block += kLanes) {
    float* p = w.p + block;
    vfloat top = load(p), sum = vfloat{};
    for (int64_t j = 1; j < length; ++j) top = larger(load(p + j * padded), top);
    for (int64_t j = 0; j < length; ++j) {
      const vfloat x = exponential((load(p + j * padded) - top) * scale);
      sum += x;
      save(p + j * padded, x);
    }
    const vfloat share = 1.0f / sum;
    for (int64_t j = 0; j < length; ++j) save(p + j * padded, load(p + j * padded) * share);
    if (!a.drop.keys) continue;
    vuint rows = vuint{};
    const int64_t left = std::min<int64_t>(kLanes, queries - block);
    for (int64_t i = 0; i < left; ++i) rows[i] = uint32_t(a.drop.keys[first + block + i]);
    rows = mix(rows ^ a.drop.site);
    float* m = w.m + block;
    for (int64_t j = 0; j < length; j += 2) {
      const vint hashes = vint(finish(rows ^ mix((uint32_t(head) * kHeadStride + uint32_t(j / 2) + 1) * kGolden)));
      save(m + j * padded, kept_or_not((hashes << 16) >> 16, a.drop.threshold, a.drop.kept));
      if (j + 1 < length) save(m + (j + 1) * padded, kept_or_not(hashes >> 16, a.drop.threshold, a.drop.kept));
    }
  }
}

template <typename T>
inline void store(const float* from, int64_t rows, int64_t width, int64_t whole_width, float scale, T* to, int64_t ld) {
  for (int64_t i = 0; i < rows; ++i) {
    if (width == whole_width)
      for (int64_t c = 0; c < width; c += kLanes) save(to + i * ld + c, scale * load(from + i * whole_width + c));
    else
      for (int64_t c = 0; c < width; ++c) put(to[i * ld + c], scale * from[i * whole_width + c]);
  }
}

template <typename T>
const char* attention_forward(const T* q, int64_t q_ld, const T* k, int64_t k_ld, const T* v, int64_t v_ld,
                              const float* bias, int64_t bias_ld, const int64_t* starts, const int64_t* lengths,
                              const int64_t* run_of, const DropArgs& drop, const float* position_bias, T* out, int64_t out_ld, int64_t queries,
                              int64_t hidden, int64_t rows, int64_t runs, int64_t sequences, int64_t heads,
                              int64_t offsets, float scale, int32_t first_only, int threads) {
  const Attention<T> a{q, q_ld, k, k_ld, v, v_ld, bias, bias_ld, starts, lengths, run_of, drop, position_bias,
                       offsets, sequences, heads, hidden / std::max<int64_t>(heads, 1), first_only, scale};
  if (const char* fault = a.fault(queries, hidden, rows, runs)) return fault;
  const int64_t longest = *std::max_element(lengths, lengths + sequences);
#pragma omp parallel num_threads(threads)
  {
    AttentionSpace w(longest, a.width);
#pragma omp for schedule(dynamic, 8)
    for (int64_t task = 0; task < a.sequences * a.heads; ++task) {
      const int64_t s = task / a.heads, head = task % a.heads;
      weights(a, s, head, w);
      const int64_t length = a.lengths[s], queries = a.first_only ? 1 : length, padded = whole(queries);
      if (a.drop.keys)
        for (int64_t i = 0; i < length * padded; i += kLanes) save(w.p + i, load(w.p + i) * load(w.m + i));
      product(queries, w.whole_width, length, w.p, 1, padded, w.v, w.whole_width, w.out, w.whole_width);
      T* to = out + (a.first_only ? s : a.starts[s]) * out_ld + head * a.width;
      store(w.out, queries, a.width, w.whole_width, 1.0f, to, out_ld);
    }
  }
  return nullptr;
}

template <typename T>
const char* attention_backward(const T* q, int64_t q_ld, const T* k, int64_t k_ld, const T* v, int64_t v_ld,
                               const float* bias, int64_t bias_ld, const int64_t* starts, const int64_t* lengths,
                               const int64_t* run_of, const DropArgs& drop, const float* position_bias, const T* grad,
                               int64_t grad_ld, T* dq, int64_t dq_ld, T* dk, int64_t dk_ld, T* dv, int64_t dv_ld,
                               float* position_grad, int64_t queries, int64_t hidden, int64_t rows, int64_t runs,
                               int64_t sequences, int64_t heads, int64_t offsets, float scale, int32_t first_only,
                               int threads) {
  const Attention<T> a{q, q_ld, k, k_ld, v, v_ld, bias, bias_ld, starts, lengths, run_of, drop, position_bias,
                       offsets, sequences, heads, hidden / std::max<int64_t>(heads, 1), first_only, scale};
  if (const char* fault = a.fault(queries, hidden, rows, runs)) return fault;
  const int64_t longest = *std::max_element(lengths, lengths + sequences);
#pragma omp parallel num_threads(threads)
  {
    AttentionSpace w(longest, a.width);
#pragma omp for schedule(dynamic, 8)
    for (int64_t task = 0; task < a.sequences * a.heads; ++task) {
      const int64_t s = task / a.heads, head = task % a.heads;
      weights(a, s, head, w);
      const int64_t length = a.lengths[s], queries = a.first_only ? 1 : length, padded = whole(queries);
      const int64_t first = a.starts[s], row0 = a.first_only ? s : first, column = head * a.width;
      // d: the output's gradient. g: the weights' gradient, then that of the scores.
      fetch(grad + row0 * grad_ld + column, grad_ld, nullptr, queries, a.width, w.whole_width, w.d);
      transpose(w.d, queries, w.whole_width, w.t, padded);
      product(length, padded, a.width, w.v, w.whole_width, 1, w.t, padded, w.g, padded);
      for (int64_t block = 0; block < padded; block += kLanes) {
        float *p = w.p + block, *m = w.m + block, *g = w.g + block;
        vfloat dot = vfloat{};
        for (int64_t at = 0; at < length * padded; at += padded) {
          if (a.drop.keys) save(g + at, load(g + at) * load(m + at));
          dot += load(g + at) * load(p + at);
        }
        for (int64_t at = 0; at < length * padded; at += padded) {
          save(g + at, load(p + at) * (load(g + at) - dot));
          if (a.drop.keys) save(p + at, load(p + at) * load(m + at));
        }
      }
      if (position_grad) {
        const int64_t places = length - 1 + queries, lowest = (a.offsets + 1) / 2 - length;
        std::fill(w.b_grad, w.b_grad + length - 1 + padded, 0.0f);
        for (int64_t j = 0; j < length; ++j)
          for (int64_t i = 0; i < padded; i += kLanes) {
            float* at = w.b_grad + length - 1 + i - j;
            save(at, load(at) + load(w.g + j * padded + i));
          }
        std::copy_n(w.b_grad, places, position_grad + task * a.offsets + lowest);
      }
      product(length, w.whole_width, queries, w.p, padded, 1, w.d, w.whole_width, w.out, w.whole_width);
      store(w.out, length, a.width, w.whole_width, 1.0f, dv + first * dv_ld + column, dv_ld);
      product(length, w.whole_width, queries, w.g, padded, 1, w.q, w.whole_width, w.out, w.whole_width);
      store(w.out, length, a.width, w.whole_width, a.scale, dk + first * dk_ld + column, dk_ld);
      product(queries, w.whole_width, length, w.g, 1, padded, w.k, w.whole_width, w.out, w.whole_width);
      store(w.out, queries, a.width, w.whole_width, a.scale, dq + row0 * dq_ld + column, dq_ld);
    }
  }
  return nullptr;
}

// ---- dropout, residual and LayerNorm ----

template <typename T>
const char* residual_norm_forward(const T* y, const float* bias, int64_t bias_ld, const float* residual,
                                  const int64_t* run_of, const DropArgs& drop, const float* norm_weight,
                                  const float* norm_bias, int64_t norm_bias_ld, float* normed, float* rstd, float* out,
                                  T* hidden, int64_t rows, int64_t width, int64_t runs, float epsilon, int threads) {
  if (!all_below(run_of, rows, runs)) return "run_of";
#pragma omp parallel num_threads(threads)
  {
    Factors factors(width);
    std::vector<float> z(width);
#pragma omp for schedule(static)
    for (int64_t t = 0; t < rows; ++t) {
      const float* b = bias + run_of[t] * bias_ld;
      const float* s = norm_bias + run_of[t] * norm_bias_ld;
      const T* from = y + t * width;
      const float* r = residual + t * width;
      float sum = 0.0f, square = 0.0f;
      const float* factor = factors.of(drop, t);
#pragma omp simd reduction(+ : sum)
      for (int64_t c = 0; c < width; ++c) {
        z[c] = r[c] + (get(from[c]) + b[c]) * factor[c];
        sum += z[c];
      }
      const float mean = sum / float(width);
#pragma omp simd reduction(+ : square)
      for (int64_t c = 0; c < width; ++c) square += (z[c] - mean) * (z[c] - mean);
      const float inverse = 1.0f / std::sqrt(square / float(width) + epsilon);
      rstd[t] = inverse;
#pragma omp simd
      for (int64_t c = 0; c < width; ++c) {
        const float n = (z[c] - mean) * inverse, o = n * norm_weight[c] + s[c];
        normed[t * width + c] = n;
        out[t * width + c] = o;
        put(hidden[t * width + c], o);
      }
    }
  }
  return nullptr;
}

// grad and grad_hidden are the gradients of `out` and `hidden`; grad becomes that of the residual.
template <typename T>
const char* residual_norm_backward(float* grad, const T* grad_hidden, const float* normed, const float* rstd,
                                   const float* norm_weight, const DropArgs& drop, T* grad_y, int64_t rows,
                                   int64_t width, int threads) {
#pragma omp parallel num_threads(threads)
  {
    Factors factors(width);
    std::vector<float> g(width);
#pragma omp for schedule(static)
    for (int64_t t = 0; t < rows; ++t) {
      float* at = grad + t * width;
      const float* n = normed + t * width;
      float sum = 0.0f, dot = 0.0f;
      if (grad_hidden) {
        const T* other = grad_hidden + t * width;
#pragma omp simd
        for (int64_t c = 0; c < width; ++c) g[c] = (at[c] + get(other[c])) * norm_weight[c];
      } else {
#pragma omp simd
        for (int64_t c = 0; c < width; ++c) g[c] = at[c] * norm_weight[c];
      }
#pragma omp simd reduction(+ : sum, dot)
      for (int64_t c = 0; c < width; ++c) {
        sum += g[c];
        dot += g[c] * n[c];
      }
      const float mean = sum / float(width), slope = dot / float(width), inverse = rstd[t];
      const float* factor = factors.of(drop, t);
#pragma omp simd
      for (int64_t c = 0; c < width; ++c) {
        const float d = (g[c] - mean - n[c] * slope) * inverse;
        at[c] = d;
        put(grad_y[t * width + c], d * factor[c]);
      }
    }
  }
  return nullptr;
}

constexpr int64_t kColumns = 64;  // a thread sums some columns of one run, so that no sum depends on the threads

// Sums over each run's rows of the gradient of a norm's output, which is that of its bias, and of that times the
// normed input, which is that of its weight.
template <typename T>
const char* norm_sums(const float* grad, const T* grad_hidden, const float* normed, float* grad_bias,
                      float* grad_weight, const int64_t* bounds, int64_t rows, int64_t width, int64_t runs,
                      int threads) {
  if (!are_bounds(bounds, runs, rows)) return "bounds";
  const int64_t blocks = (width + kColumns - 1) / kColumns;
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads)
  for (int64_t r = 0; r < runs; ++r)
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t c0 = b * kColumns, n = std::min(kColumns, width - c0);
      float bias[kColumns] = {}, weight[kColumns] = {};
      for (int64_t t = bounds[r]; t < bounds[r + 1]; ++t) {
        const float *g = grad + t * width + c0, *x = normed + t * width + c0;
        float total[kColumns];
        for (int64_t c = 0; c < n; ++c) total[c] = g[c];
        if (grad_hidden)
          for (int64_t c = 0; c < n; ++c) total[c] += get(grad_hidden[t * width + c0 + c]);
#pragma omp simd
        for (int64_t c = 0; c < n; ++c) {
          bias[c] += total[c];
          weight[c] += total[c] * x[c];
        }
      }
      std::copy(bias, bias + n, grad_bias + r * width + c0);
      std::copy(weight, weight + n, grad_weight + r * width + c0);
    }
  return nullptr;
}

// [runs, width]: the sum of each run's rows.
template <typename T>
const char* segment_sums(const T* x, int64_t x_ld, float* sums, const int64_t* bounds, int64_t rows, int64_t width,
                         int64_t runs, int threads) {
  if (!are_bounds(bounds, runs, rows)) return "bounds";
  const int64_t blocks = (width + kColumns - 1) / kColumns;
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads)
  for (int64_t r = 0; r < runs; ++r)
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t c0 = b * kColumns, n = std::min(kColumns, width - c0);
      float sum[kColumns] = {};
      for (int64_t t = bounds[r]; t < bounds[r + 1]; ++t)
#pragma omp simd
        for (int64_t c = 0; c < n; ++c) sum[c] += get(x[t * x_ld + c0 + c]);
      std::copy(sum, sum + n, sums + r * width + c0);
    }
  return nullptr;
}

// ---- GELU ----

template <typename T>
const char* gelu_forward(const T* x, const float* bias, int64_t bias_ld, const int64_t* run_of, T* out, int64_t rows,
                         int64_t width, int64_t runs, int threads) {
  if (!all_below(run_of, rows, runs)) return "run_of";
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t t = 0; t < rows; ++t) {
    const float* b = bias + run_of[t] * bias_ld;
#pragma omp simd
    for (int64_t c = 0; c < width; ++c) {
      const float u = get(x[t * width + c]) + b[c];
      put(out[t * width + c], u * (0.5f + at(kNormal, u)));
    }
  }
  return nullptr;
}

// grad becomes the gradient of the input.
template <typename T>
const char* gelu_backward(T* grad, const T* x, const float* bias, int64_t bias_ld, const int64_t* run_of, int64_t rows,
                          int64_t width, int64_t runs, int threads) {
  if (!all_below(run_of, rows, runs)) return "run_of";
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t t = 0; t < rows; ++t) {
    const float* b = bias + run_of[t] * bias_ld;
#pragma omp simd
    for (int64_t c = 0; c < width; ++c) {
      const float u = get(x[t * width + c]) + b[c];
      put(grad[t * width + c], get(grad[t * width + c]) * (0.5f + at(kSlope, u)));
    }
  }
  return nullptr;
}

// ---- inputs and outputs of LoRA's batched products: each run's rows padded to the longest run's number ----

template <typename T>
const char* pad(const T* x, int64_t x_ld, const DropArgs& drop, T* padded, const int64_t* bounds, int64_t rows,
                int64_t width, int64_t runs, int64_t longest, int threads) {
  if (!are_bounds(bounds, runs, rows, longest)) return "bounds";
#pragma omp parallel num_threads(threads)
  {
    Factors factors(width);
#pragma omp for collapse(2) schedule(static)
    for (int64_t r = 0; r < runs; ++r)
      for (int64_t i = 0; i < longest; ++i) {
        T* to = padded + (r * longest + i) * width;
        const int64_t t = bounds[r] + i;
        if (t >= bounds[r + 1]) {
          std::memset(to, 0, size_t(width) * sizeof(T));
        } else if (!drop.keys) {
          std::memcpy(to, x + t * x_ld, size_t(width) * sizeof(T));
        } else {
          const float* factor = factors.of(drop, t);
          const T* from = x + t * x_ld;
#pragma omp simd
          for (int64_t c = 0; c < width; ++c) put(to[c], get(from[c]) * factor[c]);
        }
      }
  }
  return nullptr;
}

// y += the padded rows, dropped out.
template <typename T>
const char* unpad_add(const T* padded, T* y, int64_t y_ld, const DropArgs& drop, const int64_t* bounds, int64_t runs,
                      int64_t longest, int64_t width, int64_t rows, int threads) {
  if (!are_bounds(bounds, runs, rows, longest)) return "bounds";
#pragma omp parallel num_threads(threads)
  {
    Factors factors(width);
#pragma omp for collapse(2) schedule(static)
    for (int64_t r = 0; r < runs; ++r)
      for (int64_t i = 0; i < longest; ++i) {
        const int64_t t = bounds[r] + i;
        if (t >= bounds[r + 1]) continue;
        const T* from = padded + (r * longest + i) * width;
        T* to = y + t * y_ld;
        const float* factor = factors.of(drop, t);
#pragma omp simd
        for (int64_t c = 0; c < width; ++c) put(to[c], get(to[c]) + get(from[c]) * factor[c]);
      }
  }
  return nullptr;
}

// ---- LoRA of low rank: y += scale drop(x) A B for each run's rows, without padding or copies ----

constexpr int64_t kMaxRank = 16;  // above it, batched matrix products are faster
constexpr int64_t kRows = 32;

struct Lora {
  const float *a, *b, *scale;  // [runs, inputs, rank], [runs, rank, outputs], [runs]
  const DropArgs& drop;        // of the rows of x
  const int64_t* bounds;       // [runs + 1]
  int64_t runs, inputs, outputs, rank;

  const char* fault(int64_t rows) const {
    if (rank < 1 || rank > kMaxRank) return "a";
    return are_bounds(bounds, runs, rows) ? nullptr : "bounds";
  }
};

// A run's rows are cut into blocks that do not depend on its neighbours; sums go over blocks in order.
struct Block {
  int64_t run, from, to;
};

inline std::vector<Block> blocks_of(const Lora& l) {
  std::vector<Block> blocks;
  for (int64_t r = 0; r < l.runs; ++r)
    for (int64_t from = l.bounds[r]; from < l.bounds[r + 1]; from += kRows)
      blocks.push_back({r, from, std::min(l.bounds[r + 1], from + kRows)});
  return blocks;
}

constexpr int kTogether = 4;  // rows that are multiplied together, so that A and B are read once for all of them

// sums[i][k] = x[i] · rows[k]; the rows of both are `wide` apart. As many sums as a vector has lanes are built at once
// and their lanes then added up through a transpose: adding the lanes of one sum after another took as long as the
// products.
inline void dots(const float* x, const float* rows, int64_t wide, int64_t rank, float (*sums)[kMaxRank]) {
  constexpr int ranks = kLanes / kTogether;
  for (int64_t first = 0; first < rank; first += ranks) {
    const float* row[ranks];
    for (int k = 0; k < ranks; ++k) row[k] = rows + std::min(first + k, rank - 1) * wide;
    vfloat sum[kLanes] = {};
    for (int64_t c = 0; c < wide; c += kLanes)
      UNROLL for (int k = 0; k < ranks; ++k)
        UNROLL for (int i = 0; i < kTogether; ++i)
          sum[kTogether * k + i] += load(x + i * wide + c) * load(row[k] + c);
    transpose_square(sum);
    UNROLL for (int half = kLanes / 2; half; half /= 2)
      UNROLL for (int i = 0; i < half; ++i) sum[i] += sum[i + half];
    for (int64_t k = first; k < std::min(first + ranks, rank); ++k)
      for (int i = 0; i < kTogether; ++i) sums[i][k] = sum[0][kTogether * (k - first) + i];
  }
}

// to[i] = sum over k of weights[i][k] rows[k].
inline void mixed(const float (*weights)[kMaxRank], const float* rows, int64_t wide, int64_t rank, float* to) {
  for (int64_t c = 0; c < wide; c += kLanes) {
    vfloat sum[kTogether] = {};
    for (int64_t k = 0; k < rank; ++k) {
      const vfloat row = load(rows + k * wide + c);
      UNROLL for (int i = 0; i < kTogether; ++i) sum[i] += weights[i][k] * row;
    }
    UNROLL for (int i = 0; i < kTogether; ++i) save(to + i * wide + c, sum[i]);
  }
}

// to[k] += sum over i of weights[i][k] x[i].
inline void gathered(const float (*weights)[kMaxRank], const float* x, int64_t wide, int64_t rank, float* to) {
  for (int64_t c = 0; c < wide; c += kLanes) {
    vfloat row[kTogether];
    UNROLL for (int i = 0; i < kTogether; ++i) row[i] = load(x + i * wide + c);
    for (int64_t k = 0; k < rank; ++k) {
      vfloat sum = load(to + k * wide + c);
      UNROLL for (int i = 0; i < kTogether; ++i) sum += weights[i][k] * row[i];
      save(to + k * wide + c, sum);
    }
  }
}

// The workspace of one thread: one run's A, transposed, and B, both with rows of whole vectors; and kTogether rows.
struct LoraSpace {
  int64_t in, out, run = -1;
  std::vector<float> a, b, x, g, sum;
  std::vector<Factors> factors;
  explicit LoraSpace(const Lora& l)
      : in(whole(l.inputs)), out(whole(l.outputs)), a(l.rank * in), b(l.rank * out), x(kTogether * in),
        g(kTogether * out), sum(kTogether * std::max(in, out)), factors(kTogether, Factors(l.inputs)) {}

  void take(const Lora& l, int64_t wanted) {
    if (run == wanted) return;
    run = wanted;
    for (int64_t k = 0; k < l.rank; ++k) {
      for (int64_t c = 0; c < l.inputs; ++c) a[k * in + c] = l.a[(run * l.inputs + c) * l.rank + k];
      for (int64_t c = 0; c < l.outputs; ++c) b[k * out + c] = l.b[(run * l.rank + k) * l.outputs + c];
    }
  }

  // x [kTogether, inputs]: rows after dropout; zeros where there are no more.
  template <typename T>
  void fetch(const Lora& l, const T* rows, int64_t ld, int64_t first, int64_t count) {
    for (int64_t i = 0; i < kTogether; ++i) {
      float* to = x.data() + i * in;
      if (i >= count) {
        std::fill(to, to + in, 0.0f);
        continue;
      }
      const T* from = rows + (first + i) * ld;
      const float* factor = factors[i].of(l.drop, first + i);
#pragma omp simd
      for (int64_t c = 0; c < l.inputs; ++c) to[c] = get(from[c]) * factor[c];
    }
  }
};

template <typename T>
const char* lora_forward(const T* x, int64_t x_ld, const float* a, const float* b, const float* scale,
                         const DropArgs& drop, T* y, int64_t y_ld, float* xa, const int64_t* bounds, int64_t rows,
                         int64_t inputs, int64_t runs, int64_t rank, int64_t outputs, int threads) {
  const Lora l{a, b, scale, drop, bounds, runs, inputs, outputs, rank};
  if (const char* fault = l.fault(rows)) return fault;
  const std::vector<Block> blocks = blocks_of(l);
#pragma omp parallel num_threads(threads)
  {
    LoraSpace w(l);
#pragma omp for schedule(static)
    for (size_t at = 0; at < blocks.size(); ++at) {
      const Block& block = blocks[at];
      w.take(l, block.run);
      const float scale = l.scale[block.run];
      for (int64_t t = block.from; t < block.to; t += kTogether) {
        const int64_t count = std::min<int64_t>(kTogether, block.to - t);
        float sums[kTogether][kMaxRank];
        w.fetch(l, x, x_ld, t, count);
        dots(w.x.data(), w.a.data(), w.in, l.rank, sums);
        mixed(sums, w.b.data(), w.out, l.rank, w.sum.data());
        for (int64_t i = 0; i < count; ++i) {
          std::copy(sums[i], sums[i] + l.rank, xa + (t + i) * l.rank);
          T* to = y + (t + i) * y_ld;
          const float* sum = w.sum.data() + i * w.out;
#pragma omp simd
          for (int64_t c = 0; c < l.outputs; ++c) put(to[c], get(to[c]) + scale * sum[c]);
        }
      }
    }
  }
  return nullptr;
}

// The gradient of x is added to `grad_x`, if it is there.
template <typename T>
const char* lora_backward(const T* x, int64_t x_ld, const float* a, const float* b, const float* scale,
                          const DropArgs& drop, const T* grad, int64_t grad_ld, const float* xa, T* grad_x,
                          int64_t grad_x_ld, float* grad_a, float* grad_b, const int64_t* bounds, int64_t rows,
                          int64_t inputs, int64_t runs, int64_t rank, int64_t outputs, int threads) {
  const Lora l{a, b, scale, drop, bounds, runs, inputs, outputs, rank};
  if (const char* fault = l.fault(rows)) return fault;
  const std::vector<Block> blocks = blocks_of(l);
  const int64_t whole_in = whole(inputs), whole_out = whole(outputs), part = rank * (whole_in + whole_out);
  std::vector<float> parts(blocks.size() * part, 0.0f);  // of each block, A's gradient, transposed, and B's
#pragma omp parallel num_threads(threads)
  {
    LoraSpace w(l);
#pragma omp for schedule(static)
    for (size_t at = 0; at < blocks.size(); ++at) {
      const Block& block = blocks[at];
      w.take(l, block.run);
      const float scale = l.scale[block.run];
      float* own = parts.data() + at * part;
      for (int64_t t = block.from; t < block.to; t += kTogether) {
        const int64_t count = std::min<int64_t>(kTogether, block.to - t);
        float xas[kTogether][kMaxRank] = {}, slopes[kTogether][kMaxRank];
        w.fetch(l, x, x_ld, t, count);
        for (int64_t i = 0; i < kTogether; ++i) {
          float* to = w.g.data() + i * w.out;
          if (i >= count) {
            std::fill(to, to + w.out, 0.0f);
            continue;
          }
          std::copy(xa + (t + i) * rank, xa + (t + i + 1) * rank, xas[i]);
          const T* from = grad + (t + i) * grad_ld;
#pragma omp simd
          for (int64_t c = 0; c < l.outputs; ++c) to[c] = scale * get(from[c]);
        }
        dots(w.g.data(), w.b.data(), w.out, l.rank, slopes);
        gathered(slopes, w.x.data(), w.in, l.rank, own);
        gathered(xas, w.g.data(), w.out, l.rank, own + rank * whole_in);
        if (!grad_x) continue;
        mixed(slopes, w.a.data(), w.in, l.rank, w.sum.data());
        for (int64_t i = 0; i < count; ++i) {
          T* to = grad_x + (t + i) * grad_x_ld;
          const float *sum = w.sum.data() + i * w.in, *factor = w.factors[i].last();
#pragma omp simd
          for (int64_t c = 0; c < l.inputs; ++c) put(to[c], get(to[c]) + factor[c] * sum[c]);
        }
      }
    }
  }
  std::fill(grad_a, grad_a + runs * inputs * rank, 0.0f);
  std::fill(grad_b, grad_b + runs * rank * outputs, 0.0f);
  for (size_t i = 0; i < blocks.size(); ++i) {
    const float *own_a = parts.data() + i * part, *own_b = own_a + rank * whole_in;
    float *to_a = grad_a + blocks[i].run * inputs * rank, *to_b = grad_b + blocks[i].run * rank * outputs;
    for (int64_t k = 0; k < rank; ++k) {
      for (int64_t c = 0; c < inputs; ++c) to_a[c * rank + k] += own_a[k * whole_in + c];
      for (int64_t c = 0; c < outputs; ++c) to_b[k * outputs + c] += own_b[k * whole_out + c];
    }
  }
  return nullptr;
}

// ---- dropout of rows ----

template <typename T>
const char* drop(const T* x, const DropArgs& drop, T* out, int64_t rows, int64_t width, int threads) {
#pragma omp parallel num_threads(threads)
  {
    Factors factors(width);
#pragma omp for schedule(static)
    for (int64_t t = 0; t < rows; ++t) {
      const float* factor = factors.of(drop, t);
#pragma omp simd
      for (int64_t c = 0; c < width; ++c) put(out[t * width + c], get(x[t * width + c]) * factor[c]);
    }
  }
  return nullptr;
}

// ---- AdamW ----

// One tensor that the runs `first` to `first` + `runs` - 1 hold. A sparse gradient is one run's.
struct AdamWArgs {
  float* value;        // [runs, size]
  float* exp_avg;      // [runs, size]
  float* exp_avg_sq;   // [runs, size]
  const void* grad;    // [runs, size], float or bf16; sparse: [found, width] float
  bf16* value_bf16;    // [runs, size] `value` rounded; null: there is none
  const int64_t* rows; // [found] a sparse gradient's rows, ascending; null: the gradient is dense
  uint8_t* touched;    // [size / width] of a sparse gradient: 1 for the rows that ever had one
  const double* rates; // [runs] multiples of the runs' learning rates; null: all are 1
  int64_t first;
  int64_t runs;
  int64_t size;        // elements of one run
  int64_t width;       // elements of a row
  int64_t found;       // the number of `rows`
  int64_t grad_is_bf16;
  int64_t decays;      // whether weight decay applies
};

constexpr int64_t kChunk = 1 << 14;

// What a thread works on: some elements of one run's tensor. Chunks do not depend on the pack, and sums go over them in
// order, so a run's gradient norm depends neither on its neighbours nor on the number of threads.
struct Chunk {
  const AdamWArgs* tensor;
  int64_t run, from, to;  // in elements of the run, or of the sparse gradient
};

double square_sum(const Chunk& c) {
  const int64_t base = c.run * c.tensor->size;
  double total = 0.0;
  for (int64_t from = c.from; from < c.to; from += 256) {  // short sums in float, their sum in double
    const int64_t to = std::min(c.to, from + 256);
    float sum = 0.0f;
    if (c.tensor->grad_is_bf16) {
      const bf16* g = static_cast<const bf16*>(c.tensor->grad) + base;
#pragma omp simd reduction(+ : sum)
      for (int64_t i = from; i < to; ++i) sum += get(g[i]) * get(g[i]);
    } else {
      const float* g = static_cast<const float*>(c.tensor->grad) + base;
#pragma omp simd reduction(+ : sum)
      for (int64_t i = from; i < to; ++i) sum += g[i] * g[i];
    }
    total += sum;
  }
  return total;
}

struct Rates {
  float keep, w1, beta2, w2, step, root, epsilon, factor;
};

// One optimizer step of one run, as it comes from Python.
struct AdamWUpdate {
  double number, rate, beta1, beta2, epsilon, decay, max_norm;
};

Rates rates_of(const AdamWUpdate& u, double rate, bool decays, float factor) {
  return {decays ? float(1.0 - rate * u.decay) : 1.0f, float(1.0 - u.beta1), float(u.beta2), float(1.0 - u.beta2),
          float(rate / (1.0 - std::pow(u.beta1, u.number))), float(std::sqrt(1.0 - std::pow(u.beta2, u.number))),
          float(u.epsilon), u.max_norm > 0 && !(factor >= 1.0f) ? factor : 1.0f};
}

// torch's arithmetic to the bit: a product and a sum are fused only where torch's own vector code fuses them.
template <typename G>
#ifndef __clang__
__attribute__((optimize("fp-contract=off")))
#endif
void adamw_span(float* value, float* exp_avg, float* exp_avg_sq, const G* grad, bf16* value_bf16,
                int64_t n, const Rates& r) {
#ifdef __clang__
#pragma STDC FP_CONTRACT OFF
#endif
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const float g = get(grad[i]) * r.factor;
    const float m = __builtin_fmaf(r.w1, g - exp_avg[i], exp_avg[i]);
    const float v = __builtin_fmaf(r.w2 * g, g, exp_avg_sq[i] * r.beta2);
    const float x = value[i] * r.keep - r.step * m / (std::sqrt(v) / r.root + r.epsilon);
    exp_avg[i] = m;
    exp_avg_sq[i] = v;
    value[i] = x;
  }
  if (value_bf16)
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) put(value_bf16[i], value[i]);
}

// Rows that never had a gradient have moments of zero: AdamW only decays them.
void adamw_rows(const AdamWArgs& s, int64_t from, int64_t to, const Rates& r) {
  const std::vector<float> none(s.width, 0.0f);
  const int64_t* end = s.rows + s.found;
  const int64_t* next = std::lower_bound(s.rows, end, from);
  for (int64_t row = from; row < to; ++row) {
    float* value = s.value + row * s.width;
    const bool found = next != end && *next == row;
    if (found) s.touched[row] = 1;
    if (s.touched[row]) {
      const float* grad = found ? static_cast<const float*>(s.grad) + (next - s.rows) * s.width : none.data();
      adamw_span(value, s.exp_avg + row * s.width, s.exp_avg_sq + row * s.width, grad, static_cast<bf16*>(nullptr),
                 s.width, r);
    } else if (r.keep != 1.0f) {
#pragma omp simd
      for (int64_t i = 0; i < s.width; ++i) value[i] *= r.keep;
    }
    next += found;
  }
}

// Chunks of all runs' tensors, or of their gradients; where the gradient is sparse, of whole rows of the tensor.
std::vector<Chunk> chunks_of(const AdamWArgs* tensors, int64_t count, bool gradients) {
  std::vector<Chunk> chunks;
  for (const AdamWArgs* s = tensors; s != tensors + count; ++s) {
    const int64_t unit = s->rows && !gradients ? s->width : 1, step = std::max<int64_t>(1, kChunk / unit);
    const int64_t size = (s->rows && gradients ? s->found * s->width : s->size) / unit;
    for (int64_t r = 0; r < s->runs; ++r)
      for (int64_t from = 0; from < size; from += step) chunks.push_back({s, r, from, std::min(size, from + step)});
  }
  return chunks;
}

const char* adamw(const AdamWArgs* tensors, const double* updates, int64_t count, int64_t runs, int64_t settings,
                  int threads) {
  if (settings * sizeof(double) != sizeof(AdamWUpdate)) return "updates";
  for (const AdamWArgs* s = tensors; s != tensors + count; ++s) {
    if (s->first < 0 || s->first + s->runs > runs || (s->rows && s->runs != 1)) return "tensors";
    for (int64_t i = 0; s->rows && i < s->found; ++i)
      if (s->rows[i] < (i ? s->rows[i - 1] + 1 : 0) || s->rows[i] >= s->size / s->width) return "rows";
  }
  const AdamWUpdate* own = reinterpret_cast<const AdamWUpdate*>(updates);
  std::vector<double> squares(runs, 0.0);
  if (std::any_of(own, own + runs, [](const AdamWUpdate& u) { return u.max_norm > 0; })) {
    const std::vector<Chunk> chunks = chunks_of(tensors, count, true);
    std::vector<double> sums(chunks.size());
#pragma omp parallel for schedule(dynamic, 4) num_threads(threads)
    for (size_t i = 0; i < chunks.size(); ++i) sums[i] = square_sum(chunks[i]);
    for (size_t i = 0; i < chunks.size(); ++i) squares[chunks[i].tensor->first + chunks[i].run] += sums[i];
  }
  std::vector<Rates> all(2 * runs);  // without and with decay
  for (int64_t r = 0; r < runs; ++r) {
    const AdamWUpdate& u = own[r];
    const float factor = float(u.max_norm / (std::sqrt(squares[r]) + 1e-6));
    for (int decays = 0; decays < 2; ++decays) all[2 * r + decays] = rates_of(u, u.rate, decays, factor);
  }
  // From the last one on: its gradient was read last for the norm, and the next step begins with the first tensors.
  const std::vector<Chunk> chunks = chunks_of(tensors, count, false);
#pragma omp parallel for schedule(dynamic, 4) num_threads(threads)
  for (size_t i = 0; i < chunks.size(); ++i) {
    const Chunk& c = chunks[chunks.size() - 1 - i];
    const AdamWArgs& s = *c.tensor;
    const int64_t run = s.first + c.run;
    Rates r = all[2 * run + s.decays];
    if (s.rates) r = rates_of(own[run], own[run].rate * s.rates[c.run], s.decays, r.factor);
    const int64_t at = c.run * s.size + c.from, n = c.to - c.from;
    bf16* copy = s.value_bf16 ? s.value_bf16 + at : nullptr;
    if (s.rows) adamw_rows(s, c.from, c.to, r);
    else if (s.grad_is_bf16)
      adamw_span(s.value + at, s.exp_avg + at, s.exp_avg_sq + at, static_cast<const bf16*>(s.grad) + at, copy, n, r);
    else
      adamw_span(s.value + at, s.exp_avg + at, s.exp_avg_sq + at, static_cast<const float*>(s.grad) + at, copy, n, r);
  }
  return nullptr;
}

}  // namespace

// What compiled.py finds by name: a pointer to each function, for each type of activations. Their parameters are listed
// in compiled.py too, and a test compares the two lists (a reference is passed as a pointer is).
#define EXPORT(NAME)                                                         \
  extern "C" void* const NAME##_f32 = reinterpret_cast<void*>(&NAME<float>); \
  extern "C" void* const NAME##_bf16 = reinterpret_cast<void*>(&NAME<bf16>);

EXPORT(attention_forward)
EXPORT(attention_backward)
EXPORT(residual_norm_forward)
EXPORT(residual_norm_backward)
EXPORT(norm_sums)
EXPORT(segment_sums)
EXPORT(gelu_forward)
EXPORT(gelu_backward)
EXPORT(pad)
EXPORT(unpad_add)
EXPORT(lora_forward)
EXPORT(lora_backward)
EXPORT(drop)
EXPORT_F32(adamw)

extern "C" const int64_t lora_max_rank = kMaxRank;
extern "C" const int64_t lanes = kLanes;
