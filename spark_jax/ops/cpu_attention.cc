// Attention over pages for CPUs, called by XLA (ops/cpu_kernels.py builds and registers it).
//
// XLA would do each small product of a decoding step apart, on one core, over copies of the pages in
// another order. Here a tile of pages is read where it lies, once for all rows that share it, and
// tiles are spread over XLA's threads. Softmax in float32; keys and values float32 or bfloat16.
//
// Letters as everywhere: B rows, T new tokens of a row, H query heads, K key heads, G = H / K,
// C channels, P pages, S slots of a page, X tokens, U tiles, R rows of a tile, M queries.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "cpu_kernels.h"

namespace {

constexpr int kQueries = 4;     // that share one reading of a value
constexpr int kMany = 8;        // queries from which on they are the lanes
constexpr int kBlock = 128;     // tokens that a prefill looks at in one go

inline void add_to(float* x, Lanes y) {
  y += load(x);
  std::memcpy(x, &y, sizeof y);
}

// Some tokens of one key head: runs of `slots` tokens, `stride` values apart.
template <typename T>
struct Tokens {
  const T* const* k_runs;
  const T* const* v_runs;
  int slots;
  int stride;
};

// Queries of one key head with their softmax so far: the highest score, the sum of
// exp(score - highest) and the values weighted by these.
struct Queries {
  const float* q_MC;  // scaled
  int count;
  const int* seen_M;  // how many of the tokens, from the first one on, a query may see (or 0)
  float* max_M;
  float* sum_M;
  float* out_MC;
};

#if defined(__AVX512F__)
// Sums of neighbours, first those of `a`, then those of `b`.
inline Lanes halved(Lanes a, Lanes b) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30) +
         __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
#else
  const Whole even = {0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30};
  return __builtin_shuffle(a, b, even) + __builtin_shuffle(a, b, even + 1);
#endif
}
#endif

// Has memory bring C values.
template <typename T, int C>
inline void fetch(const T* x) {
  for (size_t at = 0; at < C * sizeof(T); at += 64)
    __builtin_prefetch(reinterpret_cast<const char*>(x) + at);
}

inline int padded(int queries) { return (queries + kLanes - 1) / kLanes * kLanes; }

// Adds the weighted values of `most` tokens for N queries; the weight of token x for query n is
// weights[x * by_token + n * by_query].
template <typename T, int C, int N>
void add_values(const float* weights, int by_token, int by_query, const Tokens<T>& tokens, int most,
                float* out_NC, int dim) {
  const int channels = C ? C : dim;
  constexpr int kWide = C && C % (4 * kLanes) == 0 ? 4 : 1;  // registers for each query
  int at = 0;
  for (; at + kWide * kLanes <= channels; at += kWide * kLanes) {
    Lanes sum[N][kWide] = {};
    for (int first = 0, run = 0; first < most; first += tokens.slots, ++run) {
      const int end = std::min(tokens.slots, most - first);
      for (int s = 0; s < end; ++s) {
        const T* value = tokens.v_runs[run] + int64_t(s) * tokens.stride + at;
        const float* weight = weights + (first + s) * by_token;
        Lanes part[kWide];
        for (int w = 0; w < kWide; ++w) part[w] = load(value + w * kLanes);
        for (int n = 0; n < N; ++n)
          for (int w = 0; w < kWide; ++w) sum[n][w] += weight[n * by_query] * part[w];
      }
    }
    for (int n = 0; n < N; ++n)
      for (int w = 0; w < kWide; ++w) add_to(out_NC + n * channels + at + w * kLanes, sum[n][w]);
  }
  for (; at < channels; ++at)  // what is left of an odd size
    for (int first = 0, run = 0; first < most; first += tokens.slots, ++run)
      for (int s = 0; s < std::min(tokens.slots, most - first); ++s) {
        const float value = wide(tokens.v_runs[run][int64_t(s) * tokens.stride + at]);
        for (int n = 0; n < N; ++n)
          out_NC[n * channels + at] += weights[(first + s) * by_token + n * by_query] * value;
      }
}

// ---- few queries: the channels of a key are the lanes

