#include "sums.cuh"

namespace imago {
namespace {

template <class A>
__global__ void __launch_bounds__(kSumThreads)
    add_up_kernel(Sum<A> a, Sum<A> b, Sum<A> c, unsigned end_a, unsigned end_b) {
  const Sum<A> sum = blockIdx.x < end_a ? a : blockIdx.x < end_b ? b : c;
  const unsigned block = blockIdx.x - (blockIdx.x < end_a ? 0 : blockIdx.x < end_b ? end_a : end_b);
  const unsigned columns = unsigned((sum.width + 31) / 32);
  const int64_t group = block / columns, i = block % columns * int64_t(32) + threadIdx.x % 32;
  const bool inside = i < sum.width;
  const A total = sum_of_column(sum.terms + group * sum.count * sum.width + i, sum.count, sum.width, inside);
  if (inside && threadIdx.x < 32) sum.out[group * sum.width + i] = total;
}

template <class A>
int launch_sums(const Sum<A>& a, const Sum<A>& b, const Sum<A>& c, void* stream) {
  const int64_t end_a = a.blocks(), end_b = end_a + b.blocks();
  return launch(add_up_kernel<A>, end_b + c.blocks(), kSumThreads, stream, a, b, c, unsigned(end_a), unsigned(end_b));
}

}  // namespace

int add_up(const Sum<float>& a, const Sum<float>& b, const Sum<float>& c, void* stream) {
  return launch_sums(a, b, c, stream);
}

int add_up(const Sum<double>& a, const Sum<double>& b, const Sum<double>& c, void* stream) {
  return launch_sums(a, b, c, stream);
}

}  // namespace imago
