// The arithmetic of one element, shared by nvcc and g++.
#pragma once
#include <cmath>

#include "contract.h"

#ifdef __CUDACC__
#define IMAGO_FN __host__ __device__ __forceinline__
#else
#define IMAGO_FN inline __attribute__((always_inline))
#endif

namespace imago {

// Floor and ceiling of a / b for b > 0 and any a.
IMAGO_FN int floor_div(int a, int b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }
IMAGO_FN int ceil_div(int a, int b) { return -floor_div(-a, b); }

template <class A>
IMAGO_FN A clamped(A y, A limit) {  // limit < 0: none. NaN stays.
  return limit < 0 ? y : y < -limit ? -limit : y > limit ? limit : y;
}

// Klambauer et al. 2017, "Self-Normalizing Neural Networks".
constexpr double kSeluAlpha = 1.6732632423543772848170429916717;
constexpr double kSeluScale = 1.0507009873554804934193349852946;

template <Activation act, class A>
IMAGO_FN A activation(A x, A alpha) {
  if constexpr (act == kLinear) return x;
  if constexpr (act == kRelu) return x < 0 ? A(0) : x;
  if constexpr (act == kLrelu) return x < 0 ? x * alpha : x;
  if constexpr (act == kTanh) return std::tanh(x);
  if constexpr (act == kSigmoid) return 1 / (1 + std::exp(-x));
  if constexpr (act == kElu) return x < 0 ? std::expm1(x) : x;
  if constexpr (act == kSelu) return A(kSeluScale) * (x < 0 ? A(kSeluAlpha) * std::expm1(x) : x);
  if constexpr (act == kSoftplus) return x > 0 ? x + std::log1p(std::exp(-x)) : std::log1p(std::exp(x));
  if constexpr (act == kSwish) return x / (1 + std::exp(-x));
}

// First or second derivative at x; at a kink the one from below, as PyTorch has it.
template <Activation act, int order, class A>
IMAGO_FN A derivative(A x, A alpha) {
  if constexpr (act == kTanh) {
    const A t = std::tanh(x), d = 1 - t * t;
    return order == 1 ? d : -2 * t * d;
  } else if constexpr (act == kElu || act == kSelu) {
    const A scale = act == kSelu ? A(kSeluScale) : A(1), below = act == kSelu ? A(kSeluScale * kSeluAlpha) : A(1);
    return x > 0 ? (order == 1 ? scale : A(0)) : below * std::exp(x);
  } else if constexpr (act == kSigmoid || act == kSoftplus || act == kSwish) {
    const A s = 1 / (1 + std::exp(-x)), d = s * (1 - s);
    if constexpr (act == kSoftplus) return order == 1 ? s : d;
    if constexpr (act == kSigmoid) return order == 1 ? d : d * (1 - 2 * s);
    return order == 1 ? s + x * d : d * (2 + x * (1 - 2 * s));
  } else {  // piecewise linear; x may be the output, whose sign is the same
    if (order == 2) return 0;
    return act == kLinear || x > 0 ? A(1) : act == kRelu ? A(0) : alpha;
  }
}

}  // namespace imago
