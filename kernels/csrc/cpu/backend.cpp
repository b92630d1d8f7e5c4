// The CPU backend's table, imago_cpu_base(), imago_cpu_v3() or imago_cpu_v4().
#include "backend.h"

#define IMAGO_JOIN(a, b) a##b
#define IMAGO_NAME(isa) IMAGO_JOIN(imago_cpu_, isa)

extern "C" const imago::Backend* IMAGO_NAME(IMAGO_ISA)() {
  using namespace imago;
  using namespace imago::IMAGO_ISA;
  static const Backend backend{
      kContract,
      [](int) { return "no memory"; },
      upfirdn2d, bias_act, bias_act_grad, epilogue, epilogue_grad, modulate, modulate_grad, adain, adain_grad,
      [](const BiasActGrad&) { return int64_t(0); },
      [](const EpilogueGrad&) { return int64_t(0); },
      [](const ModulateGrad&) { return int64_t(0); },
      [](const Adain&) { return int64_t(0); },
      [](const AdainGrad&) { return int64_t(0); },
  };
  return &backend;
}
