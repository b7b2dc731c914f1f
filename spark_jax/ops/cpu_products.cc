// Products of activations with weights for CPUs, called by XLA (ops/cpu_kernels.py builds and
// registers it): y_NF = x_ND w_DF, few rows or many, sums in float32.
//
// A decoding step is bound by reading weights. They come packed in blocks of 16 outputs, in the
// order in which they are read (`pack` in ops/cpu_products.py):
//   float32   w[F/16][D][16]
//   bfloat16  w[F/16][D/2][16][2], D padded with zeros to 32
// so that a block is one stream, and is read once for all rows. While a few blocks are multiplied
// the next ones are fetched, so that memory and multipliers work at the same time. XLA would take
// bfloat16 apart into a copy in float32, and gives a product of few rows to one core.
//
// Rows that nobody wants (padding, rows whose response is over) cost nothing and come out as 0.
//
// What stands before and after a product in a layer is done here too, on rows that lie in the caches:
// a norm or a gate of the activations, and something added to the result. To XLA these are small
// operations of their own, several for each product, which took a fifth of a decoding step.
//
// With bfloat16 weights activations are rounded to bfloat16 too, as tile registers (AMX) and dot
// products (AVX-512) take them; other processors compute the same sums in float32. The attribute
// `best` is what may be used where it is there: 2 tiles, 1 dot products, 0 neither (for tests).

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "cpu_kernels.h"

#if defined(__AMX_BF16__) || defined(__AVX512BF16__)
#include <immintrin.h>
#endif
#if defined(__AMX_BF16__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

constexpr int kPad = 32;      // multiple that D of bfloat16 weights has
constexpr int kManyRows = 16; // that a tile register holds

struct Product {
  const void* x;  // [N, width], as the kernel at hand wants it
  const void* w;
  float* y;             // [rows, F]
  const float* plus;    // [rows, F], or [F] for all rows, or null
  bool plus_by_row;
  const int32_t* to_N;  // row of y that is the result of a row of x
  int N, D, F;
  int width;  // of a row of x
  int blocks() const { return (F + kLanes - 1) / kLanes; }
  bool worth() const { return worth_threads(int64_t(N) * D * F); }
};

inline void put(const Product& p, int row, int block, const float* sums) {
  const int first = block * kLanes, count = std::min(kLanes, p.F - first);
  const int64_t at = int64_t(p.to_N[row]) * p.F + first;
  if (!p.plus) return void(std::memcpy(p.y + at, sums, count * sizeof(float)));
  const float* plus = p.plus + (p.plus_by_row ? at : first);
  for (int i = 0; i < count; ++i) p.y[at + i] = sums[i] + plus[i];
}

// What is fetched from memory while something else is multiplied, some cache lines a step.
struct Ahead {
  const char* from = nullptr;
  int lines = 0;  // a step
  void fetch(int step) const {
    for (int i = 0; i < lines; ++i)
      __builtin_prefetch(from + (int64_t(step) * lines + i) * 64, 0, 2);
  }
};

// f(first block, blocks, whether more follow) for all blocks, `wide` at a time. A thread goes from
// one to the next in memory, so that it can fetch what comes next.
template <typename F>
void by_blocks(ffi::ThreadPool& pool, const Product& p, int wide, const F& f) {
  const int units = (p.blocks() + wide - 1) / wide;
  in_spans(pool, units, p.worth(), [&](int unit, bool more) {
    f(unit * wide, std::min(wide, p.blocks() - unit * wide), more);
  });
}

// ---- vector registers: V blocks of outputs for R rows at a time

inline Lanes next_sum(Lanes sum, const float* w, const float* x) { return sum + *x * load(w); }

inline Lanes next_sum(Lanes sum, const BFloat16* w, const float* x) {
  Whole pairs;
  std::memcpy(&pairs, w, sizeof pairs);
  sum += x[0] * same_bits<Lanes>(pairs << 16);
  return sum + x[1] * same_bits<Lanes>(pairs & int32_t(0xffff0000));
}

