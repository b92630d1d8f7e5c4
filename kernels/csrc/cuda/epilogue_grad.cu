// Gradients of what follows a convolution, from its output alone: leaky ReLU can be undone.
#include "backend.cuh"
#include "walk.cuh"

namespace imago {
namespace {

template <class A>
struct Backward {  // in: g, y; sums: du and du * v
  static constexpr int kInputs = 2, kSums = 2;
  const A *scale, *noise, *b;
  int64_t channels, pixels;
  bool one_noise;
  A clamp, slope[2], inverse[2];  // below 0 and above: d act / du, and 1 over it

  struct Channel {
    A scale, b;
  };
  __device__ Channel channel(int64_t n, int64_t c) const {
    return {scale ? scale[n * channels + c] : A(1), b ? b[c] : A(0)};
  }
  __device__ A pixel(int64_t n, int64_t p) const { return noise ? noise[(one_noise ? 0 : n * pixels) + p] : A(0); }
  __device__ A element(const A (&in)[2], Channel channel, A noise, A (&sum)[2]) const {
    const A g = in[0], y = in[1];
    const bool clipped = clamp >= 0 && !(std::abs(y) < clamp);
    const A du = clipped ? A(0) : g * (y > 0 ? slope[1] : slope[0]);
    const A u = y * (y > 0 ? inverse[1] : inverse[0]);
    sum[0] = du;
    sum[1] = du * (u - noise - channel.b);
    return du * channel.scale;
  }
  __device__ A total(int k, A sum, int64_t n, int64_t c) const {
    return k == 1 && scale ? sum / scale[n * channels + c] : sum;
  }
};

template <class A>
struct ModulateBackward {  // in: g, x; sums: g * x
  static constexpr int kInputs = 2, kSums = 1;
  const A* scale;
  int64_t channels;

  using Channel = A;
  __device__ A channel(int64_t n, int64_t c) const { return scale[n * channels + c]; }
  __device__ A pixel(int64_t, int64_t) const { return 0; }
  __device__ A element(const A (&in)[2], A scale, A, A (&sum)[2]) const {
    sum[0] = in[0] * in[1];
    return in[0] * scale;
  }
  __device__ A total(int, A sum, int64_t, int64_t) const { return sum; }
};

}  // namespace

int cuda::epilogue_grad(const EpilogueGrad& call, void* stream) {
  return with_type(call.dtype, [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulator<T>;
    const A above = A(call.gain), below = A(call.gain * call.alpha);
    const Backward<A> op{static_cast<const A*>(call.scale), static_cast<const A*>(call.noise),
                         static_cast<const A*>(call.b), call.shape.c, call.shape.h * call.shape.w, call.one_noise,
                         A(call.clamp), {below, above}, {1 / below, 1 / above}};
    const Maps<T, 2> maps{{static_cast<const T*>(call.g), static_cast<const T*>(call.y)}, static_cast<T*>(call.dv)};
    const Scratch<A> scratch{plan_walk<T>(call.shape), static_cast<A*>(call.scratch)};
    const auto partials = scratch.partials(2, call.db || call.dscale, call.dnoise);
    const int error = pass<T>(maps, op, scratch.walk, partials, stream);
    return error ? error : add_up(scratch.by_channel(0, call.db), scratch.by_sample_and_channel(1, call.dscale),
                                  scratch.by_pixel(2, call.dnoise), stream);
  });
}

int cuda::modulate_grad(const ModulateGrad& call, void* stream) {
  return with_type(call.dtype, [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulator<T>;
    const ModulateBackward<A> op{static_cast<const A*>(call.scale), call.shape.c};
    const Maps<T, 2> maps{{static_cast<const T*>(call.g), static_cast<const T*>(call.x)}, static_cast<T*>(call.dx)};
    const Scratch<A> scratch{plan_walk<T>(call.shape), static_cast<A*>(call.scratch)};
    const int error = pass<T>(maps, op, scratch.walk, scratch.partials(1, call.dscale, nullptr), stream);
    return error ? error : add_up(scratch.by_sample_and_channel(0, call.dscale), {}, {}, stream);
  });
}

int64_t cuda::scratch_epilogue_grad(const EpilogueGrad& call) { return scratch_bytes(call.dtype, call.shape, 2, true); }
int64_t cuda::scratch_modulate_grad(const ModulateGrad& call) {
  return scratch_bytes(call.dtype, call.shape, 1, false);
}

}  // namespace imago
