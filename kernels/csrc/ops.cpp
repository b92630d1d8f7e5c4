// Glue between torch's stable ABI and a backend: checks, layouts, allocation. Registers the ops that kernels/*.py define,
// for the dispatch key IMAGO_KEY. Built under one torch, it loads under others, with or without CUDA.
#ifdef IMAGO_CUDA
#include <torch/csrc/stable/accelerator.h>
#endif
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>
#include <vector>

#include "contract.h"

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Optional = std::optional<Tensor>;

#ifdef IMAGO_CUDA
extern "C" const imago::Backend* imago_cuda();
#ifndef IMAGO_EMULATED
// weak: a torch without CUDA lacks it, and must still be able to load this library
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void**);
#endif
#else
extern "C" const imago::Backend* imago_cpu_base();
extern "C" const imago::Backend* imago_cpu_v3();
extern "C" const imago::Backend* imago_cpu_v4();
#endif

namespace imago {
namespace {

#ifndef IMAGO_CUDA
const Backend* best_for_this_cpu() {  // of those that are compiled into this library; null: none runs here
#ifdef IMAGO_HAS_V4
  if (__builtin_cpu_supports("x86-64-v4")) return imago_cpu_v4();
#endif
#ifdef IMAGO_HAS_V3
  if (__builtin_cpu_supports("x86-64-v3")) return imago_cpu_v3();
#endif
#ifdef IMAGO_HAS_BASE
  return imago_cpu_base();
#endif
  return nullptr;
}
#endif

const Backend& backend() {
#ifdef IMAGO_CUDA
  static const Backend* found = imago_cuda();
#else
  static const Backend* found = best_for_this_cpu();
  STD_TORCH_CHECK(found, "these kernels are compiled for a CPU with more instructions than this one");
#endif
  return *found;
}

#if defined(IMAGO_CUDA) && !defined(IMAGO_EMULATED)
// Makes the tensor's device the current one, and finds the stream that torch works on.
struct Place {
  explicit Place(const Tensor& x) : guard(x.get_device_index()) {
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream, "this torch has no CUDA");
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
  }
  torch::stable::accelerator::DeviceGuard guard;
  void* stream = nullptr;
};
#else
struct Place {
  explicit Place(const Tensor&) {}
  void* stream = nullptr;
};
#endif

template <class Params>
void call(int (*function)(const Params&, void*), const Params& params, const Tensor& x) {
  const int code = function(params, Place(x).stream);
  STD_TORCH_CHECK(code == 0, "kernel failed: ", backend().error_text(code), " (error ", code, ")");
}

Dtype dtype_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float: return kFloat32;
    case ScalarType::Double: return kFloat64;
    case ScalarType::BFloat16: return kBFloat16;
    case ScalarType::Half: return kFloat16;
    default: STD_TORCH_CHECK(false, "maps must be float32, float64, bfloat16 or float16");
  }
}