// Scores of `most` tokens for N queries, [query][token] with `room` tokens a query.
template <typename T, int C, int N>
void score_few(const float* q_NC, const Tokens<T>& tokens, int most, float* scores, int room,
               int dim) {
#if defined(__AVX512F__)
  if constexpr (C > 0) {
    // Sixteen keys at a time, of which four are in registers. Their products are summed by halving
    // all of them together: a sum over the lanes of each would take longer than the products.
    constexpr int kWide = C / kLanes;
    for (int begin = 0, run = 0; begin < most; begin += tokens.slots, ++run) {
      const int end = std::min(tokens.slots, most - begin);
      const bool more = begin + tokens.slots < most;
      for (int s = 0; s < end; s += kLanes) {
        Lanes fourth[4][N];
        for (int j = 0; j < 4; ++j) {
          Lanes dot[4][N];
          for (int i = 0; i < 4; ++i) {  // the last ones may be done twice
            const int64_t at = int64_t(std::min(s + 4 * j + i, end - 1)) * tokens.stride;
            fetch<T, C>(tokens.v_runs[run] + at);
            if (more) fetch<T, C>(tokens.k_runs[run + 1] + at);
            const T* key = tokens.k_runs[run] + at;
            for (int w = 0; w < kWide; ++w) {
              const Lanes part = load(key + w * kLanes);
              for (int n = 0; n < N; ++n) {
                const Lanes product = load(q_NC + n * C + w * kLanes) * part;
                dot[i][n] = w ? dot[i][n] + product : product;
              }
            }
          }
          for (int n = 0; n < N; ++n)
            fourth[j][n] = halved(halved(dot[0][n], dot[1][n]), halved(dot[2][n], dot[3][n]));
        }
        for (int n = 0; n < N; ++n) {
          const Lanes sums = halved(halved(fourth[0][n], fourth[1][n]),
                                    halved(fourth[2][n], fourth[3][n]));
          float* to = scores + n * room + begin + s;
          if (end - s >= kLanes)
            std::memcpy(to, &sums, sizeof sums);
          else
            std::memcpy(to, &sums, (end - s) * sizeof(float));
        }
      }
    }
    return;
  }
#endif
  const int channels = C ? C : dim;
  for (int begin = 0, run = 0; begin < most; begin += tokens.slots, ++run) {
    const int end = std::min(tokens.slots, most - begin);
    for (int s = 0; s < end; ++s) {
      const T* key = tokens.k_runs[run] + int64_t(s) * tokens.stride;
      float dot[N] = {};
      for (int c = 0; c < channels; ++c)
        for (int n = 0; n < N; ++n) dot[n] += q_NC[n * channels + c] * wide(key[c]);
      for (int n = 0; n < N; ++n) scores[n * room + begin + s] = dot[n];
    }
  }
}

template <typename T, int C, int N>
void look_at_few(const Queries& queries, int first, const Tokens<T>& tokens, float* scores,
                 int room, int dim) {
  const int channels = C ? C : dim;
  int most = 0;
  for (int n = 0; n < N; ++n) most = std::max(most, queries.seen_M[first + n]);
  if (!most) return;
  score_few<T, C, N>(queries.q_MC + first * channels, tokens, most, scores, room, channels);
  for (int n = 0; n < N; ++n) {
    const int m = first + n, seen = queries.seen_M[m];
    float* of = scores + n * room;
    float high = queries.max_M[m];
    for (int x = 0; x < seen; ++x) high = std::max(high, of[x]);
    float sum = 0;
    for (int x = 0; x < seen; ++x) {
      of[x] = exp_negative(of[x] - high);
      sum += of[x];
    }
    for (int x = seen; x < most; ++x) of[x] = 0;
    const float shrink = exp_negative(queries.max_M[m] - high);
    queries.max_M[m] = high;
    queries.sum_M[m] = queries.sum_M[m] * shrink + sum;
    for (int c = 0; c < channels; ++c) queries.out_MC[m * channels + c] *= shrink;
  }
  float* out_NC = queries.out_MC + first * channels;
  add_values<T, C, N>(scores, 1, room, tokens, most, out_NC, channels);
}

// ---- many queries: they are the lanes

