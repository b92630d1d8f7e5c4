// FIR filters with up- and downsampling that end in a function of each sum. NCHW maps are N * C pictures of one channel, NHWC
// maps N pictures of C channels; with `step` channels a pixel, both are the same loops over contiguous lines.
#pragma once
#include "lines.h"

namespace imago {
namespace {

struct Fir {
  Dtype dtype;
  Shape in, out;
  const void *x, *taps;
  int taps_h, taps_w, up_x, up_y, down_x, down_y, left, top;
  bool flip;
  double gain;
};

// The filter as a sum of products of a vertical and a horizontal one: a single product if it is separable, else one a row.
template <class A>
struct Factors {
  Factors(const Fir& p) : v(p.taps_h * p.taps_h), h(p.taps_h * p.taps_w), rows(p.taps_h), columns(p.taps_w) {
    const A* taps = static_cast<const A*>(p.taps);
    const auto at = [&](int i, int j) { return p.flip ? taps[i * columns + j] : taps[rows * columns - 1 - i * columns - j]; };
    int a = 0, b = 0;  // the largest tap
    for (int i = 0; i < rows * columns; ++i)
      if (std::abs(at(i / columns, i % columns)) > std::abs(at(a, b))) a = i / columns, b = i % columns;
    const A largest = at(a, b), rounding = 8 * (sizeof(A) == 8 ? A(2.2e-16) : A(1.2e-7)) * std::abs(largest);
    bool separable = largest != 0;
    for (int i = 0; i < rows; ++i)
      for (int j = 0; j < columns; ++j)
        separable = separable && std::abs(at(i, j) - at(i, b) / largest * at(a, j)) <= rounding;
    terms = separable ? 1 : rows;
    for (int term = 0; term < terms; ++term) {
      for (int i = 0; i < rows; ++i) v[term * rows + i] = separable ? at(i, b) / largest : A(i == term);
      for (int j = 0; j < columns; ++j) h[term * columns + j] = at(separable ? a : term, j) * A(p.gain);
    }
  }
  Buffer<A> v, h;  // [terms, rows], [terms, columns]
  int rows, columns, terms;
};

inline int phases(const Fir& p) { return p.down_x == 1 ? p.up_x : 1; }

// One thread's work on lines of the output: sums of the pixels [ox, ox + count) and channels [c, c + step) of a row.
template <class T, class A>
class Line {
 public:
  Line(const Fir& p, const Factors<A>& factors, int64_t step, int64_t tile)
      : p_(p), f_(factors), step_(step), span_((tile * p.down_x + p.taps_w) / p.up_x + 3), each_(span_ / p.down_x + 1),
        pitch_(blocks(tile, phases(p)) * step + kSlack),
        x_end_(static_cast<const T*>(p.x) + p.in.n * p.in.c * p.in.h * p.in.w),
        mixed_(span_ * step + kSlack), split_(each_ * p.down_x * step + kSlack), sums_(pitch_ * phases(p)),
        rows_(p.taps_h), row_weights_(p.taps_h), shifted_(p.taps_w), weights_(p.taps_w), used_(p.up_x),
        tap_(p.up_x * p.taps_w), column_(p.up_x * p.taps_w) {
    // of each phase: its taps, and the columns that they meet, from the first of mixed_ on
    for (int q = 0; q < p.up_x && p.down_x == 1; ++q)
      for (int j = 0; j < p.taps_w; ++j) {
        const int position = q + j - p.left, column = floor_div(position, p.up_x);
        if (column * p.up_x != position) continue;
        tap_[q * p.taps_w + used_[q]] = j;
        column_[q * p.taps_w + used_[q]++] = column - floor_div(-p.left, p.up_x);
      }
  }

