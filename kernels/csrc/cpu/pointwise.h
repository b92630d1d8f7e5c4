// Passes over whole maps, with sums over their pixels. A map is cut into blocks of pixels of a sample; the sums of each block
// are kept apart and added in order, so the number of threads changes nothing.
//
// Lambdas of one element capture by value: through references the compiler finds no vector code.
#pragma once
#include "fir.h"

namespace imago {
namespace {

constexpr int64_t kRun = 4096;  // elements: contiguous, and few enough for the first-level cache

inline int64_t block_size(const Shape& s) {
  return s.channels_last ? smaller(larger(kRun / larger(s.c, 1), 64), 512) : kRun;
}

struct Block {
  int64_t n, first, count, slot;  // sample, pixels [first, first + count), place of its sums
};

inline int64_t pixels(const Shape& s) { return s.h * s.w; }
inline int64_t blocks_of(const Shape& s) { return blocks(pixels(s), block_size(s)); }

template <class F>
void each_block(const Shape& s, const F& f) {
  const int64_t per_sample = blocks_of(s);
  parallel(s.n * per_sample, smaller(pixels(s), block_size(s)) * s.c, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i % per_sample * block_size(s);
      f(Block{i / per_sample, first, smaller(block_size(s), pixels(s) - first), i});
    }
  });
}

// Runs of a block with one stride: NCHW: a channel's pixels, f(c, offset, count); NHWC: a pixel's channels.
template <class F>
void channel_runs(const Shape& s, const Block& b, const F& f) {
  for (int64_t c = 0; c < s.c; ++c) f(c, (b.n * s.c + c) * pixels(s) + b.first);
}
template <class F>
void pixel_runs(const Shape& s, const Block& b, const F& f) {
  for (int64_t i = 0; i < b.count; ++i) f(b.first + i, (b.n * pixels(s) + b.first + i) * s.c);
}

// Sums of all blocks [N, blocks, C]: over a sample's blocks -> [N, C], or over all -> [C].
template <class A>
void sum_samples(const Shape& s, const A* sums, A* out) {
  for (int64_t n = 0; n < s.n; ++n)
    for (int64_t c = 0; c < s.c; ++c) {
      A sum = 0;
      for (int64_t b = 0; b < blocks_of(s); ++b) sum += sums[(n * blocks_of(s) + b) * s.c + c];
      out[n * s.c + c] = sum;
    }
}
template <class A>
void sum_all(const Shape& s, const A* sums, A* out) {
  for (int64_t c = 0; c < s.c; ++c) out[c] = 0;
  for (int64_t i = 0; i < s.n * blocks_of(s); ++i)
    for (int64_t c = 0; c < s.c; ++c) out[c] += sums[i * s.c + c];
}

// A small tensor, `repeat` times over. It may be missing: `value` then stands for each of its `size` elements.
template <class A>
class Small {
 public:
  Small(const void* data, int64_t size, A value, int64_t repeat = 1)
      : fill_(data && repeat == 1 ? 0 : size * repeat), data_(data && repeat == 1 ? static_cast<const A*>(data) : fill_) {
    for (int64_t i = 0; data_ == fill_ && i < size * repeat; ++i)
      fill_[i] = data ? static_cast<const A*>(data)[i % size] : value;
  }
  const A* operator+(int64_t i) const { return data_ + i; }
  A operator[](int64_t i) const { return data_[i]; }

 private:
  Buffer<A> fill_;
  const A* data_;
};

// Where a loop writes a run of n elements to `to`: there, or aside and then past the caches, if the whole output is large.
template <class T>
class Run {
 public:
  Run(T* to, int64_t n, bool far) : to_(to), bytes_(n * sizeof(T)), aside_(far && n <= kRun) {}
  ~Run() {
    if (aside_) stream(to_, data_, bytes_);
  }
  T* begin() { return aside_ ? data_ : to_; }

 private:
  T* to_;
  int64_t bytes_;
  bool aside_;
  alignas(64) T data_[kRun];
};

template <class F>
void with_activation(Activation act, const F& f) {
  switch (act) {
    case kLinear: f(Constant<kLinear>()); break;
    case kRelu: f(Constant<kRelu>()); break;
    case kLrelu: f(Constant<kLrelu>()); break;
    case kTanh: f(Constant<kTanh>()); break;
    case kSigmoid: f(Constant<kSigmoid>()); break;
    case kElu: f(Constant<kElu>()); break;
    case kSelu: f(Constant<kSelu>()); break;
    case kSoftplus: f(Constant<kSoftplus>()); break;
    case kSwish: f(Constant<kSwish>()); break;
  }
}

