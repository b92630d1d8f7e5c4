// Ends of StyleGAN's layers: the epilogue of a modulated convolution, and adaptive instance normalisation.
#pragma once
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

// u of AdaIN. A sample's view is copied into each loop: through a reference the compiler finds no vector code.
template <class T, class A>
class Activated {
 public:
  template <class P>
  explicit Activated(const P& p)
      : b_(p.b, p.shape.c, A(0)), noise_(p.noise, pixels(p.shape), A(0)),
        stride_(p.noise && !p.one_noise ? pixels(p.shape) : 0),
        view_{static_cast<const T*>(p.x), nullptr, b_ + 0, A(p.alpha), A(p.gain)} {}

  struct View {
    const T* x;
    const A *noise, *b;
    A alpha, gain;
    A linear(int64_t at, A around, A bias) const { return widen(x[at]) + around + bias; }
    A operator()(int64_t at, A around, A bias) const { return gain * activation<kLrelu>(linear(at, around, bias), alpha); }
  };
  View sample(int64_t n) const {
    View view = view_;
    view.noise = noise_ + n * stride_;
    return view;
  }

 private:
  Small<A> b_, noise_;
  int64_t stride_;
  View view_;
};

int adain(const Adain& p, void*) {
  return with_type(p.dtype, [&](auto type) {
    using T = decltype(type);
    using A = Accumulator<T>;
    const Shape& s = p.shape;
    const Activated<T, A> layer(p);
    const int64_t cells = s.n * blocks_of(s) * s.c;
    // of a block: mean, and sum of squared distances from it; values are taken from the first, as large ones lose digits
    const Buffer<A> means(cells), squares(cells);
    A *const mean = static_cast<A*>(p.mean), *const rstd = static_cast<A*>(p.rstd);
    each_block(s, [&](const Block& block) {
      A *__restrict m = means + block.slot * s.c, *__restrict q = squares + block.slot * s.c;
      const auto u = layer.sample(block.n);
      if (s.channels_last) {
        pixel_runs(s, block, [=](int64_t pixel, int64_t at) {
          if (pixel == block.first)
            for (int64_t c = 0; c < s.c; ++c) q[c] = u(at + c, u.noise[pixel], u.b[c]);
#pragma omp simd
          for (int64_t c = 0; c < s.c; ++c) m[c] += u(at + c, u.noise[pixel], u.b[c]) - q[c];
        });
        for (int64_t c = 0; c < s.c; ++c) m[c] = q[c] + m[c] / A(block.count), q[c] = 0;
        pixel_runs(s, block, [=](int64_t pixel, int64_t at) {
#pragma omp simd
          for (int64_t c = 0; c < s.c; ++c) {
            const A d = u(at + c, u.noise[pixel], u.b[c]) - m[c];
            q[c] += d * d;
          }
        });
      } else {
        channel_runs(s, block, [=](int64_t c, int64_t at) {
          const A* around = u.noise + block.first;
          const A bias = u.b[c], start = u(at, around[0], bias);
          A sum = 0, square = 0;
#pragma omp simd reduction(+ : sum)
          for (int64_t i = 0; i < block.count; ++i) sum += u(at + i, around[i], bias) - start;
          const A centre = start + sum / A(block.count);
#pragma omp simd reduction(+ : square)
          for (int64_t i = 0; i < block.count; ++i) {
            const A d = u(at + i, around[i], bias) - centre;
            square += d * d;
          }
          m[c] = centre;
          q[c] = square;
        });
      }
    });
    // Chan et al. 1979: the spread of a union from those of its parts
    for (int64_t n = 0; n < s.n; ++n)
      for (int64_t c = 0; c < s.c; ++c) {
        A centre = 0, square = 0, count = 0;
        for (int64_t k = 0; k < blocks_of(s); ++k) {
          const int64_t at = (n * blocks_of(s) + k) * s.c + c;
          const A more = A(smaller(block_size(s), pixels(s) - k * block_size(s))), d = means[at] - centre;
          count += more;
          centre += d * more / count;
          square += squares[at] + d * d * more * (count - more) / count;
        }
        mean[n * s.c + c] = centre;
        rstd[n * s.c + c] = 1 / std::sqrt(square / (count > 0 ? count : A(1)) + A(p.eps));
      }
    each_block(s, [&](const Block& block) {
      const auto u = layer.sample(block.n);
      const A *m = mean + block.n * s.c, *r = rstd + block.n * s.c;
      const A *scale = static_cast<const A*>(p.scale) + block.n * s.c, *shift = static_cast<const A*>(p.shift) + block.n * s.c;
      T* __restrict y = static_cast<T*>(p.y);
      if (s.channels_last) {
        pixel_runs(s, block, [=](int64_t pixel, int64_t at) {
#pragma omp simd
          for (int64_t c = 0; c < s.c; ++c)
            y[at + c] = narrow<T>((u(at + c, u.noise[pixel], u.b[c]) - m[c]) * r[c] * scale[c] + shift[c]);
        });
      } else {
        channel_runs(s, block, [=](int64_t c, int64_t at) {
          const A *around = u.noise + block.first, factor = r[c] * scale[c], centre = m[c], bias = u.b[c], add = shift[c];
#pragma omp simd
          for (int64_t i = 0; i < block.count; ++i)
            y[at + i] = narrow<T>((u(at + i, around[i], bias) - centre) * factor + add);
        });
      }
    });
  });
}