// Scores of some tokens for N * kLanes queries, [token][query] with `by_token` queries a token.
template <typename T, int C, int N>
void score_many(const float* q_CM, int by_channel, const Tokens<T>& tokens, int most, float* scores,
                int by_token, int dim) {
  const int channels = C ? C : dim;
  constexpr int kKeys = 4;
  for (int begin = 0, run = 0; begin < most; begin += tokens.slots, ++run) {
    const int end = std::min(tokens.slots, most - begin);
    for (int s = 0; s < end; s += kKeys) {
      const T* key[kKeys];
      for (int i = 0; i < kKeys; ++i)  // the last ones may be done twice
        key[i] = tokens.k_runs[run] + int64_t(std::min(s + i, end - 1)) * tokens.stride;
      Lanes dot[kKeys][N] = {};
      for (int c = 0; c < channels; ++c) {
        Lanes q[N];
        for (int n = 0; n < N; ++n) q[n] = load(q_CM + c * by_channel + n * kLanes);
        for (int i = 0; i < kKeys; ++i)
          for (int n = 0; n < N; ++n) dot[i][n] += wide(key[i][c]) * q[n];
      }
      for (int i = 0; i < std::min(kKeys, end - s); ++i)
        for (int n = 0; n < N; ++n)
          std::memcpy(scores + (begin + s + i) * by_token + n * kLanes, &dot[i][n], sizeof(Lanes));
    }
  }
}

template <typename T, int C>
void look_at_many(const Queries& queries, const Tokens<T>& tokens, float* scores, int dim) {
  const int channels = C ? C : dim, M = queries.count, lanes = padded(M);
  int most = 0;
  for (int m = 0; m < M; ++m) most = std::max(most, queries.seen_M[m]);
  if (!most) return;
  float* q_CM = scratch(size_t(channels) * lanes, 2);
  for (int c = 0; c < channels; ++c)
    for (int m = 0; m < lanes; ++m)
      q_CM[c * lanes + m] = m < M ? queries.q_MC[m * channels + c] : 0.0f;
  for (int m = 0; m < lanes;) {
    const int left = (lanes - m) / kLanes;
    const auto score = left >= 3   ? &score_many<T, C, 3>
                       : left == 2 ? &score_many<T, C, 2>
                                   : &score_many<T, C, 1>;
    score(q_CM + m, lanes, tokens, most, scores + m, lanes, channels);
    m += std::min(left, 3) * kLanes;
  }
  for (int m0 = 0; m0 < lanes; m0 += kLanes) {
    Lanes high, sum = {}, zero = {};
    Whole seen;
    for (int m = 0; m < kLanes; ++m) {
      seen[m] = m0 + m < M ? queries.seen_M[m0 + m] : 0;
      high[m] = m0 + m < M ? queries.max_M[m0 + m] : 0.0f;
    }
    for (int x = 0; x < most; ++x) {
      const Lanes score = load(scores + x * lanes + m0);
      high = (seen > x) & (score > high) ? score : high;
    }
    for (int x = 0; x < most; ++x) {
      float* at = scores + x * lanes + m0;
      const Lanes weight = seen > x ? exp_negative(load(at) - high) : zero;
      sum += weight;
      std::memcpy(at, &weight, sizeof weight);
    }
    for (int m = 0; m < kLanes && m0 + m < M; ++m) {
      const float shrink = exp_negative(queries.max_M[m0 + m] - high[m]);
      queries.max_M[m0 + m] = high[m];
      queries.sum_M[m0 + m] = queries.sum_M[m0 + m] * shrink + sum[m];
      for (int c = 0; c < channels; ++c) queries.out_MC[(m0 + m) * channels + c] *= shrink;
    }
  }
  int m = 0;
  for (; m + kQueries <= M; m += kQueries)
    add_values<T, C, kQueries>(scores + m, lanes, 1, tokens, most, queries.out_MC + m * channels,
                               channels);
  for (; m < M; ++m)
    add_values<T, C, 1>(scores + m, lanes, 1, tokens, most, queries.out_MC + m * channels,
                        channels);
}

template <typename T, int C>
void look_sized(const Queries& queries, const Tokens<T>& tokens, float* scores, int room, int dim) {
  if (queries.count >= kMany) return look_at_many<T, C>(queries, tokens, scores, dim);
  int m = 0;
  for (; m + kQueries <= queries.count; m += kQueries)
    look_at_few<T, C, kQueries>(queries, m, tokens, scores, room, dim);
  switch (queries.count - m) {
    case 3: look_at_few<T, C, 3>(queries, m, tokens, scores, room, dim); break;
    case 2: look_at_few<T, C, 2>(queries, m, tokens, scores, room, dim); break;
    case 1: look_at_few<T, C, 1>(queries, m, tokens, scores, room, dim); break;
  }
}

