#include "backend.cuh"
#include "fir.cuh"
#include "walk.cuh"

namespace imago {
namespace {

template <class T>
int finish_only(const void* x, void* y, const Shape& shape, const Finish<Accumulator<T>>& op, void* stream) {
  const Maps<T, 1> maps{{static_cast<const T*>(x)}, static_cast<T*>(y)};
  return pass<T>(maps, op, plan_walk<T>(shape), {}, stream);
}

}  // namespace

int cuda::epilogue(const Epilogue& call, void* stream) {
  return with_type(call.dtype, [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulator<T>;
    const Shape &in = call.in, &out = call.out;
    const Finish<A> op{static_cast<const A*>(call.scale), static_cast<const A*>(call.noise),
                       static_cast<const A*>(call.b), out.c, out.h * out.w, call.one_noise,
                       A(call.alpha), A(call.gain), A(call.clamp)};
    if (!call.taps) return finish_only<T>(call.x, call.y, out, op, stream);
    const Fir<T> fir{static_cast<const T*>(call.x), static_cast<T*>(call.y), static_cast<const A*>(call.taps),
                     out.n, out.c, int(in.h), int(in.w), int(out.h), int(out.w), call.taps_h, call.taps_w,
                     1, 1, 1, 1, call.left, call.top, call.flip, in.channels_last, A(call.fir_gain)};
    return filter(fir, op, stream);
  });
}

int cuda::modulate(const Modulate& call, void* stream) {
  return with_type(call.dtype, [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulator<T>;
    const Shape& shape = call.shape;
    const A* scale = static_cast<const A*>(call.scale);
    const Finish<A> op{scale, nullptr, nullptr, shape.c, shape.h * shape.w, false, 1, 1, -1};
    return finish_only<T>(call.x, call.y, shape, op, stream);
  });
}

}  // namespace imago