#if defined(__AVX512BF16__)
inline Lanes next_sum(Lanes sum, const BFloat16* w, const BFloat16* x) {
  int32_t pair;
  std::memcpy(&pair, x, sizeof pair);
  const __m512i all = _mm512_set1_epi32(pair), weights = _mm512_loadu_si512(w);
  return same_bits<Lanes>(
      _mm512_dpbf16_ps(same_bits<__m512>(sum), (__m512bh)all, (__m512bh)weights));
}
#endif

template <int V, int R, typename X, typename W>
void in_registers(const Product& p, int row, int block, const Ahead& ahead) {
  constexpr int kDeep = sizeof(W) == 2 ? 2 : 1;  // entries of x that one step takes
  const int64_t of_block = int64_t(p.width) * kLanes;
  const X* x = static_cast<const X*>(p.x) + int64_t(row) * p.width;
  const W* w = static_cast<const W*>(p.w) + block * of_block;
  Lanes sum[R][V] = {};
  for (int d = 0; d < p.width; d += kDeep) {
    ahead.fetch(d / kDeep);
    for (int v = 0; v < V; ++v)
      for (int r = 0; r < R; ++r)
        sum[r][v] = next_sum(sum[r][v], w + v * of_block + d * kLanes, x + r * p.width + d);
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v)
      put(p, row + r, block + v, reinterpret_cast<const float*>(&sum[r][v]));
}

#if defined(__AVX512F__)
constexpr int kBlocks = 3, kRows = 8;  // 24 sums in 32 registers
#else
constexpr int kBlocks = 1, kRows = 4;
#endif

// `rows` rows, R or fewer, of V blocks.
template <int V, int R, typename X, typename W>
void some_rows(const Product& p, int row, int rows, int block, const Ahead& ahead) {
  if (rows == R) return in_registers<V, R, X, W>(p, row, block, ahead);
  if constexpr (R > 1) some_rows<V, R - 1, X, W>(p, row, rows, block, ahead);
}

// All rows of V blocks.
template <int V, typename X, typename W>
void all_rows(const Product& p, int block, bool more) {
  const int64_t bytes = int64_t(p.width) * kLanes * sizeof(W);
  const char* next = static_cast<const char*>(p.w) + (block + V) * bytes;
  in_equal_passes(p.N, kRows, [&](int row, int rows, int pass, int passes) {
    const int lines = (V + passes - 1) / passes;  // V lines of weights are a step of V blocks
    Ahead ahead;
    if (more && pass * lines < V)
      ahead = {next + pass * lines * bytes, std::min(lines, V - pass * lines)};
    some_rows<V, kRows, X, W>(p, row, rows, block, ahead);
  });
}

template <typename X, typename W>
void vector_product(ffi::ThreadPool& pool, const Product& p) {
  by_blocks(pool, p, kBlocks, [&](int first, int count, bool more) {
    if (count == kBlocks) return all_rows<kBlocks, X, W>(p, first, more);
    for (int block = first; block < first + count; ++block) all_rows<1, X, W>(p, block, false);
  });
}

// ---- tile registers: 16 rows of 32 entries times 32 entries of 16 outputs

#if defined(__AMX_BF16__)

bool has_tiles() {
  // The kernel gives a process the large registers only when it asks.
  static const bool has = syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18) == 0;
  return has;
}

// For the time that a thread works with the registers.
struct Tiles {
  Tiles() {
    struct {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t bytes_of_row[16] = {};
      uint8_t rows[16] = {};
    } shape;
    std::fill_n(shape.bytes_of_row, 8, 64);
    std::fill_n(shape.rows, 8, 16);
    _tile_loadconfig(&shape);
  }
  ~Tiles() { _tile_release(); }
};

