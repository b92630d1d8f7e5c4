// Any taps, factors and layout: a thread per output element.
#include "fir.cuh"

namespace imago {
namespace {

constexpr int kThreads = 256;

// Of the zeros-inserted picture, from position `at`: the first tap on a pixel, and that pixel.
struct Phase {
  int tap, pixel;
  __device__ Phase(int at, int up) : tap((up - at % up) % up), pixel((at + tap) / up) {}
};

template <class T, class Op>
__global__ void __launch_bounds__(kThreads) fir_any_kernel(Fir<T> fir, Op op, int width) {
  using A = Accumulator<T>;
  const int inner = fir.channels_last ? int(fir.channels) : 1;
  const int64_t planes = fir.channels_last ? fir.samples : fir.samples * fir.channels;
  const int64_t row_size = int64_t(fir.out_w) * inner, tiles = (row_size + width - 1) / width;
  const int64_t column = blockIdx.x % tiles * width + threadIdx.x % width;
  const int64_t row = blockIdx.x / tiles * (kThreads / width) + threadIdx.x / width;
  if (column >= row_size || row >= planes * fir.out_h) return;

  const int64_t plane = row / fir.out_h;
  const int oy = int(row - plane * fir.out_h), ox = int(column / inner), c = int(column - int64_t(ox) * inner);
  const T* x = fir.x + plane * fir.in_h * fir.in_w * inner + c;
  const Phase down(oy * fir.down_y - fir.top, fir.up_y), across(ox * fir.down_x - fir.left, fir.up_x);
  A sum = 0;
  for (int i = down.tap, iy = down.pixel; i < fir.taps_h && iy < fir.in_h; i += fir.up_y, ++iy) {
    if (iy < 0) continue;
    for (int j = across.tap, ix = across.pixel; j < fir.taps_w && ix < fir.in_w; j += fir.up_x, ++ix) {
      if (ix >= 0) sum += fir.tap(i, j) * A(x[(int64_t(iy) * fir.in_w + ix) * inner]);
    }
  }
  const int64_t n = fir.channels_last ? plane : plane / fir.channels;
  const auto channel = op.channel(n, fir.channels_last ? c : plane - n * fir.channels);
  const A value[1] = {sum};
  A none[2];
  fir.y[row * row_size + column] = T(op.element(value, channel, op.pixel(n, int64_t(oy) * fir.out_w + ox), none));
}

}  // namespace

template <class T, class Op>
int fir_any(const Fir<T>& fir, const Op& op, void* stream) {
  const int64_t planes = fir.channels_last ? fir.samples : fir.samples * fir.channels;
  const int64_t row_size = fir.out_w * (fir.channels_last ? fir.channels : 1);
  int width = 1;
  while (width < kThreads && width < row_size) width *= 2;
  const int64_t blocks = blocks_for(row_size, width) * blocks_for(planes * fir.out_h, kThreads / width);
  return launch(fir_any_kernel<T, Op>, blocks, kThreads, stream, fir, op, width);
}

#define IMAGO_FIR(T)                                                              \
  template int fir_any(const Fir<T>&, const Plain<Accumulator<T>>&, void*);       \
  template int fir_any(const Fir<T>&, const Finish<Accumulator<T>>&, void*);
IMAGO_FIR(float)
IMAGO_FIR(double)
IMAGO_FIR(__nv_bfloat16)
IMAGO_FIR(__half)

}  // namespace imago