int adain_grad(const AdainGrad& p, void*) {
  return with_type(p.dtype, [&](auto type) {
    using T = decltype(type);
    using A = Accumulator<T>;
    const Shape& s = p.shape;
    const Activated<T, A> layer(p);
    const int64_t cells = s.n * blocks_of(s) * s.c;
    const Buffer<A> first_sums(cells), second_sums(cells), unwanted(s.n * pixels(s));
    const T* g = static_cast<const T*>(p.g);
    const A *mean = static_cast<const A*>(p.mean), *rstd = static_cast<const A*>(p.rstd);
    A *const dscale = static_cast<A*>(p.dscale), *const dshift = static_cast<A*>(p.dshift);
    each_block(s, [&](const Block& block) {
      A *__restrict sum_g = first_sums + block.slot * s.c, *__restrict sum_gk = second_sums + block.slot * s.c;
      const auto u = layer.sample(block.n);
      const A *m = mean + block.n * s.c, *r = rstd + block.n * s.c;
      if (s.channels_last) {
        pixel_runs(s, block, [=](int64_t pixel, int64_t at) {
#pragma omp simd
          for (int64_t c = 0; c < s.c; ++c) {
            sum_g[c] += widen(g[at + c]);
            sum_gk[c] += widen(g[at + c]) * (u(at + c, u.noise[pixel], u.b[c]) - m[c]) * r[c];
          }
        });
      } else {
        channel_runs(s, block, [=](int64_t c, int64_t at) {
          const A *around = u.noise + block.first, centre = m[c], bias = u.b[c], factor = r[c];
          A sum = 0, dot = 0;
#pragma omp simd reduction(+ : sum, dot)
          for (int64_t i = 0; i < block.count; ++i) {
            sum += widen(g[at + i]);
            dot += widen(g[at + i]) * (u(at + i, around[i], bias) - centre);
          }
          sum_g[c] = sum;
          sum_gk[c] = dot * factor;
        });
      }
    });
    sum_samples<A>(s, first_sums, dshift);
    sum_samples<A>(s, second_sums, dscale);

    A* const dnoise = p.dnoise ? static_cast<A*>(p.dnoise) : unwanted;
    for (int64_t i = 0; p.dnoise && i < s.n * pixels(s); ++i) dnoise[i] = 0;
    const A count = A(pixels(s));
    each_block(s, [&](const Block& block) {
      const int64_t row = block.n * s.c;
      const auto u = layer.sample(block.n);
      const A* scale = static_cast<const A*>(p.scale) + row;
      A* __restrict db = first_sums + block.slot * s.c;
      A* __restrict dn = dnoise + block.n * pixels(s);
      T* __restrict dx = static_cast<T*>(p.dx);
      const A *m = mean + row, *r = rstd + row, *sum_g = dshift + row, *sum_gk = dscale + row;
      const auto gradient = [=](int64_t at, int64_t c, A around) {
        const A k = (u(at, around, u.b[c]) - m[c]) * r[c];
        const A du = scale[c] * r[c] * (widen(g[at]) - (sum_g[c] + k * sum_gk[c]) / count);
        return du * u.gain * derivative<kLrelu, 1>(u.linear(at, around, u.b[c]), u.alpha);
      };
      for (int64_t c = 0; c < s.c; ++c) db[c] = 0;
      if (s.channels_last) {
        pixel_runs(s, block, [=](int64_t pixel, int64_t at) {
          A sum = 0;
#pragma omp simd reduction(+ : sum)
          for (int64_t c = 0; c < s.c; ++c) {
            const A d = gradient(at + c, c, u.noise[pixel]);
            dx[at + c] = narrow<T>(d);
            db[c] += d;
            sum += d;
          }
          dn[pixel] = sum;
        });
      } else {
        channel_runs(s, block, [=](int64_t c, int64_t at) {
          A sum = 0;
#pragma omp simd reduction(+ : sum)
          for (int64_t i = 0; i < block.count; ++i) {
            const A d = gradient(at + i, c, u.noise[block.first + i]);
            dx[at + i] = narrow<T>(d);
            dn[block.first + i] += d;
            sum += d;
          }
          db[c] = sum;
        });
      }
    });
    if (p.db) sum_all<A>(s, first_sums, static_cast<A*>(p.db));
  });
}

}  // namespace
}  // namespace imago
