// Attention of the learner over packed trees for CPUs, and its gradient (ops/tree_attention.py has
// the formula). Called by XLA (ops/cpu_kernels.py builds and registers it).
//
// XLA does each product of two blocks apart, with passes over all scores in between. Here a block of
// scores stays in the cache of one core. Queries lie along the registers, so that masks, maxima and
// sums need no step across one, and all seven products are the same small loop.
//
// Letters as everywhere: N tokens, H query heads, K key heads, G = H / K, C channels. M are the
// queries of a block of tokens, head by head; X the tokens of a block of keys.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "cpu_kernels.h"

namespace {

constexpr int kBlock = 64;  // tokens of a block, of queries and of keys
constexpr int kSlices = 4;  // of the queries of a key head: each sums gradients of its own
#if defined(__AVX512F__)
constexpr int kHeld = 16;  // sums in registers
#else
constexpr int kHeld = 4;
#endif

inline void store(float* to, Lanes x) { std::memcpy(to, &x, sizeof x); }

// A matrix whose element (a, b) is x[a * row + b * column].
struct Matrix {
  const float* x;
  int64_t row, column;
};

template <int Rows, int Wide>
inline void multiply_tile(Matrix left, const float* right, int right_row, float* to, int to_row,
                          int depth, bool add) {
  Lanes sum[Rows][Wide];
  for (int r = 0; r < Rows; ++r)
    for (int w = 0; w < Wide; ++w)
      sum[r][w] = add ? load(to + r * to_row + w * kLanes) : Lanes{};
  for (int d = 0; d < depth; ++d) {
    Lanes part[Wide];
    for (int w = 0; w < Wide; ++w) part[w] = load(right + d * right_row + w * kLanes);
    const float* x = left.x + d * left.column;
    for (int r = 0; r < Rows; ++r)
      for (int w = 0; w < Wide; ++w) sum[r][w] += x[r * left.row] * part[w];
  }
  for (int r = 0; r < Rows; ++r)
    for (int w = 0; w < Wide; ++w) store(to + r * to_row + w * kLanes, sum[r][w]);
}

template <int Wide>
inline void multiply_panel(Matrix left, const float* right, int right_row, float* to, int to_row,
                           int rows, int depth, bool add) {
  constexpr int kRows = std::min(8, kHeld / Wide);
  for (int r = 0; r < rows; r += kRows)
    multiply_tile<kRows, Wide>({left.x + r * left.row, left.row, left.column}, right, right_row,
                               to + r * to_row, to_row, depth, add);
}

// to = left right, or with `add` to += left right; `rows` is a multiple of 8, `columns` of 16.
void multiply(Matrix left, const float* right, int right_row, float* to, int to_row, int rows,
              int columns, int depth, bool add) {
  constexpr int kWidest = kHeld / 4;  // 4 or 1
  for (int c = 0; c < columns;) {
    const int left_over = (columns - c) / kLanes;
    const int wide = left_over >= kWidest && kWidest > 2 ? kWidest : std::min(left_over, 2);
    const auto panel = wide > 2    ? &multiply_panel<kWidest>
                       : wide == 2 ? &multiply_panel<2>
                                   : &multiply_panel<1>;
    panel(left, right + c, right_row, to + c, to_row, rows, depth, add);
    c += wide * kLanes;
  }
}

struct Sizes {
  int N, H, K, C, G, blocks;
  int wide;  // C rounded up to whole registers
  int M;     // queries of a block
  Sizes(int n, int h, int k, int c)
      : N(n), H(h), K(k), C(c), G(h / k), blocks((n + kBlock - 1) / kBlock),
        wide((c + kLanes - 1) / kLanes * kLanes), M(h / k * kBlock) {}
  int tokens() const { return blocks * kBlock; }
};

// What is visible: token i sees token j iff j <= i < end[j].
struct Mask {
  std::vector<int32_t> end, most, least;  // of a token; of those of a block
  Mask(const int32_t* of, const Sizes& s) : end(s.tokens()), most(s.blocks), least(s.blocks) {
    for (int j = 0; j < s.tokens(); ++j) end[j] = j < s.N ? of[j] : j + 1;
    for (int b = 0; b < s.blocks; ++b) {
      const auto [low, high] = std::minmax_element(&end[b * kBlock], &end[b * kBlock] + kBlock);
      least[b] = *low;
      most[b] = *high;
    }
  }
  // Blocks of tokens: does any query of block i see a key of block j <= i; do all see all?
  bool any(int i, int j) const { return j == i || most[j] > i * kBlock; }
  bool all(int i, int j) const { return j < i && least[j] >= (i + 1) * kBlock; }
};

// Keys or values [N, K, C] as [K, tokens, wide], with zeros where there is nothing.
void pack(ffi::ThreadPool& pool, Floats& from, const Sizes& s, float* to) {
  in_parallel(pool, s.K, true, [&](int k) {
    for (int n = 0; n < s.tokens(); ++n) {
      float* row = to + (int64_t(k) * s.tokens() + n) * s.wide;
      const int some = n < s.N ? s.C : 0;
      if (some) std::copy_n(from.typed_data() + (int64_t(n) * s.K + k) * s.C, s.C, row);
      std::fill(row + some, row + s.wide, 0.0f);
    }
  });
}

// The queries (or what has their shape) of block i that look at key head k, of `from` [N, H, C],
// times `scale`: as [M, wide].
void pack_queries(const float* from, const Sizes& s, int i, int k, float scale, float* to_MC) {
  for (int g = 0; g < s.G; ++g)
    for (int t = 0; t < kBlock; ++t) {
      float* row = to_MC + (g * kBlock + t) * s.wide;
      const int n = i * kBlock + t, some = n < s.N ? s.C : 0;
      const float* x = from + (int64_t(n) * s.H + k * s.G + g) * s.C;
      for (int c = 0; c < some; ++c) row[c] = x[c] * scale;
      std::fill(row + some, row + s.wide, 0.0f);
    }
}

// [M, wide] -> [wide, M].
void turn(const float* from_MC, const Sizes& s, float* to_CM) {
  for (int m = 0; m < s.M; m += kLanes)
    for (int c = 0; c < s.wide; ++c)
      for (int l = 0; l < kLanes; ++l) to_CM[c * s.M + m + l] = from_MC[(m + l) * s.wide + c];
}

// Of `from_CM`, times factor_M, the real ones into `to` [N, H, C].
void unpack_queries(const float* from_CM, const float* factor_M, const Sizes& s, int i, int k,
                    float* to) {
  for (int g = 0; g < s.G; ++g)
    for (int t = 0; t < kBlock && i * kBlock + t < s.N; ++t) {
      const int m = g * kBlock + t;
      float* row = to + (int64_t(i * kBlock + t) * s.H + k * s.G + g) * s.C;
      for (int c = 0; c < s.C; ++c) row[c] = from_CM[c * s.M + m] * factor_M[m];
    }
}

inline Whole from_zero() {
  return Whole{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
}

// Which of 16 queries, from token `i` on, see token j.
inline Whole sees(Whole i, int j, int end) { return (i >= j) & (i < end); }

// ---- forward

// One block of scores: S -> weights, and the softmax so far goes on.
template <bool kAll>
void soften(float* scores_XM, const Sizes& s, const Mask& mask, int i, int j, float* max_M,
            float* sum_M, float* out_CM) {
  for (int m = 0; m < s.M; m += kLanes) {
    const Whole query = i * kBlock + m % kBlock + from_zero();
    const int32_t* end = &mask.end[j * kBlock];
    const Lanes before = load(max_M + m), zero = {};
    Lanes high = before, sum = zero;
    for (int x = 0; x < kBlock; ++x) {
      const Lanes score = load(scores_XM + x * s.M + m);
      const Whole higher = score > high;
      const Whole taken = kAll ? higher : higher & sees(query, j * kBlock + x, end[x]);
      high = taken ? score : high;
    }
    for (int x = 0; x < kBlock; ++x) {
      float* at = scores_XM + x * s.M + m;
      Lanes weight = exp_negative(load(at) - high);
      if (!kAll) weight = sees(query, j * kBlock + x, end[x]) ? weight : zero;
      sum += weight;
      store(at, weight);
    }
    const Lanes shrink = exp_negative(before - high);
    store(max_M + m, high);
    store(sum_M + m, load(sum_M + m) * shrink + sum);
    for (int c = 0; c < s.wide; ++c) {
      float* at = out_CM + c * s.M + m;
      store(at, load(at) * shrink);
    }
  }
}

Sizes sizes_of(Floats& q, Floats& k) {
  return Sizes(int(q.dimensions()[0]), int(q.dimensions()[1]), int(k.dimensions()[1]),
               int(q.dimensions()[2]));
}

ffi::Error Forward(ffi::ThreadPool pool, Floats q, Floats k, Floats v, Ints end,
                   ffi::Result<Floats> out, ffi::Result<Floats> lse) {
  const Sizes s = sizes_of(q, k);
  const Mask mask(end.typed_data(), s);
  const int64_t head = int64_t(s.tokens()) * s.wide;
  const float scale = 1.0f / std::sqrt(float(s.C));
  float* keys = scratch(2 * s.K * head, 0);
  float* values = keys + s.K * head;
  pack(pool, k, s, keys);
  pack(pool, v, s, values);
  in_parallel(pool, s.K * s.blocks, true, [&](int unit) {
    const int i = s.blocks - 1 - unit / s.K, head_k = unit % s.K;  // the longest first
    float* q_CM = scratch(size_t(s.M) * (3 * s.wide + kBlock + 2), 1);
    float *out_CM = q_CM + s.M * s.wide, *q_MC = out_CM + s.M * s.wide;
    float *scores_XM = q_MC + s.M * s.wide, *max_M = scores_XM + s.M * kBlock;
    float* sum_M = max_M + s.M;
    pack_queries(q.typed_data(), s, i, head_k, scale, q_MC);
    turn(q_MC, s, q_CM);
    std::fill_n(out_CM, s.M * s.wide, 0.0f);
    std::fill_n(max_M, s.M, kLow);
    std::fill_n(sum_M, s.M, 0.0f);
    for (int j = 0; j <= i; ++j) {
      if (!mask.any(i, j)) continue;
      const int64_t at = head_k * head + int64_t(j) * kBlock * s.wide;
      multiply({keys + at, s.wide, 1}, q_CM, s.M, scores_XM, s.M, kBlock, s.M, s.wide, false);
      const auto softmax = mask.all(i, j) ? &soften<true> : &soften<false>;
      softmax(scores_XM, s, mask, i, j, max_M, sum_M, out_CM);
      multiply({values + at, 1, s.wide}, scores_XM, s.M, out_CM, s.M, s.wide, s.M, kBlock, true);
    }
    for (int m = 0; m < s.M; ++m) {
      const int n = i * kBlock + m % kBlock;
      if (n < s.N)
        lse->typed_data()[int64_t(n) * s.H + head_k * s.G + m / kBlock] =
            max_M[m] + std::log(sum_M[m]);
      sum_M[m] = 1.0f / sum_M[m];
    }
    unpack_queries(out_CM, sum_M, s, i, head_k, out->typed_data());
  });
  return ffi::Error::Success();
}

// ---- backward

// One block: S and dW -> W and dS, where W = exp(S - lse) and dS = W (dW - delta).
template <bool kAll>
void differentiate(float* scores_XM, float* weights_XM, const Sizes& s, const Mask& mask, int i,
                   int j, const float* lse_M, const float* delta_M) {
  for (int m = 0; m < s.M; m += kLanes) {
    const Whole query = i * kBlock + m % kBlock + from_zero();
    const int32_t* end = &mask.end[j * kBlock];
    const Lanes lse = load(lse_M + m), delta = load(delta_M + m), zero = {};
    for (int x = 0; x < kBlock; ++x) {
      float *score = scores_XM + x * s.M + m, *weight = weights_XM + x * s.M + m;
      Lanes w = exp_negative(load(score) - lse);
      if (!kAll) w = sees(query, j * kBlock + x, end[x]) ? w : zero;
      store(score, w);
      store(weight, w * (load(weight) - delta));
    }
  }
}

ffi::Error Backward(ffi::ThreadPool pool, Floats q, Floats k, Floats v, Ints end, Floats out,
                    Floats lse, Floats d_out, Floats d_lse, ffi::Result<Floats> d_q,
                    ffi::Result<Floats> d_k, ffi::Result<Floats> d_v) {
  const Sizes s = sizes_of(q, k);
  const Mask mask(end.typed_data(), s);
  const int64_t head = int64_t(s.tokens()) * s.wide;
  const float scale = 1.0f / std::sqrt(float(s.C));
  // Keys and values of each head; then gradients of both of each slice of each head.
  float* keys = scratch(2 * s.K * (1 + kSlices) * head, 0);
  float *values = keys + s.K * head, *grads = values + s.K * head;
  pack(pool, k, s, keys);
  pack(pool, v, s, values);
  in_parallel(pool, s.K * kSlices, true, [&](int unit) {
    const int head_k = unit / kSlices, slice = unit % kSlices;
    float *d_keys = grads + unit * 2 * head, *d_values = d_keys + head;
    std::fill_n(d_keys, 2 * head, 0.0f);
    const int area = s.M * s.wide;
    float* q_CM = scratch(size_t(5) * area + size_t(s.M) * (2 * kBlock + 3), 1);
    float *q_MC = q_CM + area, *d_out_CM = q_MC + area, *d_out_MC = d_out_CM + area;
    float *d_q_CM = d_out_MC + area, *scores_XM = d_q_CM + area;
    float *weights_XM = scores_XM + s.M * kBlock, *lse_M = weights_XM + s.M * kBlock;
    float *delta_M = lse_M + s.M, *scale_M = delta_M + s.M;
    std::fill_n(scale_M, s.M, scale);
    for (int i = slice; i < s.blocks; i += kSlices) {
      pack_queries(q.typed_data(), s, i, head_k, scale, q_MC);
      pack_queries(d_out.typed_data(), s, i, head_k, 1.0f, d_out_MC);
      turn(q_MC, s, q_CM);
      turn(d_out_MC, s, d_out_CM);
      std::fill_n(d_q_CM, area, 0.0f);
      for (int m = 0; m < s.M; ++m) {
        const int64_t n = i * kBlock + m % kBlock, at = n * s.H + head_k * s.G + m / kBlock;
        lse_M[m] = delta_M[m] = 0.0f;
        if (n >= s.N) continue;
        lse_M[m] = lse.typed_data()[at];
        const float* row = out.typed_data() + at * s.C;
        float sum = -d_lse.typed_data()[at];
        for (int c = 0; c < s.C; ++c) sum += row[c] * d_out_MC[m * s.wide + c];
        delta_M[m] = sum;
      }
      for (int j = 0; j <= i; ++j) {
        if (!mask.any(i, j)) continue;
        const int64_t from = int64_t(j) * kBlock * s.wide;
        const float *key = keys + head_k * head + from, *value = values + head_k * head + from;
        multiply({key, s.wide, 1}, q_CM, s.M, scores_XM, s.M, kBlock, s.M, s.wide, false);
        multiply({value, s.wide, 1}, d_out_CM, s.M, weights_XM, s.M, kBlock, s.M, s.wide, false);
        const auto gradient = mask.all(i, j) ? &differentiate<true> : &differentiate<false>;
        gradient(scores_XM, weights_XM, s, mask, i, j, lse_M, delta_M);
        multiply({scores_XM, s.M, 1}, d_out_MC, s.wide, d_values + from, s.wide, kBlock, s.wide,
                 s.M, true);
        multiply({weights_XM, s.M, 1}, q_MC, s.wide, d_keys + from, s.wide, kBlock, s.wide, s.M,
                 true);
        multiply({key, 1, s.wide}, weights_XM, s.M, d_q_CM, s.M, s.wide, s.M, kBlock, true);
      }
      unpack_queries(d_q_CM, scale_M, s, i, head_k, d_q->typed_data());
    }
  });
  in_parallel(pool, s.blocks, true, [&](int block) {
    for (int n = block * kBlock; n < std::min(s.N, (block + 1) * kBlock); ++n)
      for (int k = 0; k < s.K; ++k)
        for (int kind = 0; kind < 2; ++kind) {
          float* to = (kind ? d_v : d_k)->typed_data() + (int64_t(n) * s.K + k) * s.C;
          const float* from = grads + (2 * k * kSlices + kind) * head + int64_t(n) * s.wide;
          for (int c = 0; c < s.C; ++c) {
            float sum = 0;  // of the slices, in a fixed order
            for (int slice = 0; slice < kSlices; ++slice) sum += from[2 * slice * head + c];
            to[c] = sum;
          }
        }
  });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(SparkTreeForward, Forward);
XLA_FFI_DEFINE_HANDLER_SYMBOL(SparkTreeBackward, Backward);
