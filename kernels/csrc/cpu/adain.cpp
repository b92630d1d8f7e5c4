// Adaptive instance normalisation, the end of a layer of StyleGAN 1, and its gradient.
#include "backend.h"
#include "pointwise.h"

namespace imago {
namespace {

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

}  // namespace

namespace IMAGO_ISA {

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

}  // namespace IMAGO_ISA
}  // namespace imago