// Takes tokens into the softmax of the queries. `scores` has room for `room` tokens and
// `padded(queries.count)` queries.
template <typename T>
void look(const Queries& queries, const Tokens<T>& tokens, float* scores, int room, int channels) {
  switch (channels) {
    case 32: return look_sized<T, 32>(queries, tokens, scores, room, channels);
    case 64: return look_sized<T, 64>(queries, tokens, scores, room, channels);
    case 128: return look_sized<T, 128>(queries, tokens, scores, room, channels);
    default: return look_sized<T, 0>(queries, tokens, scores, room, channels);
  }
}

// ---- decoding: one query per row, over tiles of pages and over tokens not in pages yet

struct TileList {
  const int32_t* page_UW;
  const int32_t* row_UR;
  const int32_t* start_U;
  const int32_t* tokens_U;
  int count, pages, rows;
};

TileList tile_list(ffi::Buffer<ffi::S32>& page, ffi::Buffer<ffi::S32>& row,
                   ffi::Buffer<ffi::S32>& start, ffi::Buffer<ffi::S32>& tokens,
                   ffi::Buffer<ffi::S32>& count) {
  return {page.typed_data(),          row.typed_data(),
          start.typed_data(),         tokens.typed_data(),
          *count.typed_data(),        int(page.dimensions()[1]),
          int(row.dimensions()[1])};
}

struct Decoding {
  const float* q_BHC;
  const int32_t* length_B;
  float* out_BHC;
  float* lse_BH;
  int B, H, K, C, S, X;
  TileList lists[2];  // shared tiles, own ones
  int recent;         // tokens of each row that are not in pages yet
};

