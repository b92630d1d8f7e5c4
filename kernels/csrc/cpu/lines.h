// Element types, scratch memory, threads and the two loops that the CPU kernels are made of.
//
// Compiled once per instruction set, often into one library, so all here has internal linkage or is inlined: a template of
// the standard library instantiated with AVX-512 could otherwise be linked into the variant for older machines.
#pragma once
#include <torch/csrc/stable/c/shim.h>

#include <cstdlib>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "../maths.h"

namespace imago {
namespace {

struct BFloat16 {
  uint16_t bits;
};

inline double widen(double x) { return x; }
inline float widen(float x) { return x; }
inline float widen(_Float16 x) { return x; }
inline float widen(BFloat16 x) { return __builtin_bit_cast(float, uint32_t(x.bits) << 16); }

template <class T, class A>
inline T narrow(A x) {
  return static_cast<T>(x);
}
template <>
inline BFloat16 narrow<BFloat16>(float x) {  // to nearest even; NaN stays NaN
  const uint32_t bits = __builtin_bit_cast(uint32_t, x);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return {uint16_t(x != x ? 0x7fc0 : rounded)};
}

template <class T>
struct AccumulatorOf {
  using type = float;
};
template <>
struct AccumulatorOf<double> {
  using type = double;
};
template <class T>
using Accumulator = typename AccumulatorOf<T>::type;

template <auto v>
struct Constant {
  static constexpr auto value = v;
};

// f(T()) for the element type that `dtype` names.
template <class F>
int with_type(Dtype dtype, const F& f) {
  switch (dtype) {
    case kFloat32: f(float()); break;
    case kFloat64: f(double()); break;
    case kBFloat16: f(BFloat16()); break;
    case kFloat16: f(_Float16()); break;
  }
  return 0;
}

template <class A>
class Buffer {
 public:
  explicit Buffer(int64_t size) : data_(static_cast<A*>(std::calloc(size + 1, sizeof(A)))) {
    if (!data_) std::abort();
  }
  ~Buffer() { std::free(data_); }
  Buffer(const Buffer&) = delete;
  operator A*() const { return data_; }

