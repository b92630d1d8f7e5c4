// The functions of the table, each in the file that its subject names.
#pragma once
#include "../contract.h"

namespace imago::cuda {

int upfirdn2d(const UpFirDn2d&, void* stream);
int bias_act(const BiasAct&, void* stream);
int bias_act_grad(const BiasActGrad&, void* stream);
int epilogue(const Epilogue&, void* stream);
int epilogue_grad(const EpilogueGrad&, void* stream);
int modulate(const Modulate&, void* stream);
int modulate_grad(const ModulateGrad&, void* stream);
int adain(const Adain&, void* stream);
int adain_grad(const AdainGrad&, void* stream);
int64_t scratch_bias_act_grad(const BiasActGrad&);
int64_t scratch_epilogue_grad(const EpilogueGrad&);
int64_t scratch_modulate_grad(const ModulateGrad&);
int64_t scratch_adain(const Adain&);
int64_t scratch_adain_grad(const AdainGrad&);

}  // namespace imago::cuda
