// Up to 4x4 taps, channels last: a thread holds 16 bytes of channels and walks down the rows. Each row it reads goes to all
// the output rows it is part of, which wait in a ring of registers; so no thread reads anything twice.
#include "fir.cuh"

namespace imago {
namespace {

constexpr int kThreads = 128, kTaps = 4;

// Along each axis outputs come in steps of `up`, which share their window of 4 / up pixels. The window of step 0 begins
// at pixel `origin`, and its first output is -shift.
struct Steps {
  int origin, shift, count;
};

Steps steps_of(int size, int before, int up) {
  const int origin = up == 1 ? -before : ceil_div(-before, up);
  const int shift = up == 1 ? 0 : 1 - before - up * origin;
  return {origin, shift, (size - 1 + shift) / up + 1};
}

template <class T, int up, int down>
struct Ring {
  using A = Accumulator<T>;
  static constexpr int V = kVector<T>, kWindow = kTaps / up, kSteps = kWindow / down;
  static constexpr int kColumns = up * down == 1 ? 2 : 1, kPixels = kWindow + (kColumns - 1) * down;
  static constexpr int kOutputs = kColumns * up * up;  // of a step: columns, and phases in y and x
  A sums[kSteps][kOutputs][V] = {};
  A taps[kTaps][kTaps];

