// A scale for each channel of each picture, and its gradient.
#include "backend.h"
#include "pointwise.h"

namespace imago::IMAGO_ISA {

int modulate(const Modulate& p, void*) {
  return with_type(p.dtype, [&](auto type) {
    using T = decltype(type);
    using A = Accumulator<T>;
    const Shape& s = p.shape;
    each_block(s, [&](const Block& block) {
      const A* scale = static_cast<const A*>(p.scale) + block.n * s.c;
      const auto run = [&](int64_t offset, int64_t count, auto factor) {
        const T* __restrict x = static_cast<const T*>(p.x) + offset;
        T* __restrict y = static_cast<T*>(p.y) + offset;
#pragma omp simd
        for (int64_t i = 0; i < count; ++i) y[i] = narrow<T>(widen(x[i]) * factor(i));
      };
      const auto by_channel = [=](int64_t c, int64_t at) { run(at, block.count, [=](int64_t) { return scale[c]; }); };
      const auto by_pixel = [=](int64_t, int64_t at) { run(at, s.c, [=](int64_t i) { return scale[i]; }); };
      s.channels_last ? pixel_runs(s, block, by_pixel) : channel_runs(s, block, by_channel);
    });
  });
}

int modulate_grad(const ModulateGrad& p, void*) {
  return with_type(p.dtype, [&](auto type) {
    using T = decltype(type);
    using A = Accumulator<T>;
    const Shape& s = p.shape;
    const Buffer<A> sums(s.n * blocks_of(s) * s.c);
    each_block(s, [&](const Block& block) {
      const A* scale = static_cast<const A*>(p.scale) + block.n * s.c;
      A* __restrict sum = sums + block.slot * s.c;
      if (s.channels_last) {
        pixel_runs(s, block, [=](int64_t, int64_t offset) {
          const T* __restrict g = static_cast<const T*>(p.g) + offset;
          const T* __restrict x = static_cast<const T*>(p.x) + offset;
          T* __restrict dx = static_cast<T*>(p.dx) + offset;
#pragma omp simd
          for (int64_t c = 0; c < s.c; ++c) {
            dx[c] = narrow<T>(widen(g[c]) * scale[c]);
            sum[c] += widen(g[c]) * widen(x[c]);
          }
        });
      } else {
        channel_runs(s, block, [=](int64_t c, int64_t offset) {
          const T* __restrict g = static_cast<const T*>(p.g) + offset;
          const T* __restrict x = static_cast<const T*>(p.x) + offset;
          T* __restrict dx = static_cast<T*>(p.dx) + offset;
          const A factor = scale[c];
          A total = 0;
#pragma omp simd reduction(+ : total)
          for (int64_t i = 0; i < block.count; ++i) {
            dx[i] = narrow<T>(widen(g[i]) * factor);
            total += widen(g[i]) * widen(x[i]);
          }
          sum[c] = total;
        });
      }
    });
    if (p.dscale) sum_samples<A>(s, sums, static_cast<A*>(p.dscale));
  });
}

}  // namespace imago::IMAGO_ISA