  // `picture`: [H, W] pixels `stride` elements apart, at the wanted channel. Writes the sums to `direct`, whose pixels are
  // `stride` apart as well, and returns null. Or it returns the sums, if there is no `direct` or it cannot: phase q, from
  // q * pitch() on, holds the pixels ox + q, ox + q + phases ... ox is a multiple of up_x.
  const A* compute(const T* picture, int64_t stride, int64_t oy, int64_t ox, int64_t count, A* direct) {
    const bool scatter = stride != step_ || phases(p_) > 1;  // pixel by pixel: worth it for many channels
    if (f_.terms > 1 || (scatter && step_ < kSlack) || (p_.up_x > 1 && p_.down_x > 1)) direct = nullptr;
    target_ = direct ? Target{direct, stride, stride * phases(p_), false} : Target{sums_, pitch_, step_, true};
    const int64_t first = floor_div(int(ox * p_.down_x - p_.left), p_.up_x);  // input column at the start of mixed_
    bool add = false;
    for (int term = 0; term < f_.terms; ++term) {
      if (!mix_rows(picture, stride, oy, first, term)) continue;
      const A* h = f_.h + term * f_.columns;
      if (p_.down_x == 1) expand(h, count, add);
      else if (p_.up_x == 1) shrink(h, count, add);
      else resample(h, ox, first, count, add);
      add = true;
    }
    if (!add && direct)
      for (int64_t x = 0; x < count; ++x)
        for (int64_t c = 0; c < step_; ++c) direct[x * stride + c] = 0;
    if (!add && !direct)
      for (int64_t i = 0; i < pitch_ * phases(p_); ++i) sums_[i] = 0;
    return direct ? nullptr : static_cast<const A*>(sums_);
  }
  int64_t pitch() const { return pitch_; }

 private:
  struct Target {
    A* data;
    int64_t phase, pixel;  // distances
    bool slack;
  };

  // Phase q = sum of the lines in shifted_, `jump` elements apart from pixel to pixel.
  void sum_lines(int q, const A* weights, int used, int64_t jump, int64_t pixels, bool add) {
    A* out = target_.data + q * target_.phase;
    if (jump == step_ && target_.pixel == step_) {
      weighted_sum<A, A>(out, shifted_, weights, used, pixels * step_, add, target_.slack);
      return;
    }
    if (!add && step_ % VectorOf<A>::lanes == 0 && (used == 2 || used == 4)) {
      (used == 2 ? weighted_pixels<2, A> : weighted_pixels<4, A>)(out, target_.pixel, shifted_, weights, jump, pixels, step_);
      return;
    }
    for (int64_t x = 0; x < pixels; ++x, out += target_.pixel) {
      weighted_sum<A, A>(out, shifted_, weights, used, step_, add, false);
      for (int j = 0; j < used; ++j) shifted_[j] += jump;
    }
  }

  static constexpr int64_t kSlack = 64 / sizeof(A);  // weighted_sum's

  // mixed_ = the vertical filter over columns [first, first + span): false if no row is inside the picture.
  bool mix_rows(const T* picture, int64_t stride, int64_t oy, int64_t first, int term) {
    const int64_t width = p_.in.w, begin = smaller(larger(-first, 0), span_);
    const int64_t end = larger(smaller(width - first, span_), begin);
    // rows of the filter that meet rows of the picture, not zeros between them: every up_y-th from i on
    const int lowest = f_.terms > 1 ? term : 0, end_row = f_.terms > 1 ? term + 1 : f_.rows;
    const int start = int(oy) * p_.down_y - p_.top;
    int i = ceil_div(start + lowest, p_.up_y) * p_.up_y - start, row = (start + i) / p_.up_y, count = 0;
    for (; i < end_row; i += p_.up_y, ++row) {
      if (row < 0 || row >= p_.in.h) continue;
      rows_[count] = picture + (row * width + first + begin) * stride;
      row_weights_[count++] = f_.v[term * f_.rows + i];
    }
    if (count == 0 || begin == end) return false;
    A* out = mixed_ + begin * step_;
    const int64_t n = (end - begin) * step_;
    if (stride == step_) {
      const bool slack = x_end_ - (rows_[count - 1] + n) >= kSlack;
      weighted_sum<T, A>(out, rows_, row_weights_, count, n, false, slack);
    } else {
      for (int64_t x = begin; x < end; ++x, out += step_) {
        weighted_sum<T, A>(out, rows_, row_weights_, count, step_, false, false);
        for (int r = 0; r < count; ++r) rows_[r] += stride;
      }
    }
    for (int64_t i = 0; i < begin * step_; ++i) mixed_[i] = 0;
    for (int64_t i = end * step_; i < span_ * step_; ++i) mixed_[i] = 0;
    return true;
  }

  // down = 1: the pixels of one phase all meet the same taps, every up-th.
  void expand(const A* h, int64_t count, bool add) {
    for (int q = 0; q < p_.up_x; ++q) {
      const int from = q * f_.columns, used = used_[q];
      for (int k = 0; k < used; ++k) {
        shifted_[k] = mixed_ + column_[from + k] * step_;
        weights_[k] = h[tap_[from + k]];
      }
      sum_lines(q, weights_, used, step_, blocks(count - q, p_.up_x), add);
    }
  }

