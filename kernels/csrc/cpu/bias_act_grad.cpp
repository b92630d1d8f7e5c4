// The first and second derivatives of bias_act, and their sums over pixels.
#include "backend.h"
#include "pointwise.h"

namespace imago {
namespace {

template <Activation act, int order, class A>
inline A slope(A g, A ref, A bias, A alpha, A gain, A limit) {
  const bool from_output = act <= kLrelu;
  const A x = from_output ? ref : ref + bias;
  const A y = from_output || limit < 0 ? ref : gain * activation<act>(x, alpha);
  return (limit >= 0) & (std::abs(y) >= limit) ? A(0) : g * gain * derivative<act, order>(x, alpha);
}

}  // namespace

namespace IMAGO_ISA {

int bias_act_grad(const BiasActGrad& p, void*) {
  return with_type(p.dtype, [&](auto type) {
    using T = decltype(type);
    using A = Accumulator<T>;
    const Shape s = as_map(p);
    const Small<A> b(p.b, p.channels, A(0), repeat(p));
    const Buffer<A> sums(s.n * blocks_of(s) * s.c);
    const bool far = past_caches(s.n * s.c * pixels(s), sizeof(T));
    const A alpha = p.alpha, gain = p.gain, limit = p.clamp;
    const auto run = [&](auto act, auto order) {
      each_block(s, [&](const Block& block) {
        const A* bias_of = b + 0;
        A* __restrict sum_of = sums + block.slot * s.c;
        const auto one = [=](T g, T ref, A bias) {
          return slope<decltype(act)::value, decltype(order)::value>(A(widen(g)), A(widen(ref)), bias, alpha, gain, limit);
        };
        if (s.channels_last) {
          const int64_t offset = block.first * s.c;
          const T* __restrict g = static_cast<const T*>(p.g) + offset;
          const T* __restrict ref = static_cast<const T*>(p.ref) + offset;
          Run<T> run(static_cast<T*>(p.dx) + offset, block.count * s.c, far);
          T* __restrict dx = run.begin();
          for (int64_t i = 0; i < block.count; ++i)
#pragma omp simd
            for (int64_t c = 0; c < s.c; ++c) {
              const A d = one(g[i * s.c + c], ref[i * s.c + c], bias_of[c]);
              dx[i * s.c + c] = narrow<T>(d);
              sum_of[c] += d;
            }
        } else {
          channel_runs(s, block, [=](int64_t c, int64_t offset) {
            const T* __restrict g = static_cast<const T*>(p.g) + offset;
            const T* __restrict ref = static_cast<const T*>(p.ref) + offset;
            Run<T> run(static_cast<T*>(p.dx) + offset, block.count, far);
            T* __restrict dx = run.begin();
            const A bias = bias_of[c];
            A sum = 0;
#pragma omp simd reduction(+ : sum)
            for (int64_t i = 0; i < block.count; ++i) {
              const A d = one(g[i], ref[i], bias);
              dx[i] = narrow<T>(d);
              sum += d;
            }
            sum_of[c] = sum;
          });
        }
      });
    };
    with_activation(p.act, [&](auto act) { p.order == 1 ? run(act, Constant<1>()) : run(act, Constant<2>()); });
    if (p.db) {
      const Buffer<A> all(s.c);
      sum_all<A>(s, sums, all);
      for (int64_t c = 0; c < p.channels; ++c) {
        A& db = static_cast<A*>(p.db)[c];
        db = 0;
        for (int64_t i = c; i < s.c; i += p.channels) db += all[i];
      }
    }
  });
}

}  // namespace IMAGO_ISA
}  // namespace imago
