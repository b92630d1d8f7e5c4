// What follows a convolution: y = clamp(gain * lrelu(v * scale[n, c] + noise[n or 0, y, x] + b[c])).
#pragma once
#include "device.cuh"

namespace imago {

template <class A>
struct Finish {
  static constexpr int kInputs = 1, kSums = 0;
  const A *scale, *noise, *b;
  int64_t channels, pixels;
  bool one_noise;
  A alpha, gain, clamp;

  struct Channel {
    A scale, b;
  };
  __device__ Channel channel(int64_t n, int64_t c) const {
    return {scale ? scale[n * channels + c] : A(1), b ? b[c] : A(0)};
  }
  __device__ A pixel(int64_t n, int64_t p) const { return noise ? noise[(one_noise ? 0 : n * pixels) + p] : A(0); }
  __device__ A element(const A (&in)[1], Channel channel, A noise, A (&)[2]) const {
    return clamped(gain * activation<kLrelu>(in[0] * channel.scale + noise + channel.b, alpha), clamp);
  }
};

// Nothing follows.
template <class A>
struct Plain {
  struct Channel {};
  __device__ Channel channel(int64_t, int64_t) const { return {}; }
  __device__ A pixel(int64_t, int64_t) const { return 0; }
  __device__ A element(const A (&in)[1], Channel, A, A (&)[2]) const { return in[0]; }
};

}  // namespace imago
