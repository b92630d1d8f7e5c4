// The second half of every sum: partial results, in an order that depends on the sizes alone.
#pragma once
#include "device.cuh"

namespace imago {

constexpr int kSumRows = 16, kSumThreads = 32 * kSumRows;

// out[g, i] = sum_k terms[g, k, i]
template <class A>
struct Sum {
  const A* terms;
  A* out;  // null: not wanted
  int64_t groups, count, width;
  int64_t blocks() const { return out ? groups * blocks_for(width, 32) : 0; }
};

// The sum of `count` terms that lie `width` apart, for the 32 columns of a block; valid in its first 32 threads.
template <class A>
__device__ A sum_of_column(const A* terms, int64_t count, int64_t width, bool inside) {
  __shared__ A rows[kSumThreads];
  A sum = 0;
  if (inside) {
#pragma unroll 4
    for (int64_t k = threadIdx.x / 32; k < count; k += kSumRows) sum += terms[k * width];
  }
  __syncthreads();  // of the previous call
  rows[threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.x < 32) {
    for (int row = 1; row < kSumRows; ++row) sum += rows[row * 32 + threadIdx.x];
  }
  return sum;
}

// Up to three sums in one launch.
int add_up(const Sum<float>& a, const Sum<float>& b, const Sum<float>& c, void* stream);
int add_up(const Sum<double>& a, const Sum<double>& b, const Sum<double>& c, void* stream);

}  // namespace imago