 private:
  A* data_;
};

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t blocks(int64_t size, int64_t block) { return (size + block - 1) / block; }

// f(begin, end) over parts of [0, count) on torch's threads; `cost`: elements an item touches.
template <class F>
void parallel(int64_t count, int64_t cost, const F& f) {
  constexpr int64_t kWorthAThread = 16384;
  const auto call = [](int64_t begin, int64_t end, void* context) {
    (*static_cast<const F*>(context))(begin, end);
#if defined(__x86_64__)
    _mm_sfence();  // ends what stream() began
#endif
  };
  torch_parallel_for(0, count, larger(kWorthAThread / larger(cost, 1), 1), call, const_cast<F*>(&f));
}

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

// Outputs of this size leave the caches before anyone reads them, so they need not go through: a third less traffic.
inline bool past_caches(int64_t elements, int64_t bytes_each) { return elements * bytes_each >= 32 << 20; }

#if defined(__AVX512F__)
inline void stream_vector(void* to, const void* from) {
  _mm512_stream_si512(static_cast<__m512i*>(to), _mm512_loadu_si512(from));
}
#elif defined(__AVX__)
inline void stream_vector(void* to, const void* from) {
  _mm256_stream_si256(static_cast<__m256i*>(to), _mm256_loadu_si256(static_cast<const __m256i*>(from)));
}
#elif defined(__x86_64__)
inline void stream_vector(void* to, const void* from) {
  _mm_stream_si128(static_cast<__m128i*>(to), _mm_loadu_si128(static_cast<const __m128i*>(from)));
}
#else
inline void stream_vector(void* to, const void* from) { __builtin_memcpy(to, from, kVectorBytes); }
#endif

// A copy that goes past the caches.
inline void stream(void* to, const void* from, int64_t bytes) {
  char* target = static_cast<char*>(to);
  const char* source = static_cast<const char*>(from);
  int64_t i = smaller(bytes, -reinterpret_cast<intptr_t>(to) & (kVectorBytes - 1));
  __builtin_memcpy(target, source, i);
  for (; i + kVectorBytes <= bytes; i += kVectorBytes) stream_vector(target + i, source + i);
  __builtin_memcpy(target + i, source + i, bytes - i);
}

template <class A>
struct VectorOf {
  typedef A type __attribute__((vector_size(kVectorBytes)));
  static constexpr int lanes = kVectorBytes / sizeof(A);
};

template <class A, class S>
inline typename VectorOf<A>::type load(const S* from) {
  constexpr int lanes = VectorOf<A>::lanes;
  typename VectorOf<A>::type v;
  if constexpr (sizeof(S) == sizeof(A)) {
    __builtin_memcpy(&v, from, sizeof v);
  } else {
    A wide[lanes];
    for (int i = 0; i < lanes; ++i) wide[i] = widen(from[i]);
    __builtin_memcpy(&v, wide, sizeof v);
  }
  return v;
}

template <class A, class V>
inline void store(A* to, const V& v) {
  __builtin_memcpy(to, &v, sizeof v);
}

// out[i] = sum_r weight[r] * line[r][i], for `number` (1 or 4) vectors from `at` on; that added to what is there, if `add`.
template <int number, class S, class A>
inline void weighted_vectors(A* out, const S* const* line, const A* weight, int count, int64_t at, bool add) {
  constexpr int lanes = VectorOf<A>::lanes;
  typename VectorOf<A>::type a{}, b{}, c{}, d{};  // an array would live in memory
  if (add) {
    a = load<A>(out + at);
    if constexpr (number == 4)
      b = load<A>(out + at + lanes), c = load<A>(out + at + 2 * lanes), d = load<A>(out + at + 3 * lanes);
  }
  for (int r = 0; r < count; ++r) {
    const S* from = line[r] + at;
    const A w = weight[r];
    a += w * load<A>(from);
    if constexpr (number == 4)
      b += w * load<A>(from + lanes), c += w * load<A>(from + 2 * lanes), d += w * load<A>(from + 3 * lanes);
  }
  store(out + at, a);
  if constexpr (number == 4) store(out + at + lanes, b), store(out + at + 2 * lanes, c), store(out + at + 3 * lanes, d);
}

// The same for i in [0, n). With `slack` it may read and write up to a vector more.
template <class S, class A>
inline void weighted_sum(A* out, const S* const* line, const A* weight, int count, int64_t n, bool add, bool slack) {
  constexpr int lanes = VectorOf<A>::lanes;
  int64_t i = 0;
  for (; i + 4 * lanes <= n; i += 4 * lanes) weighted_vectors<4>(out, line, weight, count, i, add);
  for (; i + lanes <= n || (slack && i < n); i += lanes) weighted_vectors<1>(out, line, weight, count, i, add);
  for (; i < n; ++i) {
    A sum = add ? out[i] : A(0);
    for (int r = 0; r < count; ++r) sum += weight[r] * widen(line[r][i]);
    out[i] = sum;
  }
}

// For `pixels` of n channels: out[c] = sum_r weight[r] * line[r][c], all lines `jump` on from pixel to pixel. n in vectors.
template <int count, class A>
void weighted_pixels(A* out, int64_t out_jump, const A* const* line, const A* weight, int64_t jump, int64_t pixels,
                     int64_t n) {
  constexpr int lanes = VectorOf<A>::lanes, second = count > 1, third = count > 2 ? 2 : 0, fourth = count > 3 ? 3 : 0;
  const A *p = line[0], *q = line[second], *r = line[third], *s = line[fourth];
  const A wp = weight[0], wq = weight[second], wr = weight[third], ws = weight[fourth];
  for (int64_t x = 0; x < pixels; ++x, out += out_jump, p += jump, q += jump, r += jump, s += jump)
    for (int64_t c = 0; c < n; c += lanes) {
      auto sum = wp * load<A>(p + c);
      if constexpr (count > 1) sum += wq * load<A>(q + c);
      if constexpr (count > 2) sum += wr * load<A>(r + c);
      if constexpr (count > 3) sum += ws * load<A>(s + c);
      store(out + c, sum);
    }
}

inline int32_t lane_number(float) { return 0; }
inline int64_t lane_number(double) { return 0; }

// to[2 i] = a[i], to[2 i + 1] = b[i], for as many of n pairs as fill vectors; returns how many.
template <class T, class A>
int64_t interleave(T* to, const A* a, const A* b, int64_t n) {
  int64_t i = 0;
#if !defined(__clang__)
  if constexpr (sizeof(T) == sizeof(A)) {
    constexpr int lanes = VectorOf<A>::lanes;
    typename VectorOf<decltype(lane_number(A()))>::type low, high;
    for (int k = 0; k < lanes; ++k) low[k] = k / 2 + k % 2 * lanes, high[k] = low[k] + lanes / 2;
    for (; i + lanes <= n; i += lanes) {
      const auto x = load<A>(a + i), y = load<A>(b + i);
      store(to + 2 * i, __builtin_shuffle(x, y, low));
      store(to + 2 * i + lanes, __builtin_shuffle(x, y, high));
    }
  }
#endif
  return i;
}

}  // namespace
}  // namespace imago
