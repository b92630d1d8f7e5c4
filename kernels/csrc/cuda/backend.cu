#include "backend.cuh"

#include <cuda_runtime.h>

namespace {

const char* error_text(int code) { return cudaGetErrorString(static_cast<cudaError_t>(code)); }

constexpr imago::Backend kBackend = {
    imago::kContract,
    error_text,
    imago::cuda::upfirdn2d,
    imago::cuda::bias_act,
    imago::cuda::bias_act_grad,
    imago::cuda::epilogue,
    imago::cuda::epilogue_grad,
    imago::cuda::modulate,
    imago::cuda::modulate_grad,
    imago::cuda::adain,
    imago::cuda::adain_grad,
    imago::cuda::scratch_bias_act_grad,
    imago::cuda::scratch_epilogue_grad,
    imago::cuda::scratch_modulate_grad,
    imago::cuda::scratch_adain,
    imago::cuda::scratch_adain_grad,
};

}  // namespace

extern "C" const imago::Backend* imago_cuda() { return &kBackend; }
