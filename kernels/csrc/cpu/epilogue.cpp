// The end of a modulated convolution, and its gradient.
#include "backend.h"
#include "fir.h"
#include "pointwise.h"

namespace imago {
namespace {

template <class T, class A>
class LayerEnd {
 public:
  explicit LayerEnd(const Epilogue& p)
      : p_(p), scale_(p.scale, p.out.n * p.out.c, A(1)), b_(p.b, p.out.c, A(0)), noise_(p.noise, pixels(p.out), A(0)),
        per_sample_(p.noise && !p.one_noise), alpha_(p.alpha), gain_(p.gain), limit_(p.clamp) {}

  // v: values of pixels [first, first + count) and channels [c, c + step), pixel after pixel, `stride` apart.
  template <class S>
  void finish(int64_t n, int64_t c, int64_t first, int64_t count, int64_t step, const S* v, int64_t stride) const {
    const Shape& s = p_.out;
    const A* noise = noise_ + (per_sample_ ? n * pixels(s) : 0) + first;
    const A *scale = scale_ + n * s.c + c, *b = b_ + c;
    const auto one = [alpha = alpha_, gain = gain_, limit = limit_](A u) {
      return narrow<T>(clamped(gain * activation<kLrelu>(u, alpha), limit));
    };
    if (s.channels_last) {
      T* y = static_cast<T*>(p_.y) + (n * pixels(s) + first) * s.c + c;
      for (int64_t i = 0; i < count; ++i) {
        const A here = noise[i];
        T* __restrict to = y + i * s.c;
        const S* __restrict from = v + i * stride;
#pragma omp simd
        for (int64_t k = 0; k < step; ++k) to[k] = one(widen(from[k]) * scale[k] + here + b[k]);
      }
    } else {
      T* __restrict y = static_cast<T*>(p_.y) + (n * s.c + c) * pixels(s) + first;
      const A factor = *scale, bias = *b;
#pragma omp simd
      for (int64_t i = 0; i < count; ++i) y[i] = one(widen(v[i]) * factor + noise[i] + bias);
    }
  }

 private:
  const Epilogue& p_;
  Small<A> scale_, b_, noise_;
  bool per_sample_;
  A alpha_, gain_, limit_;
};

}  // namespace

namespace IMAGO_ISA {

int epilogue(const Epilogue& p, void*) {
  return with_type(p.dtype, [&](auto type) {
    using T = decltype(type);
    using A = Accumulator<T>;
    const LayerEnd<T, A> end(p);
    const Shape& s = p.out;
    if (p.taps) {
      const Fir fir{p.dtype, p.in, p.out, p.x, p.taps, p.taps_h, p.taps_w, 1, 1, 1, 1, p.left, p.top, p.flip, p.fir_gain};
      filter<T, A>(fir, nullptr, [&](int64_t n, int64_t c, int64_t oy, int64_t ox, int64_t count, int64_t step,
                                     const A* sums, int64_t) {
        end.finish(n, c, oy * s.w + ox, count, step, sums, step);
      });
      return;
    }
    const T* x = static_cast<const T*>(p.x);
    each_block(s, [&](const Block& block) {
      const Block& k = block;
      if (s.channels_last) end.finish(k.n, 0, k.first, k.count, s.c, x + (k.n * pixels(s) + k.first) * s.c, s.c);
      else channel_runs(s, k, [&](int64_t c, int64_t at) { end.finish(k.n, c, k.first, k.count, 1, x + at, 1); });
    });
  });
}

int epilogue_grad(const EpilogueGrad& p, void*) {
  return with_type(p.dtype, [&](auto type) {
    using T = decltype(type);
    using A = Accumulator<T>;
    const Shape& s = p.shape;
    const Small<A> scales(p.scale, s.n * s.c, A(1)), b(p.b, s.c, A(0)), noises(p.noise, pixels(s), A(0));
    const int64_t cells = s.n * blocks_of(s) * s.c;
    const Buffer<A> b_sums(cells), v_sums(cells), unwanted(s.n * pixels(s));
    A* const dnoise = p.dnoise ? static_cast<A*>(p.dnoise) : unwanted;
    for (int64_t i = 0; p.dnoise && i < s.n * pixels(s); ++i) dnoise[i] = 0;
    const bool limited = p.clamp >= 0, one_noise = p.one_noise || !p.noise;
    const A limit = p.clamp, above = p.gain, below = p.gain * p.alpha;
    const A from_above = 1 / above, from_below = 1 / below;
    each_block(s, [&](const Block& block) {
      const A *scale = scales + block.n * s.c, *biases = b + 0;
      const A* noise = noises + (one_noise ? 0 : block.n * pixels(s));
      A* dn = dnoise + block.n * pixels(s);
      A *__restrict db = b_sums + block.slot * s.c, *__restrict dvs = v_sums + block.slot * s.c;
      // du, and u - noise
      const auto gradient = [=](A g, A y) { return limited & (std::abs(y) >= limit) ? A(0) : g * (y > 0 ? above : below); };
      const auto before = [=](A y, A noise) { return y * (y > 0 ? from_above : from_below) - noise; };
      if (s.channels_last) {
        pixel_runs(s, block, [=](int64_t pixel, int64_t offset) {
          const T* __restrict g = static_cast<const T*>(p.g) + offset;
          const T* __restrict y = static_cast<const T*>(p.y) + offset;
          T* __restrict dv = static_cast<T*>(p.dv) + offset;
          const A here = noise[pixel];
          A sum = 0;
#pragma omp simd reduction(+ : sum)
          for (int64_t c = 0; c < s.c; ++c) {
            const A du = gradient(widen(g[c]), widen(y[c]));
            dv[c] = narrow<T>(du * scale[c]);
            db[c] += du;
            dvs[c] += du * (before(widen(y[c]), here) - biases[c]);
            sum += du;
          }
          dn[pixel] = sum;
        });
      } else {
        channel_runs(s, block, [=](int64_t c, int64_t offset) {
          const T* __restrict g = static_cast<const T*>(p.g) + offset;
          const T* __restrict y = static_cast<const T*>(p.y) + offset;
          T* __restrict dv = static_cast<T*>(p.dv) + offset;
          A* __restrict here = dn + block.first;
          const A* around = noise + block.first;
          const A factor = scale[c], bias = biases[c];
          A sum = 0, v_sum = 0;
#pragma omp simd reduction(+ : sum, v_sum)
          for (int64_t i = 0; i < block.count; ++i) {
            const A du = gradient(widen(g[i]), widen(y[i]));
            dv[i] = narrow<T>(du * factor);
            here[i] += du;
            sum += du;
            v_sum += du * (before(widen(y[i]), around[i]) - bias);
          }
          db[c] = sum;
          dvs[c] = v_sum;
        });
      }
    });
    if (p.db) sum_all<A>(s, b_sums, static_cast<A*>(p.db));
    if (p.dscale) {
      A* dscale = static_cast<A*>(p.dscale);
      sum_samples<A>(s, v_sums, dscale);
      for (int64_t i = 0; i < s.n * s.c; ++i) dscale[i] /= scales[i];
    }
  });
}

}  // namespace IMAGO_ISA
}  // namespace imago
