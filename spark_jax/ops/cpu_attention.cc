// Attention over pages for CPUs, called by XLA (ops/cpu_kernels.py builds and registers it).
//
// XLA would do each small product of a decoding step apart, on one core, over pages that it gathers
// first. Here a tile of pages is read where it lies, once for all rows that share it, and
// tiles are spread over XLA's threads. Softmax in float32; keys and values float32 or bfloat16.
//
// Letters as everywhere: B rows, T new tokens of a row, H query heads, K key heads, G = H / K,
// C channels, P pages, S slots of a page, X tokens, U tiles, R rows of a tile, M queries.
//
// Pages are k_PKCS and v_PKSC: what one head has of a page is one stream, in which sixteen keys lie
// side by side, channel by channel. So scores need no sums over lanes, whatever the number of queries.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "cpu_kernels.h"

namespace {

#if defined(__AVX512F__)
constexpr int kQueries = 6, kPieces = 4;  // 24 sums in 32 registers
#else
constexpr int kQueries = 3, kPieces = 1;
#endif
constexpr int kBlock = 128;  // tokens that a prefill looks at in one go

inline void add_to(float* x, Lanes y) {
  y += load(x);
  std::memcpy(x, &y, sizeof y);
}

template <typename T>
constexpr int kOfLine = 64 / int(sizeof(T));  // numbers of a cache line

// Has memory bring `count` numbers, from a cache line on.
template <typename T>
inline void fetch(const T* from, int count) {
  for (int at = 0; at < count; at += kOfLine<T>) __builtin_prefetch(from + at);
}

// Some tokens of one key head: runs of `slots` tokens, keys [C][slots] and values [slots][C].
template <typename T>
struct Tokens {
  const T* const* k_runs;
  const T* const* v_runs;
  int slots;
  int next;  // how far behind the keys the next ones are that will be looked at; 0: not known
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

inline int padded(int tokens) { return (tokens + kLanes - 1) / kLanes * kLanes; }

// Scores of P pieces of sixteen tokens for N queries, [query][token] with `room` tokens a query. C is
// the number of channels, or 0: then it is `dim`.
template <typename T, int C, int N, int P>
void score_pieces(const float* q_NC, const Tokens<T>& tokens, bool first_time, int piece,
                  float* scores, int room, int dim) {
  const int channels = C ? C : dim, slots = tokens.slots;
  const T *key[P], *value[P];
  for (int i = 0; i < P; ++i) {
    const int at = (piece + i) * kLanes;
    key[i] = tokens.k_runs[at / slots] + at % slots;
    value[i] = tokens.v_runs[at / slots] + at % slots * channels;
  }
  Lanes dot[N][P] = {};
  for (int c = 0; c < channels; ++c) {
    if (first_time && c * kLanes % kOfLine<T> == 0)
      for (int i = 0; i < P; ++i) fetch(value[i] + c * kLanes, kLanes);
    Lanes part[P];
    for (int i = 0; i < P; ++i) part[i] = load(key[i] + int64_t(c) * slots);
    for (int n = 0; n < N; ++n)
      for (int i = 0; i < P; ++i) dot[n][i] += q_NC[n * channels + c] * part[i];
  }
  for (int n = 0; n < N; ++n)
    for (int i = 0; i < P; ++i)
      std::memcpy(scores + n * room + (piece + i) * kLanes, &dot[n][i], sizeof(Lanes));
}

// Scores of `most` tokens for N queries.
template <typename T, int C, int N>
void score(const float* q_NC, const Tokens<T>& tokens, bool first_time, int most, float* scores,
           int room, int dim) {
  const int slots = tokens.slots;
  if (slots % kLanes == 0) {
    const int pieces = (most + kLanes - 1) / kLanes;
    int piece = 0;
    for (; piece + kPieces <= pieces; piece += kPieces)
      score_pieces<T, C, N, kPieces>(q_NC, tokens, first_time, piece, scores, room, dim);
    for (; piece < pieces; ++piece)
      score_pieces<T, C, N, 1>(q_NC, tokens, first_time, piece, scores, room, dim);
    return;
  }
  const int channels = C ? C : dim;
  for (int x = 0; x < most; ++x) {  // pages of an odd size
    const T* key = tokens.k_runs[x / slots] + x % slots;
    float dot[N] = {};
    for (int c = 0; c < channels; ++c)
      for (int n = 0; n < N; ++n) dot[n] += q_NC[n * channels + c] * wide(key[int64_t(c) * slots]);
    for (int n = 0; n < N; ++n) scores[n * room + x] = dot[n];
  }
}

// Turns the scores of a query into weights, exp(score - highest), 0 for those of `most` tokens that
// it may not see.
void weigh(const Queries& queries, int m, float* scores, int most, int channels) {
  const int seen = queries.seen_M[m], whole = seen / kLanes * kLanes;
  float high = queries.max_M[m];
  if (whole) {
    Lanes highest = load(scores);
    for (int x = kLanes; x < whole; x += kLanes) {
      const Lanes score = load(scores + x);
      highest = score > highest ? score : highest;
    }
    for (int i = 0; i < kLanes; ++i) high = std::max(high, highest[i]);
  }
  for (int x = whole; x < seen; ++x) high = std::max(high, scores[x]);
  Lanes sums = {};
  for (int x = 0; x < whole; x += kLanes) {
    const Lanes weight = exp_negative(load(scores + x) - high);
    sums += weight;
    std::memcpy(scores + x, &weight, sizeof weight);
  }
  float sum = 0;
  for (int i = 0; i < kLanes; ++i) sum += sums[i];
  for (int x = whole; x < seen; ++x) sum += scores[x] = exp_negative(scores[x] - high);
  std::fill(scores + seen, scores + most, 0.0f);
  const float shrink = exp_negative(queries.max_M[m] - high);
  queries.max_M[m] = high;
  queries.sum_M[m] = queries.sum_M[m] * shrink + sum;
  for (int c = 0; c < channels; ++c) queries.out_MC[m * channels + c] *= shrink;
}

// Adds the weighted values of `most` tokens for N queries.
template <typename T, int C, int N>
void add_values(const float* weights, int room, const Tokens<T>& tokens, bool first_time, int most,
                float* out_NC, int dim) {
  const int channels = C ? C : dim;
  constexpr int kWide = C && C % (4 * kLanes) == 0 && kPieces == 4 ? 4 : 1;  // sums of each query
  int at = 0;
  for (; at + kWide * kLanes <= channels; at += kWide * kLanes) {
    Lanes sum[N][kWide] = {};
    for (int first = 0, run = 0; first < most; first += tokens.slots, ++run) {
      const int end = std::min(tokens.slots, most - first);
      const T* value = tokens.v_runs[run] + at;
      const T* next = first_time && tokens.next ? tokens.k_runs[run] + tokens.next + at : nullptr;
      for (int s = 0; s < end; ++s, value += channels) {
        if (next) fetch(next + s * channels, kWide * kLanes);
        Lanes part[kWide];
        for (int w = 0; w < kWide; ++w) part[w] = load(value + w * kLanes);
        for (int n = 0; n < N; ++n)
          for (int w = 0; w < kWide; ++w) sum[n][w] += weights[n * room + first + s] * part[w];
      }
    }
    for (int n = 0; n < N; ++n)
      for (int w = 0; w < kWide; ++w) add_to(out_NC + n * channels + at + w * kLanes, sum[n][w]);
  }
  for (; at < channels; ++at)  // what is left of an odd size
    for (int x = 0; x < most; ++x) {
      const float value = wide(tokens.v_runs[x / tokens.slots][x % tokens.slots * channels + at]);
      for (int n = 0; n < N; ++n) out_NC[n * channels + at] += weights[n * room + x] * value;
    }
}

template <typename T, int C, int N>
void look_for(const Queries& queries, int first, const Tokens<T>& tokens, float* scores, int room,
              int dim) {
  const int channels = C ? C : dim;
  const bool first_time = first == 0;  // then it fetches what comes next
  int most = 0;
  for (int n = 0; n < N; ++n) most = std::max(most, queries.seen_M[first + n]);
  if (!most) return;
  score<T, C, N>(queries.q_MC + first * channels, tokens, first_time, most, scores, room, channels);
  for (int n = 0; n < N; ++n) weigh(queries, first + n, scores + n * room, most, channels);
  add_values<T, C, N>(scores, room, tokens, first_time, most, queries.out_MC + first * channels,
                      channels);
}

// N queries or fewer.
template <typename T, int C, int N>
void look_for_some(const Queries& queries, int first, int count, const Tokens<T>& tokens,
                   float* scores, int room, int dim) {
  if (count == N) return look_for<T, C, N>(queries, first, tokens, scores, room, dim);
  if constexpr (N > 1)
    look_for_some<T, C, N - 1>(queries, first, count, tokens, scores, room, dim);
}

template <typename T, int C>
void look_sized(const Queries& queries, const Tokens<T>& tokens, float* scores, int room, int dim) {
  in_equal_passes(queries.count, kQueries, [&](int first, int count, int, int) {
    look_for_some<T, C, kQueries>(queries, first, count, tokens, scores, room, dim);
  });
}

// Takes tokens into the softmax of the queries. `scores` has room for kQueries times `room` tokens,
// a multiple of kLanes.
template <typename T>
void look(const Queries& queries, const Tokens<T>& tokens, float* scores, int room, int channels) {
  switch (channels) {
    case 32: return look_sized<T, 32>(queries, tokens, scores, room, channels);
    case 64: return look_sized<T, 64>(queries, tokens, scores, room, channels);
    case 128: return look_sized<T, 128>(queries, tokens, scores, room, channels);
    default: return look_sized<T, 0>(queries, tokens, scores, room, channels);
  }
}

// ---- heads of tokens: what one product makes of them

struct Heads {
  const float* x_NF;    // H queries, K keys, K values; or queries alone, which are ready then
  const float* cos_NC;  // [N, C / 2], with sin_NC the rotary positions; or null: nothing is turned
  const float* sin_NC;
  const float* norms_2C;  // scales of an RMS norm of queries and of keys; or null: no norm
  float eps;
  int N, F, H, K, C;
  bool has_keys() const { return F > H * C; }
};

// Head `at` of token n, normed with `norm_C` (or not), turned, and scaled.
void turn(const Heads& a, int n, int at, const float* norm_C, float scale, float* to) {
  const float* x = a.x_NF + int64_t(n) * a.F + int64_t(at) * a.C;
  const float all = norm_C ? scale * inverse_rms(x, a.C, a.eps) : scale;
  for (int c = 0; c < a.C; ++c) to[c] = x[c] * all;
  for (int c = 0; norm_C && c < a.C; ++c) to[c] *= norm_C[c];
  if (!a.cos_NC) return;
  const int half = a.C / 2;
  const float *cos = a.cos_NC + int64_t(n) * half, *sin = a.sin_NC + int64_t(n) * half;
  for (int c = 0; c < half; ++c) {
    const float low = to[c], high = to[c + half];
    to[c] = low * cos[c] - high * sin[c];
    to[c + half] = high * cos[c] + low * sin[c];
  }
}

// Token n: its queries [H, C], scaled for attention, and its keys and values into place `at` of
// block `block` of [blocks, K, C, room] and [blocks, K, room, C].
template <typename T>
void take_apart(const Heads& a, int n, float* q_HC, int64_t block, int at, int room, T* k, T* v) {
  const float scale = 1.0f / std::sqrt(float(a.C));
  for (int h = 0; h < a.H; ++h) turn(a, n, h, a.norms_2C, scale, q_HC + h * a.C);
  if (!a.has_keys() || block < 0) return;
  float* key = scratch(a.C, 1);
  for (int head = 0; head < a.K; ++head) {
    turn(a, n, a.H + head, a.norms_2C ? a.norms_2C + a.C : nullptr, 1.0f, key);
    const float* value = a.x_NF + int64_t(n) * a.F + int64_t(a.H + a.K + head) * a.C;
    const int64_t begin = (block * a.K + head) * room * a.C;
    for (int c = 0; c < a.C; ++c) {
      put(key[c], k + begin + int64_t(c) * room + at);
      put(value[c], v + begin + int64_t(at) * a.C + c);
    }
  }
}

inline int64_t work_of(const Heads& a) { return 4 * int64_t(a.N) * a.F; }

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
  const float* q_BHC;  // scaled
  const int32_t* length_B;
  float* out_BHC;
  float* lse_BH;
  int B, H, K, C, S, X;
  TileList lists[2];  // shared tiles, own ones
  int recent;         // tokens of each row that are not in pages yet
};

template <typename T>
void decode(ffi::ThreadPool& pool, const Decoding& d, const T* k_PKCS, const T* v_PKSC,
            const T* k_BKCX, const T* v_BKXC) {
  const int G = d.H / d.K, size = d.C + 2;  // a part: max, sum, out
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
  auto recent_of = [&](int row) { return d.length_B[row] < 0 ? 0 : d.recent; };  // NOBODY: none
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
    const int slots = in_pages ? d.S : d.X, room = padded(pages * slots), most = rows * G;
    float* here = scratch(size_t(most) * (size + d.C) + kQueries * room, 1);
    float *q = here, *out = q + most * d.C, *max = out + most * d.C, *sum = max + most;
    float* scores = sum + most;
    std::vector<int> seen(most), of(rows);
    std::vector<const T*> k_runs(pages), v_runs(pages);
    int found = 0;  // rows that see something of this tile
    for (int r = 0; r < rows; ++r) {
      const int row = in_pages ? list.row_UR[u * rows + r] : unit - tiles;
      const int some = in_pages ? seen_by(list, u, row) : recent_of(row);
      if (some <= 0) continue;
      std::fill_n(seen.begin() + found * G, G, some);
      of[found++] = r;
    }
    for (int k = 0; k < d.K; ++k) {
      for (int i = 0; i < found; ++i) {
        const int row = in_pages ? list.row_UR[u * rows + of[i]] : unit - tiles;
        const float* from = d.q_BHC + (int64_t(row) * d.H + k * G) * d.C;
        std::copy_n(from, G * d.C, q + i * G * d.C);
      }
      const int M = found * G;
      std::fill_n(max, M, kLow);
      std::fill_n(sum, M, 0.0f);
      std::fill_n(out, M * d.C, 0.0f);
      for (int w = 0; w < pages; ++w) {
        const int64_t page = in_pages ? list.page_UW[u * pages + w] : unit - tiles;
        const int64_t at = (page * d.K + k) * slots * d.C;
        k_runs[w] = (in_pages ? k_PKCS : k_BKCX) + at;
        v_runs[w] = (in_pages ? v_PKSC : v_BKXC) + at;
      }
      const int next = k + 1 < d.K ? slots * d.C : 0;
      look<T>({q, M, seen.data(), max, sum, out}, {k_runs.data(), v_runs.data(), slots, next},
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
      if (recent_of(unit - tiles) > 0) mine[unit - tiles].push_back(place(unit));
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

constexpr char kHeads[] = "heads", kEps[] = "eps";

Heads heads_of(Floats& x, Floats& cos, Floats& sin, Floats& norms, int H, int K, int C, float eps) {
  auto some = [](Floats& y) { return y.element_count() ? y.typed_data() : nullptr; };
  return {x.typed_data(), some(cos),  some(sin), some(norms), eps, int(x.dimensions()[0]),
          int(x.dimensions()[1]), H, K, C};
}

template <typename T>
T* data_of(ffi::Result<ffi::AnyBuffer>& x) {
  return static_cast<T*>(x->untyped_data());
}

// Whether keys and values are written where they were read.
bool in_place(ffi::AnyBuffer& k, ffi::AnyBuffer& v, ffi::Result<ffi::AnyBuffer>& k_out,
              ffi::Result<ffi::AnyBuffer>& v_out) {
  return k.untyped_data() == k_out->untyped_data() && v.untyped_data() == v_out->untyped_data();
}

ffi::Error not_in_place() {
  return ffi::Error::InvalidArgument("keys and values have to be written in place");
}

ffi::Error Decode(ffi::ThreadPool pool, Floats x, Floats cos, Floats sin, Floats norms,
                  ffi::AnyBuffer k_recent, ffi::AnyBuffer v_recent, ffi::AnyBuffer k,
                  ffi::AnyBuffer v, Ints length, Ints shared_page, Ints shared_row,
                  Ints shared_start, Ints shared_tokens, Ints shared_count, Ints own_page,
                  Ints own_row, Ints own_start, Ints own_tokens, Ints own_count, Ints number,
                  ffi::Result<Floats> out, ffi::Result<Floats> lse,
                  ffi::Result<ffi::AnyBuffer> k_written, ffi::Result<ffi::AnyBuffer> v_written,
                  ffi::Attr<int32_t, kHeads> heads, ffi::Attr<float, kEps> eps) {
  if (!in_place(k_recent, v_recent, k_written, v_written)) return not_in_place();
  auto k_dims = k.dimensions();
  const Heads a = heads_of(x, cos, sin, norms, *heads, int(k_dims[1]), int(k_dims[2]), *eps);
  float* q_BHC = scratch(size_t(a.N) * a.H * a.C, 2);
  Decoding d{q_BHC,
             length.typed_data(),
             out->typed_data(),
             lse->typed_data(),
             a.N,
             a.H,
             a.K,
             a.C,
             int(k_dims[3]),
             int(k_recent.dimensions()[3]),
             {tile_list(shared_page, shared_row, shared_start, shared_tokens, shared_count),
              tile_list(own_page, own_row, own_start, own_tokens, own_count)},
             *number.typed_data()};
  if (d.recent > d.X || (a.has_keys() && d.recent < 1))
    return ffi::Error::InvalidArgument("there is no place for a recent token");
  return by_type(k, [&](auto one) {
    using T = decltype(one);
    T *k_new = data_of<T>(k_written), *v_new = data_of<T>(v_written);
    in_spans(pool, a.N, worth_threads(work_of(a)), [&](int b, bool) {
      if (d.length_B[b] < 0) return;  // NOBODY
      take_apart<T>(a, b, q_BHC + int64_t(b) * a.H * a.C, b, d.recent - 1, d.X, k_new, v_new);
    });
    decode<T>(pool, d, data<T>(k), data<T>(v), k_new, v_new);
  });
}

// ---- prefill: several new tokens per row, whose keys are in the pages already

struct Prefilling {
  const float* q_BTHC;  // scaled
  const int32_t* table_BW;
  const int32_t* position_BT;
  float* out_BTHC;
  float* lse_BTH;
  int B, T, H, K, C, S, W;
};

template <typename T>
void prefill(ffi::ThreadPool& pool, const Prefilling& p, const T* k_PKCS, const T* v_PKSC) {
  const int G = p.H / p.K, M = p.T * G, pages = std::max(1, kBlock / p.S);
  const int block = pages * p.S, room = padded(block);
  in_parallel(pool, p.B * p.K, true, [&](int unit) {
    const int b = unit / p.K, k = unit % p.K;
    float* here = scratch(size_t(M) * 2 * (p.C + 1) + kQueries * room, 1);
    float *q = here, *out = q + M * p.C, *max = out + M * p.C, *sum = max + M;
    float* scores = sum + M;
    std::vector<int> seen(M);
    std::vector<const T*> k_runs(pages), v_runs(pages);
    int last = 0;
    for (int t = 0; t < p.T; ++t) {
      const float* from = p.q_BTHC + ((int64_t(b) * p.T + t) * p.H + k * G) * p.C;
      std::copy_n(from, G * p.C, q + t * G * p.C);
      last = std::max(last, p.position_BT[b * p.T + t]);
    }
    std::fill_n(max, M, kLow);
    std::fill_n(sum, M, 0.0f);
    std::fill_n(out, M * p.C, 0.0f);
    for (int start = 0; start <= last; start += block) {
      for (int w = 0; w < pages; ++w) {
        const int in_table = start / p.S + w;
        const int page = in_table < p.W ? p.table_BW[b * p.W + in_table] : 0;
        const int64_t at = (int64_t(page) * p.K + k) * p.S * p.C;
        k_runs[w] = k_PKCS + at;
        v_runs[w] = v_PKSC + at;
      }
      for (int m = 0; m < M; ++m) {
        const int position = p.position_BT[b * p.T + m / G];
        seen[m] = std::clamp(position + 1 - start, 0, block);
      }
      look<T>({q, M, seen.data(), max, sum, out}, {k_runs.data(), v_runs.data(), p.S, 0},
              scores, room, p.C);
    }
    for (int m = 0; m < M; ++m) {
      const int64_t at = (int64_t(b) * p.T + m / G) * p.H + k * G + m % G;
      for (int c = 0; c < p.C; ++c) p.out_BTHC[at * p.C + c] = out[m * p.C + c] / sum[m];
      p.lse_BTH[at] = max[m] + std::log(sum[m]);
    }
  });
}

ffi::Error Prefill(ffi::ThreadPool pool, Floats x, Floats cos, Floats sin, Floats norms,
                   ffi::AnyBuffer k, ffi::AnyBuffer v, Ints table, Ints position, Ints slot,
                   ffi::Result<Floats> out, ffi::Result<Floats> lse,
                   ffi::Result<ffi::AnyBuffer> k_written, ffi::Result<ffi::AnyBuffer> v_written,
                   ffi::Attr<int32_t, kHeads> heads, ffi::Attr<float, kEps> eps) {
  if (!in_place(k, v, k_written, v_written)) return not_in_place();
  auto k_dims = k.dimensions(), t_dims = position.dimensions();
  const Heads a = heads_of(x, cos, sin, norms, *heads, int(k_dims[1]), int(k_dims[2]), *eps);
  float* q_BTHC = scratch(size_t(a.N) * a.H * a.C, 2);
  const int P = int(k_dims[0]), S = int(k_dims[3]);
  Prefilling p{q_BTHC,           table.typed_data(), position.typed_data(),
               out->typed_data(), lse->typed_data(), int(t_dims[0]),
               int(t_dims[1]),   a.H,                a.K,
               a.C,              S,                  int(table.dimensions()[1])};
  return by_type(k, [&](auto one) {
    using T = decltype(one);
    T *k_new = data_of<T>(k_written), *v_new = data_of<T>(v_written);
    in_spans(pool, a.N, worth_threads(work_of(a)), [&](int n, bool) {
      const int at = slot.typed_data()[n];
      const int64_t page = at < 0 || at / S >= P ? -1 : at / S;
      take_apart<T>(a, n, q_BTHC + int64_t(n) * a.H * a.C, page, at % S, S, k_new, v_new);
    });
    prefill<T>(pool, p, k_new, v_new);
  });
}

// ---- new tokens into their pages, in place

template <typename T>
void write(ffi::ThreadPool& pool, const T* k_NKC, const T* v_NKC, const int32_t* slot_N, int N,
           int P, int K, int C, int S, T* k_PKCS, T* v_PKSC) {
  in_parallel(pool, K, worth_threads(int64_t(N) * K * C), [&](int k) {
    for (int n = 0; n < N; ++n) {
      const int64_t page = slot_N[n] / S, slot = slot_N[n] % S, from = (int64_t(n) * K + k) * C;
      if (slot_N[n] < 0 || page >= P) continue;
      T* key = k_PKCS + (page * K + k) * C * S + slot;
      for (int c = 0; c < C; ++c) key[int64_t(c) * S] = k_NKC[from + c];
      std::copy_n(v_NKC + from, C, v_PKSC + ((page * K + k) * S + slot) * C);
    }
  });
}

ffi::Error Write(ffi::ThreadPool pool, ffi::AnyBuffer k, ffi::AnyBuffer v, ffi::AnyBuffer k_new,
                 ffi::AnyBuffer v_new, Ints slot, ffi::Result<ffi::AnyBuffer> k_out,
                 ffi::Result<ffi::AnyBuffer> v_out) {
  if (!in_place(k, v, k_out, v_out)) return not_in_place();
  auto dims = k.dimensions();
  return by_type(k, [&](auto one) {
    using T = decltype(one);
    write<T>(pool, data<T>(k_new), data<T>(v_new), slot.typed_data(), int(slot.dimensions()[0]),
             int(dims[0]), int(dims[1]), int(dims[2]), int(dims[3]),
             data_of<T>(k_out), data_of<T>(v_out));
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(SparkWrite, Write);
XLA_FFI_DEFINE_HANDLER_SYMBOL(SparkDecode, Decode);
XLA_FFI_DEFINE_HANDLER_SYMBOL(SparkPrefill, Prefill);