// [outer, channels, inner] as a map: inner = 1 is what NHWC looks like. Pixels of few channels are taken `repeat` together.
template <class P>
int64_t repeat(const P& p) {
  return p.inner == 1 && p.channels < 16 && p.outer % 32 == 0 ? 32 : 1;
}
template <class P>
Shape as_map(const P& p) {
  if (p.inner == 1) return {1, p.channels * repeat(p), 1, p.outer / repeat(p), true};
  return {p.outer, p.channels, 1, p.inner, false};
}

int bias_act(const BiasAct& p, void*) {
  return with_type(p.dtype, [&](auto type) {
    using T = decltype(type);
    using A = Accumulator<T>;
    const Shape s = as_map(p);
    const Small<A> b(p.b, p.channels, A(0), repeat(p));
    const bool far = past_caches(s.n * s.c * pixels(s), sizeof(T));
    const A alpha = p.alpha, gain = p.gain, limit = p.clamp;
    with_activation(p.act, [&](auto act) {
      each_block(s, [&](const Block& block) {
        const A* bias_of = b + 0;
        const auto one = [=](T x, A bias) {
          return narrow<T>(clamped(gain * activation<decltype(act)::value>(widen(x) + bias, alpha), limit));
        };
        if (s.channels_last) {
          const int64_t offset = block.first * s.c;
          const T* __restrict x = static_cast<const T*>(p.x) + offset;
          Run<T> run(static_cast<T*>(p.y) + offset, block.count * s.c, far);
          T* __restrict y = run.begin();
          for (int64_t i = 0; i < block.count; ++i)
#pragma omp simd
            for (int64_t c = 0; c < s.c; ++c) y[i * s.c + c] = one(x[i * s.c + c], bias_of[c]);
        } else {
          channel_runs(s, block, [=](int64_t c, int64_t offset) {
            const T* __restrict x = static_cast<const T*>(p.x) + offset;
            Run<T> run(static_cast<T*>(p.y) + offset, block.count, far);
            T* __restrict y = run.begin();
            const A bias = bias_of[c];
#pragma omp simd
            for (int64_t i = 0; i < block.count; ++i) y[i] = one(x[i], bias);
          });
        }
      });
    });
  });
}

template <Activation act, int order, class A>
inline A slope(A g, A ref, A bias, A alpha, A gain, A limit) {
  const bool from_output = act <= kLrelu;
  const A x = from_output ? ref : ref + bias;
  const A y = from_output || limit < 0 ? ref : gain * activation<act>(x, alpha);
  return (limit >= 0) & (std::abs(y) >= limit) ? A(0) : g * gain * derivative<act, order>(x, alpha);
}