  // up = 1. Few channels: pixels `down` apart are brought together first, so that lines are long.
  void shrink(const A* h, int64_t count, bool add) {
    const int down = p_.down_x;
    if (step_ >= kSlack) {
      for (int j = 0; j < f_.columns; ++j) shifted_[j] = mixed_ + j * step_;
      sum_lines(0, h, f_.columns, down * step_, count, add);
      return;
    }
    for (int q = 0; q < down; ++q) {
      A* out = split_ + q * each_ * step_;
      const A* in = mixed_ + q * step_;
      const int64_t pixels = blocks(span_ - q, down);
      if (step_ == 1 && down == 2) {
#pragma omp simd
        for (int64_t i = 0; i < pixels; ++i) out[i] = in[2 * i];
      } else {
        for (int64_t i = 0; i < pixels; ++i)
          for (int64_t c = 0; c < step_; ++c) out[i * step_ + c] = in[i * down * step_ + c];
      }
    }
    for (int j = 0; j < f_.columns; ++j) shifted_[j] = split_ + (j % down * each_ + j / down) * step_;
    sum_lines(0, h, f_.columns, step_, count, add);
  }

  // Both at once: seldom, so pixel by pixel.
  void resample(const A* h, int64_t ox, int64_t first, int64_t count, bool add) {
    for (int64_t x = 0; x < count; ++x) {
      A* sums = sums_ + x * step_;
      for (int64_t c = 0; c < step_ && !add; ++c) sums[c] = 0;
      for (int j = 0; j < f_.columns; ++j) {
        const int position = int((ox + x) * p_.down_x + j - p_.left), column = floor_div(position, p_.up_x);
        if (column * p_.up_x != position) continue;
        for (int64_t c = 0; c < step_; ++c) sums[c] += h[j] * mixed_[(column - first) * step_ + c];
      }
    }
  }

  const Fir& p_;
  const Factors<A>& f_;
  int64_t step_, span_, each_, pitch_;
  const T* x_end_;
  Target target_;
  Buffer<A> mixed_, split_, sums_;
  Buffer<const T*> rows_;
  Buffer<A> row_weights_;
  Buffer<const A*> shifted_;
  Buffer<A> weights_;
  Buffer<int> used_, tap_, column_;
};

// Calls finish(n, c, oy, ox, count, step, sums, pitch) for pieces that cover the output: sums as Line::compute returns them.
// `y`, if there: the output itself, where sums that need no finish go directly.
template <class T, class A, class Finish>
void filter(const Fir& p, A* y, const Finish& finish) {
  const bool nhwc = p.in.channels_last;
  const int64_t channels = nhwc ? p.in.c : 1, pictures = nhwc ? p.in.n : p.in.n * p.in.c;
  const int64_t step = smaller(channels, 64);
  if (p.out.n * p.out.c * p.out.h * p.out.w == 0) return;
  // a tile's lines stay in the first-level cache; a multiple of up_x, so that phases start at the tile's first pixel
  const int64_t tile = smaller(larger(2048 / step / p.up_x, 8), blocks(p.out.w, p.up_x)) * p.up_x;
  const Factors<A> factors(p);
  parallel(pictures * p.out.h, p.out.w * channels, [&](int64_t begin, int64_t end) {
    Line<T, A> line(p, factors, step, tile), rest(p, factors, channels % step ? channels % step : step, tile);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t picture = item / p.out.h, oy = item % p.out.h;
      const T* x = static_cast<const T*>(p.x) + picture * p.in.h * p.in.w * channels;
      for (int64_t c = 0; c < channels; c += step)
        for (int64_t ox = 0; ox < p.out.w; ox += tile) {
          const int64_t count = smaller(tile, p.out.w - ox), now = smaller(step, channels - c);
          Line<T, A>& l = now == step ? line : rest;
          A* direct = y ? y + (item * p.out.w + ox) * channels + c : nullptr;
          if (const A* sums = l.compute(x + c, channels, oy, ox, count, direct))
            finish(nhwc ? picture : picture / p.in.c, nhwc ? c : picture % p.in.c, oy, ox, count, now, sums, l.pitch());
        }
    }
  });
}

}  // namespace
}  // namespace imago