// `A` tiles of rows (1 or 2) times `B` blocks (1, 2; 4 with one tile of rows).
template <int A, int B>
void in_tiles(const Product& p, int row, int block, const Ahead& ahead) {
  const int64_t of_block = int64_t(p.width) * kLanes;
  const BFloat16* x = static_cast<const BFloat16*>(p.x) + int64_t(row) * p.width;
  const BFloat16* w = static_cast<const BFloat16*>(p.w) + block * of_block;
  const int stride = p.width * 2;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int d = 0; d < p.width; d += kPad) {
    const BFloat16* here = w + d * kLanes;
    ahead.fetch(d / kPad);
    _tile_loadd(4, x + d, stride);
    if (A == 2) _tile_loadd(5, x + kManyRows * p.width + d, stride);
    _tile_loadd(6, here, 64);
    _tile_dpbf16ps(0, 4, 6);
    if (A == 2) _tile_dpbf16ps(1, 5, 6);
    if (B >= 2) {
      _tile_loadd(7, here + of_block, 64);
      _tile_dpbf16ps(2, 4, 7);
      if (A == 2) _tile_dpbf16ps(3, 5, 7);
    }
    if (B == 4) {
      _tile_loadd(6, here + 2 * of_block, 64);
      _tile_dpbf16ps(1, 4, 6);
      _tile_loadd(7, here + 3 * of_block, 64);
      _tile_dpbf16ps(3, 4, 7);
    }
  }
  float sums[4][kManyRows][kLanes];
  _tile_stored(0, sums[0], 64);
  _tile_stored(1, sums[1], 64);
  _tile_stored(2, sums[2], 64);
  _tile_stored(3, sums[3], 64);
  for (int a = 0; a < A; ++a)
    for (int b = 0; b < B; ++b) {
      const int at = A == 2 ? a + 2 * b : b % 2 * 2 + b / 2;  // as above
      const int first = row + a * kManyRows;
      for (int r = 0; r < std::min(kManyRows, p.N - first); ++r)
        put(p, first + r, block + b, sums[at][r]);
    }
}

void tile_product(ffi::ThreadPool& pool, const Product& p) {
  const int wide = p.N <= kManyRows ? 4 : 2;
  const int64_t bytes = int64_t(p.width) * kLanes * sizeof(BFloat16);
  by_blocks(pool, p, wide, [&](int first, int count, bool more) {
    Tiles tiles;
    Ahead ahead;  // a step reads a tile of each block, sixteen lines
    if (more) ahead = {static_cast<const char*>(p.w) + (first + wide) * bytes, 16 * wide};
    if (count == 4) return in_tiles<1, 4>(p, 0, first, ahead);
    int row = 0;
    for (; row + kManyRows < p.N; row += 2 * kManyRows, ahead = {}) {
      if (count == 2)
        in_tiles<2, 2>(p, row, first, ahead);
      else
        in_tiles<2, 1>(p, row, first, ahead);
    }
    if (row >= p.N) return;
    if (count == 2) return in_tiles<1, 2>(p, row, first, ahead);
    for (int block = first; block < first + count; ++block) in_tiles<1, 1>(p, row, block, {});
  });
}

#endif

// ---- activations

// What a product multiplies, made of rows of x.
struct Activations {
  const float* x;      // [rows, D]; gated [rows, 2 D]
  const float* scale;  // [D], of an RMS norm; or null
  float eps;
  bool gated;  // silu(first half) * second half
  bool plain() const { return !scale && !gated; }
};

inline float gate(float x, float up) { return up * x / (1.0f + std::exp(-x)); }
inline Lanes gate(Lanes x, Lanes up) {
  const Lanes e = exp_negative(x > 0 ? -x : x), one = Lanes{} + 1.0f;
  return up * x * (x > 0 ? one : e) / (one + e);
}

// The activations of row n.
void activate(const Activations& a, int n, int D, float* to) {
  const float* from = a.x + int64_t(n) * D * (a.gated ? 2 : 1);
  if (a.gated) {
    int d = 0;
    for (; d + kLanes <= D; d += kLanes) {
      const Lanes y = gate(load(from + d), load(from + D + d));
      std::memcpy(to + d, &y, sizeof y);
    }
    for (; d < D; ++d) to[d] = gate(from[d], from[D + d]);
  } else if (a.scale) {
    const float inverse = inverse_rms(from, D, a.eps);
    for (int d = 0; d < D; ++d) to[d] = from[d] * inverse * a.scale[d];
  } else {
    std::copy_n(from, D, to);
  }
}

