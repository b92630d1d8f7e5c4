// Passes over whole maps, with sums over their pixels. A map is cut into blocks of pixels of a sample; the sums of each block
// are kept apart and added in order, so the number of threads changes nothing.
//
// Lambdas of one element capture by value: through references the compiler finds no vector code.
#pragma once
#include "lines.h"

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

}  // namespace
}  // namespace imago
