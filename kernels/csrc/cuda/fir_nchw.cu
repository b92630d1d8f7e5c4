// Channels first: a block takes a tile of a plane into shared memory, then each thread filters kRows x 4 outputs, whose
// taps and window positions are known to the compiler.
#include "fir.cuh"

namespace imago {
namespace {

constexpr int kColumns = 4;  // outputs of a thread along x: a vector to store, and vectors to read from the tile

// One axis: `taps` of them, up or down by 2 or neither. Up-sampling starts at an even position, with one more tap (a 0
// before or after), so that which taps meet which pixel does not depend on the padding.
template <int taps, int up, int down>
struct Axis {
  static constexpr int kUp = up, kDown = down, kTaps = taps, kPadded = up == 2 ? taps + 1 : taps;
  IMAGO_FN static constexpr int window(int outputs) { return ((outputs - 1) * down + kPadded - 1) / up + 1; }
};

IMAGO_FN int clamped_index(int i, int size) { return i < 0 ? 0 : i < size ? i : size - 1; }

template <class X, class Y>
struct Tiling {
  static constexpr int kThreads = X::kDown * Y::kDown > 1 ? 128 : 256, kRows = Y::kDown == 2 ? 4 : 8;
  IMAGO_FN static constexpr int pitch(int threads_x) { return (X::window(kColumns * threads_x) + 3) / 4 * 4; }
  static constexpr int height(int threads_x) { return Y::window(kRows * (kThreads / threads_x)); }
  static constexpr int floats(int threads_x) { return pitch(threads_x) * height(threads_x); }
  static constexpr int kFloats = floats(32) > floats(8) ? floats(32) : floats(8);
  static_assert(kFloats * sizeof(float) <= 48 * 1024, "more than a block gets");
};

// A tile of a plane, with zeros outside of the picture. Loads are under way in groups: a pixel outside is read as the
// nearest one inside, not branched around.
template <class T>
__device__ void fill(float* tile, int pitch, int height, const T* x, int left, int top, int in_w, int in_h) {
  constexpr int kAtOnce = 8;
  const int warps = blockDim.x / 32;
  for (int column = threadIdx.x % 32; column < pitch; column += 32) {
    const int ix = left + column, near_x = clamped_index(ix, in_w);
    for (int row0 = threadIdx.x / 32; row0 < height; row0 += kAtOnce * warps) {
      T values[kAtOnce];
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        const int near_y = clamped_index(top + (row0 + k * warps), in_h);
        values[k] = __ldg(x + int64_t(near_y) * in_w + near_x);
      }
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        const int row = row0 + k * warps, iy = top + row;
        const bool inside = ix >= 0 && ix < in_w && iy >= 0 && iy < in_h;
        if (row < height) tile[row * pitch + column] = inside ? float(values[k]) : 0.f;
      }
    }
  }
}

template <class X, class Y, int rows>
__device__ void filter_rows(float (&sums)[rows][kColumns], const float* corner, int pitch,
                            const float (&taps)[Y::kPadded][X::kPadded]) {
  constexpr int kAlign = X::kUp == 2 ? 2 : 4;  // floats, of a thread's window in the tile
  constexpr int kWindow = X::window(kColumns), kRead = (kWindow + kAlign - 1) / kAlign * kAlign;
#pragma unroll
  for (int row = 0; row < Y::window(rows); ++row) {
    float window[kRead];
#pragma unroll
    for (int p = 0; p < kRead; p += kAlign) {
      const auto part = *reinterpret_cast<const Pack<float, kAlign>*>(corner + row * pitch + p);
#pragma unroll
      for (int q = 0; q < kAlign; ++q) window[p + q] = part.v[q];
    }
#pragma unroll
    for (int k = 0; k < rows * kColumns; ++k) {
      const int i = row * Y::kUp - k / kColumns * Y::kDown;
      if (i < 0 || i >= Y::kPadded) continue;
#pragma unroll
      for (int p = 0; p < kWindow; ++p) {
        const int j = p * X::kUp - k % kColumns * X::kDown;
        if (j >= 0 && j < X::kPadded) sums[k / kColumns][k % kColumns] += window[p] * taps[i][j];
      }
    }
  }
}

// Up to 4 neighbouring outputs, finished.
template <class T, class Op>
__device__ void store_columns(T* y, const float (&sums)[kColumns], int count, bool vectors, const Op& op,
                              const typename Op::Channel& channel, int64_t n, int64_t pixel) {
  Pack<T, kColumns> out;
#pragma unroll
  for (int q = 0; q < kColumns; ++q) {
    if (q >= count) continue;
    const float value[1] = {sums[q]};
    float none[2];
    out.v[q] = T(op.element(value, channel, op.pixel(n, pixel + q), none));
    if (!vectors) y[q] = out.v[q];
  }
  if (vectors) *reinterpret_cast<Pack<T, kColumns>*>(y) = out;
}