int bias_act_grad(const BiasActGrad& p, void*) {
  return with_type(p.dtype, [&](auto type) {
    using T = decltype(type);
    using A = Accumulator<T>;
    const Shape s = as_map(p);
    const Small<A> b(p.b, p.channels, A(0), repeat(p));
    const Buffer<A> sums(s.n * blocks_of(s) * s.c);
    const bool far = past_caches(s.n * s.c * pixels(s), sizeof(T));
    const A alpha = p.alpha, gain = p.gain, limit = p.clamp;
    const auto run = [&](auto act, auto order) {
      each_block(s, [&](const Block& block) {
        const A* bias_of = b + 0;
        A* __restrict sum_of = sums + block.slot * s.c;
        const auto one = [=](T g, T ref, A bias) {
          return slope<decltype(act)::value, decltype(order)::value>(A(widen(g)), A(widen(ref)), bias, alpha, gain, limit);
        };
        if (s.channels_last) {
          const int64_t offset = block.first * s.c;
          const T* __restrict g = static_cast<const T*>(p.g) + offset;
          const T* __restrict ref = static_cast<const T*>(p.ref) + offset;
          Run<T> run(static_cast<T*>(p.dx) + offset, block.count * s.c, far);
          T* __restrict dx = run.begin();
          for (int64_t i = 0; i < block.count; ++i)
#pragma omp simd
            for (int64_t c = 0; c < s.c; ++c) {
              const A d = one(g[i * s.c + c], ref[i * s.c + c], bias_of[c]);
              dx[i * s.c + c] = narrow<T>(d);
              sum_of[c] += d;
            }
        } else {
          channel_runs(s, block, [=](int64_t c, int64_t offset) {
            const T* __restrict g = static_cast<const T*>(p.g) + offset;
            const T* __restrict ref = static_cast<const T*>(p.ref) + offset;
            Run<T> run(static_cast<T*>(p.dx) + offset, block.count, far);
            T* __restrict dx = run.begin();
            const A bias = bias_of[c];
            A sum = 0;
#pragma omp simd reduction(+ : sum)
            for (int64_t i = 0; i < block.count; ++i) {
              const A d = one(g[i], ref[i], bias);
              dx[i] = narrow<T>(d);
              sum += d;
            }
            sum_of[c] = sum;
          });
        }
      });
    };
    with_activation(p.act, [&](auto act) { p.order == 1 ? run(act, Constant<1>()) : run(act, Constant<2>()); });
    if (p.db) {
      const Buffer<A> all(s.c);
      sum_all<A>(s, sums, all);
      for (int64_t c = 0; c < p.channels; ++c) {
        A& db = static_cast<A*>(p.db)[c];
        db = 0;
        for (int64_t i = c; i < s.c; i += p.channels) db += all[i];
      }
    }
  });
}

int modulate(const Modulate& p, void*) {
  return with_type(p.dtype, [&](auto type) {
    using T = decltype(type);
    using A = Accumulator<T>;
    const Shape& s = p.shape;
    each_block(s, [&](const Block& block) {
      const A* scale = static_cast<const A*>(p.scale) + block.n * s.c;
      const auto run = [&](int64_t offset, int64_t count, auto factor) {
        const T* __restrict x = static_cast<const T*>(p.x) + offset;
        T* __restrict y = static_cast<T*>(p.y) + offset;
#pragma omp simd
        for (int64_t i = 0; i < count; ++i) y[i] = narrow<T>(widen(x[i]) * factor(i));
      };
      const auto by_channel = [=](int64_t c, int64_t at) { run(at, block.count, [=](int64_t) { return scale[c]; }); };
      const auto by_pixel = [=](int64_t, int64_t at) { run(at, s.c, [=](int64_t i) { return scale[i]; }); };
      s.channels_last ? pixel_runs(s, block, by_pixel) : channel_runs(s, block, by_channel);
    });
  });
}

int modulate_grad(const ModulateGrad& p, void*) {
  return with_type(p.dtype, [&](auto type) {
    using T = decltype(type);
    using A = Accumulator<T>;
    const Shape& s = p.shape;
    const Buffer<A> sums(s.n * blocks_of(s) * s.c);
    each_block(s, [&](const Block& block) {
      const A* scale = static_cast<const A*>(p.scale) + block.n * s.c;
      A* __restrict sum = sums + block.slot * s.c;
      if (s.channels_last) {
        pixel_runs(s, block, [=](int64_t, int64_t offset) {
          const T* __restrict g = static_cast<const T*>(p.g) + offset;
          const T* __restrict x = static_cast<const T*>(p.x) + offset;
          T* __restrict dx = static_cast<T*>(p.dx) + offset;
#pragma omp simd
          for (int64_t c = 0; c < s.c; ++c) {
            dx[c] = narrow<T>(widen(g[c]) * scale[c]);
            sum[c] += widen(g[c]) * widen(x[c]);
          }
        });
      } else {
        channel_runs(s, block, [=](int64_t c, int64_t offset) {
          const T* __restrict g = static_cast<const T*>(p.g) + offset;
          const T* __restrict x = static_cast<const T*>(p.x) + offset;
          T* __restrict dx = static_cast<T*>(p.dx) + offset;
          const A factor = scale[c];
          A total = 0;
#pragma omp simd reduction(+ : total)
          for (int64_t i = 0; i < block.count; ++i) {
            dx[i] = narrow<T>(widen(g[i]) * factor);
            total += widen(g[i]) * widen(x[i]);
          }
          sum[c] = total;
        });
      }
    });
    if (p.dscale) sum_samples<A>(s, sums, static_cast<A*>(p.dscale));
  });
}

}  // namespace
}  // namespace imago
