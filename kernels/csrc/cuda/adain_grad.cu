#include "adain.cuh"
#include "backend.cuh"

namespace imago {
namespace {

template <class A>
struct StyleSums {  // in: g, x; sums: g and g * k, which are the gradients of shift and scale
  static constexpr int kInputs = 2, kSums = 2;
  LayerEnd<A> end;
  const A *mean, *rstd;

  struct Channel {
    A b, mean;
  };
  __device__ Channel channel(int64_t n, int64_t c) const { return {end.bias(c), mean[n * end.channels + c]}; }
  __device__ A pixel(int64_t n, int64_t p) const { return end.pixel(n, p); }
  __device__ A element(const A (&in)[2], Channel channel, A noise, A (&sum)[2]) const {
    sum[0] = in[0];
    sum[1] = in[0] * (end.u(in[1] + noise + channel.b) - channel.mean);
    return in[0];
  }
  __device__ A total(int k, A sum, int64_t n, int64_t c) const {
    return k == 1 ? sum * rstd[n * end.channels + c] : sum;
  }
};

template <class A>
struct Backward {  // in: g, x; sum: dx
  static constexpr int kInputs = 2, kSums = 1;
  LayerEnd<A> end;
  const A *scale, *mean, *rstd, *dscale, *dshift;

  struct Channel {
    A b, mean, of_g, of_u, rest;  // du = g * of_g + (u - mean) * of_u + rest
  };
  __device__ Channel channel(int64_t n, int64_t c) const {
    const int64_t i = n * end.channels + c;
    const A of_g = scale[i] * rstd[i], share = of_g / A(end.pixels);
    return {end.bias(c), mean[i], of_g, -share * dscale[i] * rstd[i], -share * dshift[i]};
  }
  __device__ A pixel(int64_t n, int64_t p) const { return end.pixel(n, p); }
  __device__ A element(const A (&in)[2], Channel channel, A noise, A (&sum)[2]) const {
    const A before = in[1] + noise + channel.b;
    const A du = in[0] * channel.of_g + (end.u(before) - channel.mean) * channel.of_u + channel.rest;
    return sum[0] = du * end.gain * (before > 0 ? A(1) : end.alpha);
  }
  __device__ A total(int, A sum, int64_t, int64_t) const { return sum; }
};

}  // namespace

int cuda::adain_grad(const AdainGrad& call, void* stream) {
  return with_type(call.dtype, [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulator<T>;
    const LayerEnd<A> end(call);
    const A *scale = static_cast<const A*>(call.scale), *mean = static_cast<const A*>(call.mean);
    const A* rstd = static_cast<const A*>(call.rstd);
    A *dscale = static_cast<A*>(call.dscale), *dshift = static_cast<A*>(call.dshift);
    const T *g = static_cast<const T*>(call.g), *x = static_cast<const T*>(call.x);
    const Scratch<A> scratch{plan_walk<T>(call.shape), static_cast<A*>(call.scratch)};

    int error = pass<T>(Maps<T, 2>{{g, x}, nullptr}, StyleSums<A>{end, mean, rstd}, scratch.walk,
                        scratch.partials(2, true, nullptr), stream);
    error = error ? error : add_up(scratch.by_sample_and_channel(0, dshift), scratch.by_sample_and_channel(1, dscale),
                                   {}, stream);
    error = error ? error : pass<T>(Maps<T, 2>{{g, x}, static_cast<T*>(call.dx)},
                                    Backward<A>{end, scale, mean, rstd, dscale, dshift}, scratch.walk,
                                    scratch.partials(1, call.db, call.dnoise), stream);
    return error ? error : add_up(scratch.by_channel(0, call.db), scratch.by_pixel(1, call.dnoise), {}, stream);
  });
}

int64_t cuda::scratch_adain_grad(const AdainGrad& call) { return scratch_bytes(call.dtype, call.shape, 2, true); }

}  // namespace imago
