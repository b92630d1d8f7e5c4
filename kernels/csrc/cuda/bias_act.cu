#include "backend.cuh"
#include "walk.cuh"

namespace imago {
namespace {

template <Activation act, class A>
__device__ A smooth(int order, A x) {
  return order == 0 ? activation<act>(x, A(0)) : order == 1 ? derivative<act, 1>(x, A(0)) : derivative<act, 2>(x, A(0));
}

// The activation that is not piecewise linear, or its derivative. Not inlined: once per element of a vector would be
// most of the time of a build.
template <class A>
__device__ __noinline__ A smooth(Activation act, int order, A x) {
  switch (act) {
    case kTanh: return smooth<kTanh>(order, x);
    case kSigmoid: return smooth<kSigmoid>(order, x);
    case kElu: return smooth<kElu>(order, x);
    case kSelu: return smooth<kSelu>(order, x);
    case kSoftplus: return smooth<kSoftplus>(order, x);
    default: return smooth<kSwish>(order, x);
  }
}

template <class A>
struct Curve {
  Activation act;
  A slope, gain, clamp;  // slope: below 0, of a piecewise linear one

  __device__ bool piecewise_linear() const { return act <= kLrelu; }
  __device__ A value(A x) const {
    if (!piecewise_linear()) return smooth(act, 0, x);
    return x < 0 ? (slope == 0 ? A(0) : x * slope) : x;  // 0 for an infinite x too
  }
};

template <class A, class Call>
Curve<A> curve_of(const Call& call) {
  const double slope = call.act == kLinear ? 1 : call.act == kRelu ? 0 : call.alpha;
  return {call.act, A(slope), A(call.gain), A(call.clamp)};
}

template <class A>
struct Forward {
  static constexpr int kInputs = 1, kSums = 0;
  using Channel = A;
  Curve<A> curve;
  const A* b;

  __device__ A channel(int64_t, int64_t c) const { return b ? b[c] : A(0); }
  __device__ A pixel(int64_t, int64_t) const { return 0; }
  __device__ A element(const A (&in)[1], A bias, A, A (&)[2]) const {
    return clamped(curve.gain * curve.value(in[0] + bias), curve.clamp);
  }
};

template <class A>
struct Backward {  // in: g, ref
  static constexpr int kInputs = 2, kSums = 1;
  using Channel = A;
  Curve<A> curve;
  const A* b;
  int order;

  __device__ A channel(int64_t, int64_t c) const { return b ? b[c] : A(0); }
  __device__ A pixel(int64_t, int64_t) const { return 0; }
  __device__ A element(const A (&in)[2], A bias, A, A (&sum)[2]) const {
    const A x = in[1] + bias;
    A slope, y = in[1];
    if (curve.piecewise_linear()) {
      slope = y > 0 ? A(1) : curve.slope;
    } else {
      slope = smooth(curve.act, order, x);
      if (curve.clamp >= 0) y = curve.gain * curve.value(x);
    }
    const bool clipped = curve.clamp >= 0 && !(std::abs(y) < curve.clamp);
    return sum[0] = clipped ? A(0) : in[0] * curve.gain * slope;
  }
  __device__ A total(int, A sum, int64_t, int64_t) const { return sum; }
};

// [outer, channels, inner] as maps; without a bias or its gradient all elements are alike, and rows of one block's width
// let a thread read several at once.
template <class T, class Call>
Walk walk_of(const Call& call, bool by_channel) {
  if (!by_channel) {
    constexpr int V = kVector<T>;
    const int64_t size = call.outer * call.channels * call.inner;
    int64_t width = size;
    while (width > 32 * V * kMaxWarps && width % (2 * V) == 0) width /= 2;
    return plan_walk<T>(1, width ? size / width : 0, width, false);
  }
  if (call.inner == 1) return plan_walk<T>(1, call.channels, call.outer, true);
  return plan_walk<T>(call.outer, call.channels, call.inner, false);
}

}  // namespace

int cuda::bias_act(const BiasAct& call, void* stream) {
  return with_type(call.dtype, [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulator<T>;
    const Forward<A> op{curve_of<A>(call), static_cast<const A*>(call.b)};
    const Maps<T, 1> maps{{static_cast<const T*>(call.x)}, static_cast<T*>(call.y)};
    return pass<T>(maps, op, walk_of<T>(call, call.b), {}, stream);
  });
}

int cuda::bias_act_grad(const BiasActGrad& call, void* stream) {
  return with_type(call.dtype, [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulator<T>;
    const Backward<A> op{curve_of<A>(call), static_cast<const A*>(call.b), call.order};
    const Maps<T, 2> maps{{static_cast<const T*>(call.g), static_cast<const T*>(call.ref)}, static_cast<T*>(call.dx)};
    const Scratch<A> scratch{walk_of<T>(call, call.b || call.db), static_cast<A*>(call.scratch)};
    const int error = pass<T>(maps, op, scratch.walk, scratch.partials(1, call.db, nullptr), stream);
    return error ? error : add_up(scratch.by_channel(0, call.db), {}, {}, stream);
  });
}

int64_t cuda::scratch_bias_act_grad(const BiasActGrad& call) {
  int64_t bytes = 0;
  with_type(call.dtype, [&](auto zero) {
    using T = decltype(zero);
    bytes = Scratch<Accumulator<T>>{walk_of<T>(call, true)}.bytes(1, false);
    return 0;
  });
  return bytes;
}

}  // namespace imago
