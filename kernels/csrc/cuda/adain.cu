// Noise, bias, leaky ReLU, instance norm and style: StyleGAN's layer end, forward.
#include "adain.cuh"
#include "backend.cuh"

namespace imago {
namespace {

// Sums of u - pivot and its square, where pivot is u at the channel's first pixel: being one of the values, it keeps
// differences of large squares out of the variance (Chan et al. 1983, "Algorithms for Computing the Sample Variance").
template <class T>
struct Moments {
  using A = Accumulator<T>;
  static constexpr int kInputs = 1, kSums = 2;
  LayerEnd<A> end;
  const T* x;
  bool channels_last;

  struct Channel {
    A b, pivot;
  };
  __device__ Channel channel(int64_t n, int64_t c) const {
    const int64_t at = channels_last ? n * end.pixels * end.channels + c : (n * end.channels + c) * end.pixels;
    const A b = end.bias(c);
    return {b, end.u(A(x[at]) + end.pixel(n, 0) + b)};
  }
  __device__ A pixel(int64_t n, int64_t p) const { return end.pixel(n, p); }
  __device__ A element(const A (&in)[1], Channel channel, A noise, A (&sum)[2]) const {
    sum[0] = end.u(in[0] + noise + channel.b) - channel.pivot;
    sum[1] = sum[0] * sum[0];
    return in[0];
  }
  __device__ A total(int, A sum, int64_t, int64_t) const { return sum; }
};

template <class A>
struct Style {
  static constexpr int kInputs = 1, kSums = 0;
  LayerEnd<A> end;
  const A *scale, *shift, *mean, *rstd;

  struct Channel {
    A b, mean, scale, shift;
  };
  __device__ Channel channel(int64_t n, int64_t c) const {
    const int64_t i = n * end.channels + c;
    return {end.bias(c), mean[i], rstd[i] * scale[i], shift[i]};
  }
  __device__ A pixel(int64_t n, int64_t p) const { return end.pixel(n, p); }
  __device__ A element(const A (&in)[1], Channel channel, A noise, A (&)[2]) const {
    return (end.u(in[0] + noise + channel.b) - channel.mean) * channel.scale + channel.shift;
  }
};

template <class T>
__global__ void __launch_bounds__(kSumThreads)
    moments_kernel(Moments<T> op, const Accumulator<T>* sums, int64_t samples, int64_t pieces, Accumulator<T>* mean,
                   Accumulator<T>* rstd, Accumulator<T> eps) {
  using A = Accumulator<T>;
  const int64_t channels = op.end.channels, tiles = (channels + 31) / 32;
  const int64_t n = blockIdx.x / tiles, c = blockIdx.x % tiles * 32 + threadIdx.x % 32;
  const bool inside = c < channels;
  const A* first = sums + n * pieces * channels + c;
  const A s1 = sum_of_column(first, pieces, channels, inside);
  const A s2 = sum_of_column(first + samples * pieces * channels, pieces, channels, inside);
  if (!inside || threadIdx.x >= 32) return;
  const A size = A(op.end.pixels), offset = s1 / size, variance = s2 / size - offset * offset;
  mean[n * channels + c] = op.channel(n, c).pivot + offset;
  rstd[n * channels + c] = 1 / std::sqrt((variance > 0 ? variance : A(0)) + eps);
}

}  // namespace

int cuda::adain(const Adain& call, void* stream) {
  if (call.shape.h * call.shape.w == 0) return cudaSuccess;
  return with_type(call.dtype, [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulator<T>;
    const LayerEnd<A> end(call);
    const T* x = static_cast<const T*>(call.x);
    const Scratch<A> scratch{plan_walk<T>(call.shape), static_cast<A*>(call.scratch)};
    const Moments<T> moments{end, x, call.shape.channels_last};
    int error = pass<T>(Maps<T, 1>{{x}, nullptr}, moments, scratch.walk, scratch.partials(2, true, nullptr), stream);
    A *mean = static_cast<A*>(call.mean), *rstd = static_cast<A*>(call.rstd);
    error = error ? error : launch(moments_kernel<T>, end.samples * blocks_for(end.channels, 32), kSumThreads, stream,
                                   moments, scratch.memory, end.samples, scratch.walk.channel_pieces(), mean, rstd,
                                   A(call.eps));
    const Style<A> style{end, static_cast<const A*>(call.scale), static_cast<const A*>(call.shift), mean, rstd};
    return error ? error : pass<T>(Maps<T, 1>{{x}, static_cast<T*>(call.y)}, style, scratch.walk, {}, stream);
  });
}

int64_t cuda::scratch_adain(const Adain& call) { return scratch_bytes(call.dtype, call.shape, 2, false); }

}  // namespace imago
