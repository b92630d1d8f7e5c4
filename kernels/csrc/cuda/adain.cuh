// u = gain * lrelu(x + noise + b, alpha), which both directions of adain start from.
#pragma once
#include "walk.cuh"

namespace imago {

template <class A>
struct LayerEnd {
  const A *noise, *b;
  int64_t samples, channels, pixels;
  bool one_noise;
  A alpha, gain;

  template <class Call>
  explicit LayerEnd(const Call& call)
      : noise(static_cast<const A*>(call.noise)), b(static_cast<const A*>(call.b)), samples(call.shape.n),
        channels(call.shape.c), pixels(call.shape.h * call.shape.w), one_noise(call.one_noise),
        alpha(A(call.alpha)), gain(A(call.gain)) {}

  __device__ A bias(int64_t c) const { return b ? b[c] : A(0); }
  __device__ A pixel(int64_t n, int64_t p) const { return noise ? noise[(one_noise ? 0 : n * pixels) + p] : A(0); }
  __device__ A u(A before) const { return gain * activation<kLrelu>(before, alpha); }
};

}  // namespace imago
