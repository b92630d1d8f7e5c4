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

  // Taps past the last are 0: that is how 3x3 taps pass for 4x4. Without a branch, which would cost registers.
  __device__ A tap(int i, int j) const {
    const bool there = i < taps_h && j < taps_w;
    const int at = flip ? i * taps_w + j : (taps_h - 1 - i) * taps_w + taps_w - 1 - j;
    return (there ? gain : A(0)) * taps[there ? at : 0];
  }
  bool scales(int upy, int upx, int downy, int downx) const {
    return up_y == upy && up_x == upx && down_y == downy && down_x == downx;
  }
  bool is(int h, int w, int upy, int upx, int downy, int downx) const {
    return taps_h == h && taps_w == w && scales(upy, upx, downy, downx);
  }
  bool fits_4x4(int up, int down) const { return taps_h <= 4 && taps_w <= 4 && scales(up, up, down, down); }
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