  // Row d of those that `slot` is the first step to need.
  __device__ void add_row(const Pack<T> (&in)[kPixels], int slot, int d) {
#pragma unroll
    for (int p = 0; p < kPixels; ++p) {
      A values[V];
#pragma unroll
      for (int v = 0; v < V; ++v) values[v] = A(in[p].v[v]);
#pragma unroll
      for (int k = 0; k < kSteps * kOutputs; ++k) {
        const int ahead = k / kOutputs, column = k % kOutputs / (up * up), phase_y = k / up % up, phase_x = k % up;
        const int i = kWindow - down + d - ahead * down, j = p - column * down;  // in that output's window
        if (j < 0 || j >= kWindow) continue;
        const A tap = taps[i * up + up - 1 - phase_y][j * up + up - 1 - phase_x];
#pragma unroll
        for (int v = 0; v < V; ++v) sums[(slot + ahead) % kSteps][k % kOutputs][v] += values[v] * tap;
      }
    }
  }
};

template <class T, int pixels>
__device__ void load_pixels(Pack<T> (&in)[pixels], const T* row, int left, int width, int64_t channels) {
#pragma unroll
  for (int p = 0; p < pixels; ++p) {
    const int ix = left + p;
    if (ix >= 0 && ix < width) {
      in[p] = *reinterpret_cast<const Pack<T>*>(row + ix * channels);
    } else {
#pragma unroll
      for (int v = 0; v < kVector<T>; ++v) in[p].v[v] = T(0.f);
    }
  }
}

template <class T, class Op, class A, int V>
__device__ void store_pixel(T* y, const A (&sums)[V], const Op& op, const typename Op::Channel (&channel)[V], A noise) {
  Pack<T> out;
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const A value[1] = {sums[v]};
    A none[2];
    out.v[v] = T(op.element(value, channel[v], noise, none));
  }
  *reinterpret_cast<Pack<T>*>(y) = out;
}

template <class T, int up, int down, class Op>
__global__ void __launch_bounds__(kThreads)
    fir_nhwc_kernel(Fir<T> fir, Op op, Steps xs, Steps ys, int row_steps, unsigned tiles, unsigned chunks) {
  using Sums = Ring<T, up, down>;
  constexpr int V = kVector<T>, kSteps = Sums::kSteps;
  const unsigned item = blockIdx.x % tiles * kThreads + threadIdx.x, packs = unsigned(fir.channels / V);
  const int c = int(item % packs) * V, x_step = int(item / packs) * Sums::kColumns;
  const int64_t n = blockIdx.x / tiles / chunks;
  const int first = int(blockIdx.x / tiles % chunks) * row_steps;
  const int last = first + row_steps < ys.count ? first + row_steps : ys.count;
  if (x_step >= xs.count) return;

  Sums ring;
#pragma unroll
  for (int i = 0; i < kTaps * kTaps; ++i) ring.taps[i / kTaps][i % kTaps] = fir.tap(i / kTaps, i % kTaps);
  typename Op::Channel channel[V];
#pragma unroll
  for (int v = 0; v < V; ++v) channel[v] = op.channel(n, c + v);
  const T* x = fir.x + n * fir.in_h * fir.in_w * fir.channels + c;
  T* y = fir.y + n * fir.out_h * fir.out_w * fir.channels + c;

  // the first kSteps - 1 steps only fill the ring: their own outputs are the chunk's above
  for (int base = first - (kSteps - 1); base < last; base += kSteps) {
#pragma unroll
    for (int slot = 0; slot < kSteps; ++slot) {
      const int step = base + slot;
#pragma unroll
      for (int d = 0; d < down; ++d) {
        const int iy = ys.origin + (step + kSteps - 1) * down + d;
        if (iy < 0 || iy >= fir.in_h || step >= last) continue;
        Pack<T> in[Sums::kPixels];
        load_pixels(in, x + int64_t(iy) * fir.in_w * fir.channels, xs.origin + x_step * down, fir.in_w, fir.channels);
        ring.add_row(in, slot, d);
      }
#pragma unroll
      for (int k = 0; k < Sums::kOutputs; ++k) {
        const int oy = step * up + k / up % up - ys.shift, ox = (x_step + k / (up * up)) * up + k % up - xs.shift;
        const int64_t pixel = int64_t(oy) * fir.out_w + ox;
        const bool inside = step >= first && step < last && oy >= 0 && oy < fir.out_h && ox >= 0 && ox < fir.out_w;
        if (inside) store_pixel(y + pixel * fir.channels, ring.sums[slot][k], op, channel, op.pixel(n, pixel));
#pragma unroll
        for (int v = 0; v < V; ++v) ring.sums[slot][k][v] = 0;
      }
    }
  }
}

template <int up, int down, class T, class Op>
int run(const Fir<T>& fir, const Op& op, void* stream) {
  constexpr int64_t kEnough = 1 << 17;  // threads: shorter walks would not fill a GPU better, but read more rows twice
  const Steps xs = steps_of(fir.out_w, fir.left, up), ys = steps_of(fir.out_h, fir.top, up);
  const int64_t items = blocks_for(xs.count, Ring<T, up, down>::kColumns) * (fir.channels / kVector<T>);
  int rows = 32;
  while (rows > 4 && fir.samples * items * blocks_for(ys.count, rows) < kEnough) rows /= 2;
  const int64_t tiles = blocks_for(items, kThreads), chunks = blocks_for(ys.count, rows);
  return launch(fir_nhwc_kernel<T, up, down, Op>, fir.samples * chunks * tiles, kThreads, stream, fir, op, xs, ys, rows,
                unsigned(tiles), unsigned(chunks));
}

}  // namespace

template <class T, class Op>
int fir_nhwc(const Fir<T>& fir, const Op& op, void* stream) {
  if (fir.channels % kVector<T> || !aligned<Pack<T>>(fir.x) || !aligned<Pack<T>>(fir.y)) return -1;
  if (fir.fits_4x4(1, 1)) return run<1, 1>(fir, op, stream);
  if constexpr (std::is_same_v<Op, Plain<Accumulator<T>>>) {
    if (fir.fits_4x4(2, 1)) return run<2, 1>(fir, op, stream);
    if (fir.fits_4x4(1, 2)) return run<1, 2>(fir, op, stream);
  }
  return -1;
}

#define IMAGO_FIR(T)                                                  \
  template int fir_nhwc(const Fir<T>&, const Plain<float>&, void*);   \
  template int fir_nhwc(const Fir<T>&, const Finish<float>&, void*);
IMAGO_FIR(float)
IMAGO_FIR(__nv_bfloat16)
IMAGO_FIR(__half)

}  // namespace imago
