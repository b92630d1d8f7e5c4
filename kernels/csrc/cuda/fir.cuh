// FIR filtering of maps: a kernel for anything, and fast ones for the usual taps in either layout.
#pragma once
#include "finish.cuh"

namespace imago {

template <class T>
struct Fir {
  using A = Accumulator<T>;
  const T* x;
  T* y;
  const A* taps;
  int64_t samples, channels;
  int in_h, in_w, out_h, out_w, taps_h, taps_w, up_x, up_y, down_x, down_y, left, top;
  bool flip, channels_last;
  A gain;

  __device__ A tap(int i, int j) const {
    return gain * (flip ? taps[i * taps_w + j] : taps[(taps_h - 1 - i) * taps_w + taps_w - 1 - j]);
  }
  bool is(int h, int w, int upy, int upx, int downy, int downx) const {
    return taps_h == h && taps_w == w && up_y == upy && up_x == upx && down_y == downy && down_x == downx;
  }
};

// Each filters and finishes; the fast ones say -1 where they do not apply.
template <class T, class Op>
int fir_any(const Fir<T>& fir, const Op& op, void* stream);
template <class T, class Op>
int fir_nhwc(const Fir<T>& fir, const Op& op, void* stream);
template <class T, class Op>
int fir_nchw(const Fir<T>& fir, const Op& op, void* stream);

template <class T, class Op>
int filter(const Fir<T>& fir, const Op& op, void* stream) {
  if constexpr (!std::is_same_v<T, double>) {
    const int done = fir.channels_last ? fir_nhwc(fir, op, stream) : fir_nchw(fir, op, stream);
    if (done >= 0) return done;
  }
  return fir_any(fir, op, stream);
}

}  // namespace imago
