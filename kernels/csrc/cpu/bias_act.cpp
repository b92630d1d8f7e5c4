// y = clamp(gain * act(x + b)).
#include "backend.h"
#include "pointwise.h"

namespace imago::IMAGO_ISA {

int bias_act(const BiasAct& p, void*) {
  return with_type(p.dtype, [&](auto type) {
    using T = decltype(type);
    using A = Accumulator<T>;
    const Shape s = as_map(p);
    const Small<A> b(p.b, p.channels, A(0), repeat(p));
    const bool far = past_caches(s.n * s.c * pixels(s), sizeof(T));
    const A alpha = p.alpha, gain = p.gain, limit = p.clamp;
    with_activation(p.act, [&](auto act) {
      each_block(s, [&](const Block& block) {
        const A* bias_of = b + 0;
        const auto one = [=](T x, A bias) {
          return narrow<T>(clamped(gain * activation<decltype(act)::value>(widen(x) + bias, alpha), limit));
        };
        if (s.channels_last) {
          const int64_t offset = block.first * s.c;
          const T* __restrict x = static_cast<const T*>(p.x) + offset;
          Run<T> run(static_cast<T*>(p.y) + offset, block.count * s.c, far);
          T* __restrict y = run.begin();
          for (int64_t i = 0; i < block.count; ++i)
#pragma omp simd
            for (int64_t c = 0; c < s.c; ++c) y[i * s.c + c] = one(x[i * s.c + c], bias_of[c]);
        } else {
          channel_runs(s, block, [=](int64_t c, int64_t offset) {
            const T* __restrict x = static_cast<const T*>(p.x) + offset;
            Run<T> run(static_cast<T*>(p.y) + offset, block.count, far);
            T* __restrict y = run.begin();
            const A bias = bias_of[c];
#pragma omp simd
            for (int64_t i = 0; i < block.count; ++i) y[i] = one(x[i], bias);
          });
        }
      });
    });
  });
}

}  // namespace imago::IMAGO_ISA
