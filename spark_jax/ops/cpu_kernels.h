// What the C++ kernels share: numbers that fill registers, memory of a thread, work for threads.

#ifndef SPARK_JAX_CPU_KERNELS_H_
#define SPARK_JAX_CPU_KERNELS_H_

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

// With it handlers are bound by their signatures alone (Ffi::BindTo).
template <>
struct xla::ffi::CtxBinding<ffi::ThreadPool> {
  using Ctx = ffi::ThreadPool;
};

namespace {

using Ints = ffi::Buffer<ffi::S32>;
using Floats = ffi::Buffer<ffi::F32>;

struct BFloat16 {
  uint16_t bits;
};

inline float wide(float x) { return x; }
inline float wide(BFloat16 x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  float y;
  std::memcpy(&y, &bits, sizeof y);
  return y;
}

inline BFloat16 rounded(float x) {  // to nearest, ties to even
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return {uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}
inline void put(float x, float* to) { *to = x; }
inline void put(float x, BFloat16* to) { *to = rounded(x); }

// What an RMS norm multiplies x by.
inline float inverse_rms(const float* x, int size, float eps) {
  float squares = 0;
  for (int i = 0; i < size; ++i) squares += x[i] * x[i];
  return 1.0f / std::sqrt(squares / size + eps);
}

// Sixteen numbers that the compiler keeps in registers, whatever their width here.
constexpr int kLanes = 16;
typedef float Lanes __attribute__((vector_size(4 * kLanes)));
typedef int32_t Whole __attribute__((vector_size(4 * kLanes)));

template <typename To, typename From>
inline To same_bits(const From& x) {
  static_assert(sizeof(To) == sizeof(From), "");
  To y;
  std::memcpy(&y, &x, sizeof y);
  return y;
}

inline Lanes load(const float* x) {
  Lanes y;
  std::memcpy(&y, x, sizeof y);
  return y;
}

inline Lanes load(const BFloat16* x) {
  typedef uint16_t Half __attribute__((vector_size(2 * kLanes)));
  Half half;
  std::memcpy(&half, x, sizeof half);
  return same_bits<Lanes>(__builtin_convertvector(half, Whole) << 16);
}

constexpr float kLow = -1e30f;  // below any score, and finite

inline int32_t whole_part(float x) { return int32_t(x); }
inline Whole whole_part(Lanes x) { return __builtin_convertvector(x, Whole); }
inline float number(int32_t x) { return float(x); }
inline Lanes number(Whole x) { return __builtin_convertvector(x, Lanes); }

// e^x for x <= 0, to about 2e-7 of its value, of a number or of Lanes. 2^t is the whole part of t
// as an exponent times a polynomial of the rest, which is in (0, 1].
template <typename F>
inline F exp_negative(F x) {
  const F zero = {};
  const F t = (x > -87.0f ? x : zero - 87.0f) * 1.44269504f;
  const auto whole = whole_part(t) - 1;
  const F f = t - number(whole);
  F p = zero + 1.8775767e-3f;
  p = p * f + 8.9893397e-3f;
  p = p * f + 5.5826318e-2f;
  p = p * f + 2.4015361e-1f;
  p = p * f + 6.9315308e-1f;
  p = p * f + 9.9999994e-1f;
  return x > -87.0f ? p * same_bits<F>((whole + 127) << 23) : zero;
}

// Memory that a thread keeps from call to call, at the beginning of a cache line.
inline float* scratch(size_t count, int which) {
  constexpr size_t kLine = 64;
  thread_local std::vector<float> held[3];
  const size_t room = count + kLine / sizeof(float);
  if (held[which].size() < room) held[which].resize(room);
  const auto at = reinterpret_cast<uintptr_t>(held[which].data());
  return reinterpret_cast<float*>((at + kLine - 1) / kLine * kLine);
}

// f(first, some, pass, passes) for `count` things, at most `most` at a time and about as many each
// time: few would not keep the multipliers busy.
template <typename F>
inline void in_equal_passes(int count, int most, const F& f) {
  const int passes = (count + most - 1) / most;
  for (int pass = 0, first = 0; pass < passes; ++pass) {
    const int some = (count - first + passes - pass - 1) / (passes - pass);
    f(first, some, pass, passes);
    first += some;
  }
}

// So many multiplications are done before another thread wakes up.
inline bool worth_threads(int64_t multiplications) { return multiplications >= 1 << 15; }

// f(0) … f(count - 1), on this thread and on those of XLA. A thread that comes when all work is
// taken touches nothing but `shared`.
template <typename F>
void in_parallel(ffi::ThreadPool& pool, int count, bool worth, const F& f) {
  struct Shared {
    std::atomic<int> next{0}, done{0};
  };
  auto shared = std::make_shared<Shared>();
  auto work = [shared, count, &f] {
    int i;
    while ((i = shared->next.fetch_add(1)) < count) {
      f(i);
      shared->done.fetch_add(1, std::memory_order_release);
    }
  };
  const int helpers = worth ? std::min<int>(pool.num_threads(), count) - 1 : 0;
  for (int i = 0; i < helpers; ++i) {
    auto help = work;
    pool.Schedule(std::move(help));
  }
  work();
  while (shared->done.load(std::memory_order_acquire) < count) std::this_thread::yield();
}

// f(n, whether this thread goes on with n + 1) for n < count, in a few spans of neighbours.
template <typename F>
void in_spans(ffi::ThreadPool& pool, int count, bool worth, const F& f) {
  const int spans = std::min<int>(count, 2 * std::max<int>(1, int(pool.num_threads())));
  in_parallel(pool, spans, worth, [&](int span) {
    const int end = int(int64_t(count) * (span + 1) / spans);
    for (int n = int(int64_t(count) * span / spans); n < end; ++n) f(n, n + 1 < end);
  });
}

}  // namespace

#endif