template <typename T>
void decode(ffi::ThreadPool& pool, const Decoding& d, const T* k_PSKC, const T* v_PSKC,
            const T* k_BKXC, const T* v_BKXC) {
  const int G = d.H / d.K, size = d.C + 2;  // a part: max, sum, out
  const float scale = 1.0f / std::sqrt(float(d.C));
  // One unit of work for each tile, then one for the recent tokens of each row. A part for each of
  // a unit's rows and query heads.
  const int shared = d.lists[0].count, tiles = shared + d.lists[1].count, units = tiles + d.B;
  auto place = [&](int unit) {  // where its parts begin, in rows
    return unit < shared ? unit * d.lists[0].rows
                         : shared * d.lists[0].rows + (unit - shared);
  };
  auto seen_by = [&](const TileList& list, int u, int row) {  // tokens; `row` may be none
    return row < d.B ? std::min(d.length_B[row] - list.start_U[u], list.tokens_U[u]) : 0;
  };
  float* parts = scratch(size_t(place(units)) * d.H * size, 0);
  int64_t tokens = int64_t(d.B) * d.recent;
  for (int kind = 0; kind < 2; ++kind)
    for (int u = 0; u < d.lists[kind].count; ++u) tokens += d.lists[kind].tokens_U[u];
  const bool worth = worth_threads(tokens * d.H * d.C);

  in_parallel(pool, units, worth, [&](int unit) {
    const bool in_pages = unit < tiles;
    const TileList& list = d.lists[unit < shared ? 0 : 1];
    const int u = unit < shared ? unit : unit - shared;
    const int rows = in_pages ? list.rows : 1, pages = in_pages ? list.pages : 1;
    const int slots = in_pages ? d.S : d.X, room = pages * slots, most = rows * G;
    float* here = scratch(size_t(most) * (size + d.C) + padded(most) * room, 1);
    float *q = here, *out = q + most * d.C, *max = out + most * d.C, *sum = max + most;
    float* scores = sum + most;
    std::vector<int> seen(most), of(rows);
    std::vector<const T*> k_runs(pages), v_runs(pages);
    int found = 0;  // rows that see something of this tile
    for (int r = 0; r < rows; ++r) {
      const int row = in_pages ? list.row_UR[u * rows + r] : unit - tiles;
      const int some = in_pages ? seen_by(list, u, row) : d.recent;
      if (some <= 0) continue;
      std::fill_n(seen.begin() + found * G, G, some);
      of[found++] = r;
    }
    for (int k = 0; k < d.K; ++k) {
      for (int i = 0; i < found; ++i) {
        const int row = in_pages ? list.row_UR[u * rows + of[i]] : unit - tiles;
        const float* from = d.q_BHC + (int64_t(row) * d.H + k * G) * d.C;
        for (int j = 0; j < G * d.C; ++j) q[i * G * d.C + j] = from[j] * scale;
      }
      const int M = found * G;
      std::fill_n(max, M, kLow);
      std::fill_n(sum, M, 0.0f);
      std::fill_n(out, M * d.C, 0.0f);
      int stride;
      if (in_pages) {
        stride = d.K * d.C;
        for (int w = 0; w < pages; ++w) {
          const int64_t at = (int64_t(list.page_UW[u * pages + w]) * d.S * d.K + k) * d.C;
          k_runs[w] = k_PSKC + at;
          v_runs[w] = v_PSKC + at;
        }
      } else {
        stride = d.C;
        const int64_t at = (int64_t(unit - tiles) * d.K + k) * d.X * d.C;
        k_runs[0] = k_BKXC + at;
        v_runs[0] = v_BKXC + at;
      }
      look<T>({q, M, seen.data(), max, sum, out}, {k_runs.data(), v_runs.data(), slots, stride},
              scores, room, d.C);
      for (int i = 0; i < found; ++i)
        for (int g = 0; g < G; ++g) {
          const int m = i * G + g;
          float* part = parts + (int64_t(place(unit) + of[i]) * d.H + k * G + g) * size;
          part[0] = max[m];
          part[1] = sum[m];
          std::copy_n(out + m * d.C, d.C, part + 2);
        }
    }
  });

  // The parts of each row, in a fixed order.
  std::vector<std::vector<int>> mine(d.B);
  for (int unit = 0; unit < units; ++unit) {
    if (unit >= tiles) {
      if (d.recent > 0) mine[unit - tiles].push_back(place(unit));
      continue;
    }
    const TileList& list = d.lists[unit < shared ? 0 : 1];
    const int u = unit < shared ? unit : unit - shared;
    for (int r = 0; r < list.rows; ++r) {
      const int row = list.row_UR[u * list.rows + r];
      if (seen_by(list, u, row) > 0) mine[row].push_back(place(unit) + r);
    }
  }
  in_parallel(pool, d.B, worth, [&](int row) {
    for (int h = 0; h < d.H; ++h) {
      float high = kLow, sum = 0;
      for (int at : mine[row]) high = std::max(high, parts[(int64_t(at) * d.H + h) * size]);
      float* out = d.out_BHC + (int64_t(row) * d.H + h) * d.C;
      std::fill_n(out, d.C, 0.0f);
      for (int at : mine[row]) {
        const float* part = parts + (int64_t(at) * d.H + h) * size;
        if (part[1] == 0) continue;
        const float weight = exp_negative(part[0] - high);
        sum += part[1] * weight;
        for (int c = 0; c < d.C; ++c) out[c] += part[2 + c] * weight;
      }
      const float divided = 1.0f / std::max(sum, 1e-30f);
      for (int c = 0; c < d.C; ++c) out[c] *= divided;
      d.lse_BH[row * d.H + h] = high + std::log(std::max(sum, 1e-30f));
    }
  });
}

template <typename T>
const T* data(ffi::AnyBuffer& x) {
  return static_cast<const T*>(x.untyped_data());
}

// Calls f with a value of the type that the cache has.
template <typename F>
ffi::Error by_type(ffi::AnyBuffer& cache, const F& f) {
  if (cache.element_type() == ffi::F32)
    f(float{});
  else if (cache.element_type() == ffi::BF16 || cache.element_type() == ffi::U16)  // ops/bits.py
    f(BFloat16{});
  else
    return ffi::Error::InvalidArgument("keys and values have to be float32 or bfloat16");
  return ffi::Error::Success();
}