// What products beside bfloat16 weights take: rounded, in either type.
inline void round_to(float x, BFloat16* to) { *to = rounded(x); }
inline void round_to(float x, float* to) { *to = wide(rounded(x)); }

// The activations of the rows that are wanted, side by side, [rows, width]; with zeros behind each
// row and below. `Rounded`: to bfloat16.
template <bool Rounded, typename X>
X* wanted_rows(ffi::ThreadPool& pool, const Product& p, const Activations& a, int rows) {
  X* out = reinterpret_cast<X*>(scratch(size_t(rows) * p.width * sizeof(X) / sizeof(float), 0));
  const bool worth = worth_threads(int64_t(p.N) * p.D * (a.gated ? 8 : 1));
  in_spans(pool, p.N, worth, [&](int n, bool) {
    X* to = out + int64_t(n) * p.width;
    if constexpr (Rounded) {
      float* row = scratch(p.D, 1);
      activate(a, p.to_N[n], p.D, row);
      for (int d = 0; d < p.D; ++d) round_to(row[d], to + d);
    } else {
      activate(a, p.to_N[n], p.D, to);
    }
    std::memset(static_cast<void*>(to + p.D), 0, (p.width - p.D) * sizeof(X));
  });
  std::memset(static_cast<void*>(out + int64_t(p.N) * p.width), 0,
              size_t(rows - p.N) * p.width * sizeof(X));
  return out;
}

constexpr char kBest[] = "best", kGated[] = "gated", kEps[] = "eps";

ffi::Error Multiply(ffi::ThreadPool pool, Floats x, ffi::AnyBuffer w, Ints wanted, Floats scale,
                    Floats plus, ffi::Result<Floats> y, ffi::Attr<int32_t, kBest> best,
                    ffi::Attr<bool, kGated> gated, ffi::Attr<float, kEps> eps) {
  const int rows = int(x.dimensions()[0]);
  const Activations a{x.typed_data(), scale.element_count() ? scale.typed_data() : nullptr, *eps,
                      *gated};
  Product p{};
  p.D = int(x.dimensions()[1]) / (*gated ? 2 : 1);
  p.F = int(y->dimensions()[1]);
  p.w = w.untyped_data();
  p.y = y->typed_data();
  p.plus = plus.element_count() ? plus.typed_data() : nullptr;
  p.plus_by_row = plus.dimensions().size() == 2;
  std::vector<int32_t> to;
  for (int n = 0; n < rows; ++n) {
    if (wanted.typed_data()[n])
      to.push_back(n);
    else
      std::fill_n(p.y + int64_t(n) * p.F, p.F, 0.0f);
  }
  p.N = int(to.size());
  p.to_N = to.data();
  if (!p.N) return ffi::Error::Success();
  if (w.element_type() == ffi::F32) {
    p.width = p.D;
    p.x = a.plain() && p.N == rows ? a.x : wanted_rows<false, float>(pool, p, a, p.N);
    vector_product<float, float>(pool, p);
    return ffi::Error::Success();
  }
  if (w.element_type() != ffi::BF16)
    return ffi::Error::InvalidArgument("weights have to be float32 or bfloat16");
  p.width = (p.D + kPad - 1) / kPad * kPad;
#if defined(__AMX_BF16__)
  if (*best >= 2 && has_tiles()) {
    const int padded = (p.N + 2 * kManyRows - 1) / (2 * kManyRows) * 2 * kManyRows;
    p.x = wanted_rows<true, BFloat16>(pool, p, a, padded);
    tile_product(pool, p);
    return ffi::Error::Success();
  }
#endif
#if defined(__AVX512BF16__)
  if (*best >= 1) {
    p.x = wanted_rows<true, BFloat16>(pool, p, a, p.N);
    vector_product<BFloat16, BFloat16>(pool, p);
    return ffi::Error::Success();
  }
#endif
  p.x = wanted_rows<true, float>(pool, p, a, p.N);
  vector_product<float, BFloat16>(pool, p);
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(SparkMultiply, Multiply);