template <class T, class X, class Y, class Op>
__global__ void __launch_bounds__(Tiling<X, Y>::kThreads)
    fir_nchw_kernel(Fir<T> fir, Op op, int threads_x, unsigned tiles_x, unsigned tiles_y, bool vectors) {
  using Tile = Tiling<X, Y>;
  constexpr int kRows = Tile::kRows;
  alignas(16) __shared__ float tile[Tile::kFloats + 4];  // 4: the last window is read as whole vectors

  const int64_t plane = blockIdx.x / tiles_x / tiles_y;
  const int threads_y = blockDim.x / threads_x, tx = threadIdx.x % threads_x, ty = threadIdx.x / threads_x;
  const int tile_x = int(blockIdx.x % tiles_x) * threads_x * kColumns;
  const int tile_y = int(blockIdx.x / tiles_x % tiles_y) * threads_y * kRows;
  const int odd_x = X::kUp == 2 ? fir.left & 1 : 0, odd_y = Y::kUp == 2 ? fir.top & 1 : 0;

  const int left = floor_div(tile_x * X::kDown - fir.left - odd_x, X::kUp);
  const int top = floor_div(tile_y * Y::kDown - fir.top - odd_y, Y::kUp);
  const int pitch = Tile::pitch(threads_x);
  fill(tile, pitch, Y::window(kRows * threads_y), fir.x + plane * fir.in_h * fir.in_w, left, top, fir.in_w, fir.in_h);
  float taps[Y::kPadded][X::kPadded];
#pragma unroll
  for (int k = 0; k < Y::kPadded * X::kPadded; ++k) {
    const int i = k / X::kPadded - odd_y, j = k % X::kPadded - odd_x;
    const bool inside = i >= 0 && i < Y::kTaps && j >= 0 && j < X::kTaps;
    taps[k / X::kPadded][k % X::kPadded] = inside ? fir.tap(i, j) : 0.f;
  }
  __syncthreads();

  float sums[kRows][kColumns] = {};
  const int row0 = ty * kRows * Y::kDown / Y::kUp, column0 = tx * kColumns * X::kDown / X::kUp;
  filter_rows<X, Y>(sums, tile + row0 * pitch + column0, pitch, taps);

  const int64_t n = plane / fir.channels;
  const auto channel = op.channel(n, plane - n * fir.channels);
  const int ox = tile_x + tx * kColumns;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int oy = tile_y + ty * kRows + r;
    if (oy >= fir.out_h || ox >= fir.out_w) continue;
    const int64_t pixel = int64_t(oy) * fir.out_w + ox;
    T* y = fir.y + plane * fir.out_h * fir.out_w + pixel;
    store_columns(y, sums[r], fir.out_w - ox, vectors, op, channel, n, pixel);
  }
}

template <class X, class Y, class T, class Op>
int run(const Fir<T>& fir, const Op& op, void* stream) {
  using Tile = Tiling<X, Y>;
  int threads_x = 8;
  while (threads_x < 32 && threads_x * kColumns < fir.out_w) threads_x *= 2;
  int threads_y = 32 / threads_x;
  while (threads_x * threads_y < Tile::kThreads && threads_y * Tile::kRows < fir.out_h) threads_y *= 2;
  const int64_t tiles_x = blocks_for(fir.out_w, threads_x * kColumns);
  const int64_t tiles_y = blocks_for(fir.out_h, threads_y * Tile::kRows);
  const bool vectors = fir.out_w % kColumns == 0 && aligned<Pack<T, kColumns>>(fir.y);
  return launch(fir_nchw_kernel<T, X, Y, Op>, fir.samples * fir.channels * tiles_x * tiles_y, threads_x * threads_y,
                stream, fir, op, threads_x, unsigned(tiles_x), unsigned(tiles_y), vectors);
}

}  // namespace

template <class T, class Op>
int fir_nchw(const Fir<T>& fir, const Op& op, void* stream) {
  if (fir.in_h == 0 || fir.in_w == 0) return -1;  // there is no nearest pixel to read
  using Same4 = Axis<4, 1, 1>;
  if (fir.fits_4x4(1, 1)) return run<Same4, Same4>(fir, op, stream);
  if constexpr (std::is_same_v<Op, Plain<float>>) {
    if (fir.fits_4x4(2, 1)) return run<Axis<4, 2, 1>, Axis<4, 2, 1>>(fir, op, stream);
    if (fir.fits_4x4(1, 2)) return run<Axis<4, 1, 2>, Axis<4, 1, 2>>(fir, op, stream);
    if constexpr (std::is_same_v<T, float>) {  // the wavelets of adaptive augmentation, along one axis after the other
      using None = Axis<1, 1, 1>;
      if (fir.is(1, 12, 1, 2, 1, 1)) return run<Axis<12, 2, 1>, None>(fir, op, stream);
      if (fir.is(12, 1, 2, 1, 1, 1)) return run<None, Axis<12, 2, 1>>(fir, op, stream);
      if (fir.is(1, 12, 1, 1, 1, 2)) return run<Axis<12, 1, 2>, None>(fir, op, stream);
      if (fir.is(12, 1, 1, 1, 2, 1)) return run<None, Axis<12, 1, 2>>(fir, op, stream);
    }
  }
  return -1;
}

#define IMAGO_FIR(T)                                                  \
  template int fir_nchw(const Fir<T>&, const Plain<float>&, void*);   \
  template int fir_nchw(const Fir<T>&, const Finish<float>&, void*);
IMAGO_FIR(float)
IMAGO_FIR(__nv_bfloat16)
IMAGO_FIR(__half)

}  // namespace imago