ffi::Error Decode(ffi::ThreadPool pool, Floats q, ffi::AnyBuffer k, ffi::AnyBuffer v, Ints length,
                  Ints shared_page, Ints shared_row, Ints shared_start, Ints shared_tokens,
                  Ints shared_count, Ints own_page, Ints own_row, Ints own_start, Ints own_tokens,
                  Ints own_count, ffi::AnyBuffer k_recent, ffi::AnyBuffer v_recent, Ints number,
                  ffi::Result<Floats> out, ffi::Result<Floats> lse) {
  auto q_dims = q.dimensions(), k_dims = k.dimensions();
  Decoding d{q.typed_data(),
             length.typed_data(),
             out->typed_data(),
             lse->typed_data(),
             int(q_dims[0]),
             int(q_dims[1]),
             int(k_dims[2]),
             int(q_dims[2]),
             int(k_dims[1]),
             int(k_recent.dimensions()[2]),
             {tile_list(shared_page, shared_row, shared_start, shared_tokens, shared_count),
              tile_list(own_page, own_row, own_start, own_tokens, own_count)},
             *number.typed_data()};
  return by_type(k, [&](auto one) {
    using T = decltype(one);
    decode<T>(pool, d, data<T>(k), data<T>(v), data<T>(k_recent), data<T>(v_recent));
  });
}

// ---- prefill: several new tokens per row, whose keys are in the pages already

struct Prefilling {
  const float* q_BTHC;
  const int32_t* table_BW;
  const int32_t* position_BT;
  float* out_BTHC;
  float* lse_BTH;
  int B, T, H, K, C, S, W;
};

template <typename T>
void prefill(ffi::ThreadPool& pool, const Prefilling& p, const T* k_PSKC, const T* v_PSKC) {
  const int G = p.H / p.K, M = p.T * G, pages = std::max(1, kBlock / p.S), room = pages * p.S;
  const float scale = 1.0f / std::sqrt(float(p.C));
  in_parallel(pool, p.B * p.K, true, [&](int unit) {
    const int b = unit / p.K, k = unit % p.K;
    float* here = scratch(size_t(M) * 2 * (p.C + 1) + padded(M) * room, 1);
    float *q = here, *out = q + M * p.C, *max = out + M * p.C, *sum = max + M;
    float* scores = sum + M;
    std::vector<int> seen(M);
    std::vector<const T*> k_runs(pages), v_runs(pages);
    int last = 0;
    for (int t = 0; t < p.T; ++t) {
      const float* from = p.q_BTHC + ((int64_t(b) * p.T + t) * p.H + k * G) * p.C;
      for (int j = 0; j < G * p.C; ++j) q[t * G * p.C + j] = from[j] * scale;
      last = std::max(last, p.position_BT[b * p.T + t]);
    }
    std::fill_n(max, M, kLow);
    std::fill_n(sum, M, 0.0f);
    std::fill_n(out, M * p.C, 0.0f);
    for (int start = 0; start <= last; start += room) {
      for (int w = 0; w < pages; ++w) {
        const int in_table = start / p.S + w;
        const int page = in_table < p.W ? p.table_BW[b * p.W + in_table] : 0;
        const int64_t at = (int64_t(page) * p.S * p.K + k) * p.C;
        k_runs[w] = k_PSKC + at;
        v_runs[w] = v_PSKC + at;
      }
      for (int m = 0; m < M; ++m) {
        const int position = p.position_BT[b * p.T + m / G];
        seen[m] = std::clamp(position + 1 - start, 0, room);
      }
      look<T>({q, M, seen.data(), max, sum, out}, {k_runs.data(), v_runs.data(), p.S, p.K * p.C},
              scores, room, p.C);
    }
    for (int m = 0; m < M; ++m) {
      const int64_t at = (int64_t(b) * p.T + m / G) * p.H + k * G + m % G;
      for (int c = 0; c < p.C; ++c) p.out_BTHC[at * p.C + c] = out[m * p.C + c] / sum[m];
      p.lse_BTH[at] = max[m] + std::log(sum[m]);
    }
  });
}

ffi::Error Prefill(ffi::ThreadPool pool, Floats q, ffi::AnyBuffer k, ffi::AnyBuffer v, Ints table,
                   Ints position, ffi::Result<Floats> out, ffi::Result<Floats> lse) {
  auto q_dims = q.dimensions(), k_dims = k.dimensions();
  Prefilling p{q.typed_data(),      table.typed_data(), position.typed_data(),
               out->typed_data(),   lse->typed_data(),  int(q_dims[0]),
               int(q_dims[1]),      int(q_dims[2]),     int(k_dims[2]),
               int(q_dims[3]),      int(k_dims[1]),     int(table.dimensions()[1])};
  return by_type(k, [&](auto one) {
    using T = decltype(one);
    prefill<T>(pool, p, data<T>(k), data<T>(v));
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(SparkDecode, Decode);
XLA_FFI_DEFINE_HANDLER_SYMBOL(SparkPrefill, Prefill);
