// What every kernel here needs: types, 16-byte vectors, launching. Sums and small tensors are Accumulator<T>.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <climits>
#include <cstring>
#include <type_traits>

#include "../maths.h"

namespace imago {

template <class T>
using Accumulator = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Elements that a thread holds; doubles are for checks, not for speed.
template <class T>
constexpr int kVector = std::is_same_v<T, double> ? 1 : 16 / int(sizeof(T));

template <class T, int n = kVector<T>>
struct alignas(n * sizeof(T)) Pack {
  T v[n];
};

// A pack as it lies in memory. nvcc unpacks a Pack that it loads at once, and so waits before it starts the next load.
template <class T>
using Bits = std::conditional_t<kVector<T> == 1, T, uint4>;

template <class T>
__device__ Bits<T> bits_of(const Pack<T>& pack) {
  Bits<T> bits;
  memcpy(&bits, &pack, sizeof bits);
  return bits;
}

template <class T>
__device__ Pack<T> pack_of(const Bits<T>& bits) {
  Pack<T> pack;
  memcpy(&pack, &bits, sizeof pack);
  return pack;
}

template <class T>
__device__ void store_vector(const Pack<T>& pack, T* to) {
  __stcg(reinterpret_cast<Bits<T>*>(to), bits_of(pack));
}

template <class P>
bool aligned(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % alignof(P) == 0;
}

inline int64_t blocks_for(int64_t items, int64_t each) { return (items + each - 1) / each; }

// Runs f(T()) for the element type.
template <class F>
int with_type(Dtype dtype, F f) {
  switch (dtype) {
    case kFloat32: return f(float());
    case kFloat64: return f(double());
    case kBFloat16: return f(__nv_bfloat16());
    case kFloat16: return f(__half());
  }
  return cudaErrorInvalidValue;
}

template <class... Parameters, class... Arguments>
int launch(void (*kernel)(Parameters...), int64_t blocks, int threads, void* stream, const Arguments&... arguments) {
  if (blocks == 0) return cudaSuccess;
  if (blocks > INT_MAX) return cudaErrorInvalidConfiguration;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(blocks));
  config.blockDim = dim3(unsigned(threads));
  config.stream = static_cast<cudaStream_t>(stream);
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, arguments...);
  if (error != cudaSuccess) cudaGetLastError();  // reported here, not by the next CUDA call of somebody else
  return error;
}

}  // namespace imago
