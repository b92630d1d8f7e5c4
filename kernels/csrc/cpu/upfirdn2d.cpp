// Up- and downsampling with a FIR filter.
#include "backend.h"
#include "fir.h"

namespace imago {
namespace {

// Copies sums to the output: y[x * stride + i] of pixel x and channel i. `fixed`: step and stride, if known.
template <int fixed, class T, class A>
void scatter(T* __restrict y, const A* __restrict sums, int phases, int64_t pitch, int64_t count, int64_t step,
             int64_t stride) {
  for (int q = 0; q < phases; ++q) {
    const A* from = sums + q * pitch;
    for (int64_t x = q; x < count; x += phases, from += step) {
      if constexpr (fixed != 0) {
        for (int i = 0; i < fixed; ++i) y[x * fixed + i] = narrow<T>(from[i]);
      } else {
#pragma omp simd
        for (int64_t i = 0; i < step; ++i) y[x * stride + i] = narrow<T>(from[i]);
      }
    }
  }
}

template <class T, class A>
void write(T* to, const A* sums, int phases, int64_t pitch, int64_t count, int64_t step, int64_t stride) {
  if (phases == 1 && stride == step) {
#pragma omp simd
    for (int64_t i = 0; i < count * step; ++i) to[i] = narrow<T>(sums[i]);
  } else if (phases == 2 && stride == 1) {
    for (int64_t done = interleave(to, sums, sums + pitch, count / 2), i = done; i < blocks(count, 2); ++i) {
      to[2 * i] = narrow<T>(sums[i]);
      if (2 * i + 1 < count) to[2 * i + 1] = narrow<T>(sums[pitch + i]);
    }
  } else if (step == 3 && stride == 3) {
    scatter<3>(to, sums, phases, pitch, count, step, stride);
  } else {
    scatter<0>(to, sums, phases, pitch, count, step, stride);
  }
}

}  // namespace

namespace IMAGO_ISA {

int upfirdn2d(const UpFirDn2d& p, void*) {
  const Fir fir{p.dtype, p.in, p.out, p.x, p.taps, p.taps_h, p.taps_w, p.up_x, p.up_y, p.down_x, p.down_y, p.left, p.top,
                p.flip, p.gain};
  return with_type(p.dtype, [&](auto type) {
    using T = decltype(type);
    using A = Accumulator<T>;
    const int number = phases(fir);
    const Shape out = p.out;
    T* const y = static_cast<T*>(p.y);
    const bool far = past_caches(out.n * out.c * out.h * out.w, sizeof(T));
    A* const direct = sizeof(T) == sizeof(A) && !far ? static_cast<A*>(p.y) : nullptr;
    filter<T, A>(fir, direct, [=](int64_t n, int64_t c, int64_t oy, int64_t ox, int64_t count, int64_t step, const A* sums,
                                  int64_t pitch) {
      const int64_t stride = out.channels_last ? out.c : 1;
      const int64_t nhwc = ((n * out.h + oy) * out.w + ox) * stride + c, nchw = ((n * out.c + c) * out.h + oy) * out.w + ox;
      T* to = y + (out.channels_last ? nhwc : nchw);
      alignas(64) T piece[8192];
      if (far && sizeof(T) == sizeof(A) && step >= 16) {
        for (int64_t x = 0; x < count; ++x)
          stream(to + x * stride, sums + x % number * pitch + x / number * step, step * sizeof(T));
      } else if (far && stride == step && count * step <= 8192) {
        write(piece, sums, number, pitch, count, step, stride);
        stream(to, piece, count * step * sizeof(T));
      } else {
        write(to, sums, number, pitch, count, step, stride);
      }
    });
  });
}

}  // namespace IMAGO_ISA
}  // namespace imago
