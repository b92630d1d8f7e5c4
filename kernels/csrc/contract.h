// What every backend implements: a table of functions over plain structs of pointers and sizes. No torch, no CUDA.
//
// Maps are dense, [N, C, H, W] or, with channels_last, [N, H, W, C] in memory; all maps of a call share one layout and
// one type. Small tensors (taps, biases, scales, noise, sums over maps) hold `Accumulator<T>`: double beside double maps,
// float beside all others; arithmetic is done in it. Pointers may be unaligned beyond their element, no two overlap,
// any size may be 0. Sums run in an order that depends on the sizes alone, so a result is the same in every run.
#pragma once
#include <cstdint>

namespace imago {

constexpr int kContract = 1;  // changes with anything below

enum Dtype : int32_t { kFloat32, kFloat64, kBFloat16, kFloat16 };

struct Shape {
  int64_t n, c, h, w;
  bool channels_last;
};

// y[oy, ox] = gain * sum_{i, j} f[i, j] * u[oy * down_y + i - top, ox * down_x + j - left],
// u: x with up - 1 zeros after each pixel, 0 outside; f: taps, turned by 180 degrees unless `flip`.
struct UpFirDn2d {
  Dtype dtype;
  Shape in, out;
  const void *x, *taps;  // taps [taps_h, taps_w]
  void* y;
  int32_t taps_h, taps_w, up_x, up_y, down_x, down_y, left, top;  // left, top: zeros before, negative to crop
  bool flip;
  double gain;
};

// The piecewise linear ones first: the sign of their output tells the slope.
enum Activation : int32_t { kLinear, kRelu, kLrelu, kTanh, kSigmoid, kElu, kSelu, kSoftplus, kSwish };

// y = clamp(gain * act(x + b[c])), over a dense [outer, channels, inner].
struct BiasAct {
  Dtype dtype;
  int64_t outer, channels, inner;
  const void *x, *b;  // b [channels] or null
  void* y;
  Activation act;
  double alpha, gain, clamp;  // alpha: slope of lrelu below 0; clamp < 0: none
};

// dx = g * gain * act^(order)(x + b) where |y| < clamp, else 0; db[c] = sum of dx, if db is not null.
// ref: y for the piecewise linear activations (order 1 only; b null), x for the others (order 1 or 2).
struct BiasActGrad {
  Dtype dtype;
  int64_t outer, channels, inner;
  const void *g, *ref, *b;
  void *dx, *db;
  void* scratch;
  Activation act;
  int32_t order;
  double alpha, gain, clamp;
};

// End of a modulated convolution: v = FIR(x), as upfirdn2d without up and down, or x if taps are null;
// u = v * scale[n, c] + noise[n or 0, y, x] + b[c];  y = clamp(gain * lrelu(u, alpha)).
struct Epilogue {
  Dtype dtype;
  Shape in, out;
  const void *x, *taps, *scale, *noise, *b;  // each small one may be null: 1 or 0
  void* y;
  int32_t taps_h, taps_w, left, top;
  bool flip, one_noise;  // one_noise: [1, H, W] for all samples, else [N, H, W]
  double fir_gain, alpha, gain, clamp;  // alpha > 0, gain > 0
};

// In one pass over g and y: du = g * gain * (y > 0 ? 1 : alpha) where |y| < clamp, else 0;
// dv = du * scale;  db[c] = sum_{n, y, x} du;  dnoise[n, y, x] = sum_c du;
// dscale[n, c] = sum_{y, x} du * v, where v = (u - noise - b) / scale and u is recovered from y.
struct EpilogueGrad {
  Dtype dtype;
  Shape shape;
  const void *g, *y, *scale, *noise, *b;
  void *dv, *dscale, *dnoise, *db;  // all but dv may be null: not wanted. dnoise [N, H, W] also with one_noise
  void* scratch;
  bool one_noise;
  double alpha, gain, clamp;
};

// y = x * scale[n, c].
struct Modulate {
  Dtype dtype;
  Shape shape;
  const void *x, *scale;
  void* y;
};

// In one pass: dx = g * scale; dscale[n, c] = sum_{y, x} g * x, if not null.
struct ModulateGrad {
  Dtype dtype;
  Shape shape;
  const void *g, *x, *scale;
  void *dx, *dscale;
  void* scratch;
};

// StyleGAN's layer end: u = gain * lrelu(x + noise + b, alpha); over each [n, c]: mean and rstd = 1 / sqrt(variance + eps)
// of u (biased); y = (u - mean) * rstd * scale[n, c] + shift[n, c].
struct Adain {
  Dtype dtype;
  Shape shape;
  const void *x, *noise, *b, *scale, *shift;  // noise and b may be null
  void *y, *mean, *rstd;                      // mean, rstd [N, C]
  void* scratch;
  bool one_noise;
  double alpha, gain, eps;
};

// With k = (u - mean) * rstd: dshift = sum g; dscale = sum g * k (both [n, c]);
// du = scale * rstd * (g - dshift / HW - k * dscale / HW); dx = du * gain * (x + noise + b > 0 ? 1 : alpha);
// db[c] = sum_{n, y, x} dx;  dnoise[n, y, x] = sum_c dx.
struct AdainGrad {
  Dtype dtype;
  Shape shape;
  const void *g, *x, *noise, *b, *scale, *mean, *rstd;
  void *dx, *dscale, *dshift, *dnoise, *db;  // dnoise and db may be null: not wanted
  void* scratch;
  bool one_noise;
  double alpha, gain;
};

// Each function returns 0, or the backend's error code. `stream` is a cudaStream_t, or unused.
// scratch_*: bytes that the call of the same name needs at `scratch`, a function of sizes and types alone.
struct Backend {
  int contract;
  const char* (*error_text)(int code);
  int (*upfirdn2d)(const UpFirDn2d&, void* stream);
  int (*bias_act)(const BiasAct&, void* stream);
  int (*bias_act_grad)(const BiasActGrad&, void* stream);
  int (*epilogue)(const Epilogue&, void* stream);
  int (*epilogue_grad)(const EpilogueGrad&, void* stream);
  int (*modulate)(const Modulate&, void* stream);
  int (*modulate_grad)(const ModulateGrad&, void* stream);
  int (*adain)(const Adain&, void* stream);
  int (*adain_grad)(const AdainGrad&, void* stream);
  int64_t (*scratch_bias_act_grad)(const BiasActGrad&);
  int64_t (*scratch_epilogue_grad)(const EpilogueGrad&);
  int64_t (*scratch_modulate_grad)(const ModulateGrad&);
  int64_t (*scratch_adain)(const Adain&);
  int64_t (*scratch_adain_grad)(const AdainGrad&);
};

}  // namespace imago
