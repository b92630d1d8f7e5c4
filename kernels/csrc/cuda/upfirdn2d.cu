#include "backend.cuh"
#include "fir.cuh"

namespace imago {

int cuda::upfirdn2d(const UpFirDn2d& call, void* stream) {
  return with_type(call.dtype, [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulator<T>;
    const Shape &in = call.in, &out = call.out;
    const Fir<T> fir{static_cast<const T*>(call.x), static_cast<T*>(call.y), static_cast<const A*>(call.taps),
                     out.n, out.c, int(in.h), int(in.w), int(out.h), int(out.w), call.taps_h, call.taps_w,
                     call.up_x, call.up_y, call.down_x, call.down_y, call.left, call.top,
                     call.flip, in.channels_last, A(call.gain)};
    return filter(fir, Plain<A>{}, stream);
  });
}

}  // namespace imago
