// The functions of the table, each in the file that its subject names. All of these files are compiled once per instruction
// set IMAGO_ISA: base, v3 (AVX2) or v4 (AVX-512), and each set has its own namespace in the library.
#pragma once
#include "../contract.h"

namespace imago::IMAGO_ISA {

int upfirdn2d(const UpFirDn2d&, void*);
int bias_act(const BiasAct&, void*);
int bias_act_grad(const BiasActGrad&, void*);
int epilogue(const Epilogue&, void*);
int epilogue_grad(const EpilogueGrad&, void*);
int modulate(const Modulate&, void*);
int modulate_grad(const ModulateGrad&, void*);
int adain(const Adain&, void*);
int adain_grad(const AdainGrad&, void*);

}  // namespace imago::IMAGO_ISA