ScalarType small_type(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

bool is_nhwc(const Tensor& x) {  // dense as such; what is also dense as NCHW counts as NCHW
  return x.dim() == 4 && !x.is_contiguous() && x.stride(1) == 1 && x.stride(3) == x.size(1) &&
         x.stride(2) == x.size(1) * x.size(3) && x.stride(0) == x.size(1) * x.size(3) * x.size(2);
}

MemoryFormat format(bool channels_last) { return channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous; }

Tensor dense(const Tensor& x, bool channels_last) { return torch::stable::contiguous(x, format(channels_last)); }

Tensor empty(const Tensor& like, std::vector<int64_t> sizes, bool channels_last, ScalarType type) {
  return torch::stable::empty(sizes, type, std::nullopt, like.device(), std::nullopt, format(channels_last));
}

Tensor empty_map(const Tensor& like, bool channels_last) {
  return empty(like, {like.sizes().begin(), like.sizes().end()}, channels_last, like.scalar_type());
}

Tensor empty_small(const Tensor& like, std::vector<int64_t> sizes) {
  return empty(like, std::move(sizes), false, small_type(like));
}

Tensor scratch(const Tensor& like, int64_t bytes) { return empty(like, {bytes}, false, ScalarType::Byte); }

Shape shape_of(const Tensor& x, bool channels_last) {
  STD_TORCH_CHECK(x.dim() == 4, "maps must be [N, C, H, W]");
  return {x.size(0), x.size(1), x.size(2), x.size(3), channels_last};
}

void check_same(const Tensor& a, const Tensor& b) {
  bool same = a.dim() == b.dim() && a.scalar_type() == b.scalar_type() && a.device() == b.device();
  for (int64_t i = 0; same && i < a.dim(); ++i) same = a.size(i) == b.size(i);
  STD_TORCH_CHECK(same, "maps of one call must share sizes, type and device");
}

// A small tensor beside `x`, dense; the one given and its data live as long as the caller's `kept`.
const void* small(const Tensor& x, const Optional& t, int64_t numel, Tensor& kept) {
  if (!t) return nullptr;
  STD_TORCH_CHECK(t->numel() == numel && t->scalar_type() == small_type(x) && t->device() == x.device(),
                  "a small tensor does not fit the maps: ", numel, " elements of float32 (float64 beside float64) expected");
  kept = torch::stable::contiguous(*t);
  return kept.data_ptr();
}

bool check_noise(const Shape& s, const Optional& noise) {  // true: one for all samples
  return noise && noise->numel() == s.h * s.w && s.n != 1;
}

int64_t noise_size(const Shape& s, const Optional& noise) { return s.h * s.w * (check_noise(s, noise) ? 1 : s.n); }

Tensor upfirdn2d(const Tensor& input, const Tensor& taps, int64_t up_x, int64_t up_y, int64_t down_x, int64_t down_y,
                 int64_t left, int64_t right, int64_t top, int64_t bottom, bool flip, double gain) {
  const bool nhwc = is_nhwc(input);
  const Tensor x = dense(input, nhwc);
  const Shape in = shape_of(x, nhwc);
  STD_TORCH_CHECK(taps.dim() == 2 && taps.numel() > 0, "taps must be [height, width]");
  STD_TORCH_CHECK(up_x > 0 && up_y > 0 && down_x > 0 && down_y > 0, "up and down must be at least 1");
  const int64_t out_h = (in.h * up_y + top + bottom - taps.size(0)) / down_y + 1;
  const int64_t out_w = (in.w * up_x + left + right - taps.size(1)) / down_x + 1;
  STD_TORCH_CHECK(out_h > 0 && out_w > 0, "the output would be empty");
  Tensor kept;
  const void* f = small(x, taps, taps.numel(), kept);
  const Tensor y = empty(x, {in.n, in.c, out_h, out_w}, nhwc, x.scalar_type());
  call(backend().upfirdn2d,
       UpFirDn2d{dtype_of(x), in, shape_of(y, nhwc), x.data_ptr(), f, y.data_ptr(), int32_t(taps.size(0)),
                 int32_t(taps.size(1)), int32_t(up_x), int32_t(up_y), int32_t(down_x), int32_t(down_y), int32_t(left),
                 int32_t(top), flip, gain},
       x);
  return y;
}

struct Runs {
  int64_t outer, channels, inner;
};

Runs runs(const Tensor& x, int64_t dim, bool nhwc) {
  STD_TORCH_CHECK(dim >= 0 && dim < x.dim(), "dim is out of range");
  if (nhwc) return {x.size(0) * x.size(2) * x.size(3), x.size(1), 1};
  Runs r{1, x.size(dim), 1};
  for (int64_t i = 0; i < dim; ++i) r.outer *= x.size(i);
  for (int64_t i = dim + 1; i < x.dim(); ++i) r.inner *= x.size(i);
  return r;
}

Tensor bias_act(const Tensor& input, const Optional& b, int64_t dim, int64_t act, double alpha, double gain, double clamp) {
  const bool nhwc = dim == 1 && is_nhwc(input);
  const Tensor x = dense(input, nhwc);
  const Runs r = runs(x, dim, nhwc);
  Tensor kept;
  const void* bias = small(x, b, r.channels, kept);
  const Tensor y = empty_map(x, nhwc);
  call(backend().bias_act,
       BiasAct{dtype_of(x), r.outer, r.channels, r.inner, x.data_ptr(), bias, y.data_ptr(), Activation(act), alpha, gain,
               clamp},
       x);
  return y;
}

std::tuple<Tensor, Tensor> bias_act_grad(const Tensor& grad, const Tensor& reference, const Optional& b, int64_t dim, int64_t act,
                                         int64_t order, double alpha, double gain, double clamp, bool sum) {
  check_same(grad, reference);
  const bool nhwc = dim == 1 && is_nhwc(reference);
  const Tensor ref = dense(reference, nhwc), g = dense(grad, nhwc);
  const Runs r = runs(ref, dim, nhwc);
  Tensor kept;
  const void* bias = small(ref, b, r.channels, kept);
  const Tensor dx = empty_map(ref, nhwc), db = empty_small(ref, {sum ? r.channels : 0});
  BiasActGrad p{dtype_of(ref), r.outer, r.channels, r.inner, g.data_ptr(), ref.data_ptr(), bias, dx.data_ptr(),
                sum ? db.data_ptr() : nullptr, nullptr, Activation(act), int32_t(order), alpha, gain, clamp};
  const Tensor space = scratch(ref, backend().scratch_bias_act_grad(p));
  p.scratch = space.data_ptr();
  call(backend().bias_act_grad, p, ref);
  return {dx, db};
}

Tensor epilogue(const Tensor& input, const Optional& taps, int64_t left, int64_t right, int64_t top, int64_t bottom, bool flip,
                double fir_gain, const Optional& scale, const Optional& noise, const Optional& b, double alpha, double gain,
                double clamp) {
  const bool nhwc = is_nhwc(input);
  const Tensor x = dense(input, nhwc);
  const Shape in = shape_of(x, nhwc);
  Shape out = in;
  Tensor kept_taps, kept_scale, kept_noise, kept_b;
  const void* f = small(x, taps, taps ? taps->numel() : 0, kept_taps);
  if (taps) {
    STD_TORCH_CHECK(taps->dim() == 2 && taps->numel() > 0, "taps must be [height, width]");
    out.h += top + bottom - taps->size(0) + 1;
    out.w += left + right - taps->size(1) + 1;
    STD_TORCH_CHECK(out.h > 0 && out.w > 0, "the output would be empty");
  }
  const Tensor y = empty(x, {out.n, out.c, out.h, out.w}, nhwc, x.scalar_type());
  call(backend().epilogue,
       Epilogue{dtype_of(x), in, out, x.data_ptr(), f, small(x, scale, out.n * out.c, kept_scale),
                small(x, noise, noise_size(out, noise), kept_noise), small(x, b, out.c, kept_b), y.data_ptr(),
                int32_t(taps ? taps->size(0) : 0), int32_t(taps ? taps->size(1) : 0), int32_t(left), int32_t(top), flip,
                check_noise(out, noise), fir_gain, alpha, gain, clamp},
       x);
  return y;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> epilogue_grad(const Tensor& grad, const Tensor& output, const Optional& scale,
                                                         const Optional& noise, const Optional& b, double alpha, double gain,
                                                         double clamp, bool for_scale, bool for_noise, bool for_b) {
  check_same(grad, output);
  const bool nhwc = is_nhwc(output);
  const Tensor y = dense(output, nhwc), g = dense(grad, nhwc);
  const Shape s = shape_of(y, nhwc);
  Tensor kept_scale, kept_noise, kept_b;
  const Tensor dv = empty_map(y, nhwc), dscale = empty_small(y, {for_scale ? s.n : 0, s.c}),
               dnoise = empty_small(y, {for_noise ? s.n : 0, 1, s.h, s.w}), db = empty_small(y, {for_b ? s.c : 0});
  EpilogueGrad p{dtype_of(y), s, g.data_ptr(), y.data_ptr(), small(y, scale, s.n * s.c, kept_scale),
                 small(y, noise, noise_size(s, noise), kept_noise), small(y, b, s.c, kept_b), dv.data_ptr(),
                 for_scale ? dscale.data_ptr() : nullptr, for_noise ? dnoise.data_ptr() : nullptr,
                 for_b ? db.data_ptr() : nullptr, nullptr, check_noise(s, noise), alpha, gain, clamp};
  const Tensor space = scratch(y, backend().scratch_epilogue_grad(p));
  p.scratch = space.data_ptr();
  call(backend().epilogue_grad, p, y);
  return {dv, dscale, dnoise, db};
}

Tensor modulate(const Tensor& input, const Tensor& scale) {
  const bool nhwc = is_nhwc(input);
  const Tensor x = dense(input, nhwc), y = empty_map(x, nhwc);
  const Shape s = shape_of(x, nhwc);
  Tensor kept;
  call(backend().modulate, Modulate{dtype_of(x), s, x.data_ptr(), small(x, scale, s.n * s.c, kept), y.data_ptr()}, x);
  return y;
}

std::tuple<Tensor, Tensor> modulate_grad(const Tensor& grad, const Tensor& input, const Tensor& scale, bool for_scale) {
  check_same(grad, input);
  const bool nhwc = is_nhwc(input);
  const Tensor x = dense(input, nhwc), g = dense(grad, nhwc), dx = empty_map(x, nhwc);
  const Shape s = shape_of(x, nhwc);
  const Tensor dscale = empty_small(x, {for_scale ? s.n : 0, s.c});
  Tensor kept;
  ModulateGrad p{dtype_of(x), s, g.data_ptr(), x.data_ptr(), small(x, scale, s.n * s.c, kept), dx.data_ptr(),
                 for_scale ? dscale.data_ptr() : nullptr, nullptr};
  const Tensor space = scratch(x, backend().scratch_modulate_grad(p));
  p.scratch = space.data_ptr();
  call(backend().modulate_grad, p, x);
  return {dx, dscale};
}

std::tuple<Tensor, Tensor, Tensor> adain(const Tensor& input, const Optional& noise, const Optional& b, const Tensor& scale,
                                         const Tensor& shift, double alpha, double gain, double eps) {
  const bool nhwc = is_nhwc(input);
  const Tensor x = dense(input, nhwc), y = empty_map(x, nhwc);
  const Shape s = shape_of(x, nhwc);
  const Tensor mean = empty_small(x, {s.n, s.c}), rstd = empty_small(x, {s.n, s.c});
  Tensor kept_noise, kept_b, kept_scale, kept_shift;
  Adain p{dtype_of(x), s, x.data_ptr(), small(x, noise, noise_size(s, noise), kept_noise), small(x, b, s.c, kept_b),
          small(x, scale, s.n * s.c, kept_scale), small(x, shift, s.n * s.c, kept_shift), y.data_ptr(), mean.data_ptr(),
          rstd.data_ptr(), nullptr, check_noise(s, noise), alpha, gain, eps};
  const Tensor space = scratch(x, backend().scratch_adain(p));
  p.scratch = space.data_ptr();
  call(backend().adain, p, x);
  return {y, mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> adain_grad(const Tensor& grad, const Tensor& input, const Optional& noise,
                                                              const Optional& b, const Tensor& scale, const Tensor& mean,
                                                              const Tensor& rstd, double alpha, double gain, bool for_noise,
                                                              bool for_b) {
  check_same(grad, input);
  const bool nhwc = is_nhwc(input);
  const Tensor x = dense(input, nhwc), g = dense(grad, nhwc), dx = empty_map(x, nhwc);
  const Shape s = shape_of(x, nhwc);
  const Tensor dscale = empty_small(x, {s.n, s.c}), dshift = empty_small(x, {s.n, s.c}),
               dnoise = empty_small(x, {for_noise ? s.n : 0, 1, s.h, s.w}), db = empty_small(x, {for_b ? s.c : 0});
  Tensor kept_noise, kept_b, kept_scale, kept_mean, kept_rstd;
  AdainGrad p{dtype_of(x), s, g.data_ptr(), x.data_ptr(), small(x, noise, noise_size(s, noise), kept_noise),
              small(x, b, s.c, kept_b), small(x, scale, s.n * s.c, kept_scale), small(x, mean, s.n * s.c, kept_mean),
              small(x, rstd, s.n * s.c, kept_rstd), dx.data_ptr(), dscale.data_ptr(), dshift.data_ptr(),
              for_noise ? dnoise.data_ptr() : nullptr, for_b ? db.data_ptr() : nullptr, nullptr, check_noise(s, noise),
              alpha, gain};
  const Tensor space = scratch(x, backend().scratch_adain_grad(p));
  p.scratch = space.data_ptr();
  call(backend().adain_grad, p, x);
  return {dx, dscale, dshift, dnoise, db};
}

}  // namespace
}  // namespace imago

STABLE_TORCH_LIBRARY_IMPL(imago, IMAGO_KEY, library) {
  library.impl("upfirdn2d", TORCH_BOX(&imago::upfirdn2d));
  library.impl("bias_act", TORCH_BOX(&imago::bias_act));
  library.impl("bias_act_grad", TORCH_BOX(&imago::bias_act_grad));
  library.impl("epilogue", TORCH_BOX(&imago::epilogue));
  library.impl("epilogue_grad", TORCH_BOX(&imago::epilogue_grad));
  library.impl("modulate", TORCH_BOX(&imago::modulate));
  library.impl("modulate_grad", TORCH_BOX(&imago::modulate_grad));
  library.impl("adain", TORCH_BOX(&imago::adain));
  library.impl("adain_grad", TORCH_BOX(&imago::adain_grad));
}
