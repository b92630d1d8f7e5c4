// CUDA for a C++ compiler, to test kernels without a GPU: each thread is a fiber, blocks run one after the other.
// With IMAGO_EMULATION_SEED, blocks and threads run in a random order. A barrier or shuffle that not all threads reach
// aborts. Memory ordering, occupancy and launch limits other than sizes are not emulated.
#pragma once
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __shared__ static
#define __noinline__
#define __launch_bounds__(...)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  explicit dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
inline thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

struct __half {
  uint16_t bits;
  __half() = default;
  explicit __half(float value) {
    const _Float16 half = static_cast<_Float16>(value);
    std::memcpy(&bits, &half, sizeof bits);
  }
  operator float() const {
    _Float16 half;
    std::memcpy(&half, &bits, sizeof bits);
    return half;
  }
};

struct __nv_bfloat16 {
  uint16_t bits;
  __nv_bfloat16() = default;
  explicit __nv_bfloat16(float value) {
    uint32_t word;
    std::memcpy(&word, &value, sizeof word);
    // to nearest, ties to even; a NaN stays one
    bits = uint16_t(value != value ? 0x7fff : (word + 0x7fff + (word >> 16 & 1)) >> 16);
  }
  operator float() const {
    const uint32_t word = uint32_t(bits) << 16;
    float value;
    std::memcpy(&value, &word, sizeof value);
    return value;
  }
};

namespace emulation {

constexpr size_t kStackBytes = 256 * 1024;
constexpr unsigned kWarp = 32;
enum State { kReady, kAtBarrier, kAtShuffle, kDone };

struct Fiber {
  ucontext_t entry;
  jmp_buf resume;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  State state;
  bool started;
  unsigned shuffles;
  alignas(8) char slots[2][8];  // what it shuffles, for the even and the odd times
};

struct Block {
  std::vector<std::unique_ptr<Fiber>> fibers;
  unsigned size, current;
  jmp_buf scheduler;
  const std::function<void()>* kernel;
};
inline thread_local Block block;

inline void wait(State state) {
  Fiber& fiber = *block.fibers[block.current];
  fiber.state = state;
  if (!_setjmp(fiber.resume)) _longjmp(block.scheduler, 1);
}

// Contexts only to get onto a fiber's stack: switching by them takes two system calls.
inline void resume(Fiber& fiber) {
  if (_setjmp(block.scheduler)) return;
  if (std::exchange(fiber.started, true)) _longjmp(fiber.resume, 1);
  setcontext(&fiber.entry);
}

inline void fiber_main() {
  (*block.kernel)();
  wait(kDone);
}

inline void release(unsigned from, unsigned to, State state) {
  const auto waits = [&](unsigned i) { return block.fibers[i]->state == state; };
  for (unsigned i = from; i < to; ++i) {
    if (!waits(i)) return;
  }
  for (unsigned i = from; i < to; ++i) block.fibers[i]->state = kReady;
}

inline void run_block(const std::vector<unsigned>& order) {
  for (unsigned i = 0; i < block.size; ++i) {
    if (i == block.fibers.size()) block.fibers.push_back(std::make_unique<Fiber>());
    Fiber& fiber = *block.fibers[i];
    fiber.state = kReady;
    fiber.started = false;
    fiber.shuffles = 0;
    getcontext(&fiber.entry);
    fiber.entry.uc_stack.ss_sp = fiber.stack.get();
    fiber.entry.uc_stack.ss_size = kStackBytes;
    makecontext(&fiber.entry, fiber_main, 0);
  }
  for (bool progress = true; progress;) {
    progress = false;
    for (unsigned i : order) {
      if (block.fibers[i]->state != kReady) continue;
      progress = true;
      block.current = i;
      threadIdx = dim3(i);
      resume(*block.fibers[i]);
      const unsigned warp = i / kWarp * kWarp;
      if (block.fibers[i]->state == kAtShuffle) release(warp, std::min(warp + kWarp, block.size), kAtShuffle);
    }
    release(0, block.size, kAtBarrier);
  }
  for (unsigned i = 0; i < block.size; ++i) {
    if (block.fibers[i]->state == kDone) continue;
    std::fprintf(stderr, "emulation: thread %u waits at a barrier or shuffle that others never reach\n", i);
    std::abort();
  }
}

inline std::vector<unsigned> order_of(unsigned size, std::mt19937_64* random) {
  std::vector<unsigned> order(size);
  std::iota(order.begin(), order.end(), 0);
  if (random) std::shuffle(order.begin(), order.end(), *random);
  return order;
}

inline void run(dim3 grid, dim3 threads, const std::function<void()>& kernel) {
  static const char* const seed = std::getenv("IMAGO_EMULATION_SEED");
  static thread_local std::mt19937_64 generator(seed ? std::strtoull(seed, nullptr, 10) : 0);
  std::mt19937_64* const random = seed ? &generator : nullptr;
  gridDim = grid;
  blockDim = threads;
  block.size = threads.x;
  block.kernel = &kernel;
  for (unsigned i : order_of(grid.x, random)) {
    blockIdx = dim3(i);
    run_block(order_of(threads.x, random));
  }
}

}  // namespace emulation

inline void __syncthreads() { emulation::wait(emulation::kAtBarrier); }

template <class T>
void __stcg(T* to, T value) {
  *to = value;
}

template <class T>
T __ldg(const T* from) {
  return *from;
}

template <class T>
T __shfl_xor_sync(unsigned, T value, int bits) {
  using namespace emulation;
  const unsigned self = block.current, other = (self % kWarp ^ unsigned(bits)) + self / kWarp * kWarp;
  const unsigned turn = block.fibers[self]->shuffles++ % 2;
  std::memcpy(block.fibers[self]->slots[turn], &value, sizeof value);
  wait(kAtShuffle);
  std::memcpy(&value, block.fibers[other]->slots[turn], sizeof value);
  return value;
}

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9 };
using cudaStream_t = struct CUstream_st*;
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};
inline const char* cudaGetErrorString(cudaError_t) { return "invalid launch"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  const bool valid = config->gridDim.x > 0 && config->blockDim.x > 0 && config->blockDim.x <= 1024;
  if (!valid) return cudaErrorInvalidConfiguration;
  emulation::run(config->gridDim, config->blockDim, [&] { kernel(arguments...); });
  return cudaSuccess;
}
