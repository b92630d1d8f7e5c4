// One pass over maps: arithmetic of each element, with sums over a channel's pixels and over a pixel's channels.
//
// In memory a map is [samples, slow, fast]: the channels are the fast axis with channels_last, the pixels without. A
// warp holds lanes * V elements of a row (32 / lanes rows at a time) and walks down the rows of its chunk, so one kind
// of sum grows in registers down the columns, and the other takes shuffles along a row.
#pragma once
#include "sums.cuh"

namespace imago {

constexpr int kMaxWarps = 8, kMaxRows = 64;

// Rows that a lane reads before it works on them, as registers allow: 4 vectors under way hide the latency of memory.
template <class T, bool vectors, int inputs>
constexpr int kRowsAtOnce = vectors ? (inputs == 1 ? 4 : 2) : kVector<T> * inputs < 16 ? 2 : 1;

struct Walk {
  int64_t samples, slow, fast;
  unsigned tiles, chunks;  // of the fast axis and of the slow one: a block takes one of each
  int lanes, warps, rows;  // rows: of a chunk
  bool channels_last, packed;  // packed: a lane's elements are neighbours

  IMAGO_FN int64_t channels() const { return channels_last ? fast : slow; }
  IMAGO_FN int64_t pixels() const { return channels_last ? slow : fast; }
  IMAGO_FN int64_t channel_pieces() const { return channels_last ? chunks : tiles; }
  IMAGO_FN int64_t pixel_pieces() const { return channels_last ? tiles : chunks; }
  int64_t blocks() const { return samples * tiles * chunks; }
};

template <class T>
Walk plan_walk(int64_t samples, int64_t channels, int64_t pixels, bool channels_last) {
  constexpr int V = kVector<T>;
  constexpr int64_t kBlocks = 1024;  // about one wave of a large GPU; more would only add partial sums
  Walk walk{samples, channels_last ? pixels : channels, channels_last ? channels : pixels};
  walk.channels_last = channels_last;
  walk.packed = walk.fast % V == 0;
  walk.lanes = 1;
  while (walk.lanes < 32 && walk.lanes * V < walk.fast) walk.lanes *= 2;

  const int64_t stripes = blocks_for(walk.fast, walk.lanes * V), groups = 32 / walk.lanes;
  const int64_t warps = channels_last ? blocks_for(walk.slow, groups) : stripes;
  walk.warps = int(warps < 1 ? 1 : warps < kMaxWarps ? warps : kMaxWarps);
  walk.tiles = unsigned(channels_last ? stripes : blocks_for(stripes, walk.warps));

  const int64_t step = groups * (channels_last ? walk.warps : 1), others = samples * walk.tiles;
  const int64_t wanted = others > 0 && others < kBlocks ? kBlocks / others : 1;
  const int64_t most = blocks_for(walk.slow, wanted);
  const int64_t rows = blocks_for(most > 0 ? most : 1, 4 * step) * 4 * step;  // 4: see kRowsAtOnce
  walk.rows = int(!channels_last && rows > kMaxRows ? kMaxRows : rows);
  walk.chunks = unsigned(blocks_for(walk.slow, walk.rows));
  return walk;
}

template <class T>
Walk plan_walk(const Shape& shape) {
  return plan_walk<T>(shape.n, shape.c, shape.h * shape.w, shape.channels_last);
}

template <class T, int inputs>
struct Maps {
  const T* in[inputs];
  T* out;  // null: only sums
};

template <class A>
struct Partials {
  A* channels;  // [sums, samples, channel_pieces, channels] or null
  A* pixels;    // [pixel_pieces, samples, pixels] or null
};

// Where the partial sums lie in the scratch, and how they become the results.
template <class A>
struct Scratch {
  Walk walk;
  A* memory;

  int64_t sums_size() const { return walk.samples * walk.channel_pieces() * walk.channels(); }
  int64_t bytes(int sums, bool pixels) const {
    const int64_t pixel_size = walk.pixel_pieces() > 1 ? walk.pixel_pieces() * walk.samples * walk.pixels() : 0;
    return int64_t(sizeof(A)) * (sums * sums_size() + (pixels ? pixel_size : 0));
  }
  Partials<A> partials(int sums, bool by_channel, void* by_pixel) const {
    A* pixels = walk.pixel_pieces() > 1 ? memory + sums * sums_size() : static_cast<A*>(by_pixel);
    return {by_channel ? memory : nullptr, by_pixel ? pixels : nullptr};
  }
  Sum<A> by_channel(int k, void* out) const {
    const int64_t count = walk.samples * walk.channel_pieces();
    return {memory + k * sums_size(), static_cast<A*>(out), 1, count, walk.channels()};
  }
  Sum<A> by_sample_and_channel(int k, void* out) const {
    return {memory + k * sums_size(), static_cast<A*>(out), walk.samples, walk.channel_pieces(), walk.channels()};
  }
  Sum<A> by_pixel(int sums, void* out) const {  // one piece is the result itself; none: zeros
    A* wanted = walk.pixel_pieces() == 1 ? nullptr : static_cast<A*>(out);
    return {memory + sums * sums_size(), wanted, 1, walk.pixel_pieces(), walk.samples * walk.pixels()};
  }
};

inline int64_t scratch_bytes(Dtype dtype, const Shape& shape, int sums, bool pixels) {
  int64_t bytes = 0;
  with_type(dtype, [&](auto zero) {
    using T = decltype(zero);
    bytes = Scratch<Accumulator<T>>{plan_walk<T>(shape)}.bytes(sums, pixels);
    return 0;
  });
  return bytes;
}

// Adds over lanes whose numbers differ in bits from `low` to below `high`; every lane gets the sum.
template <class A>
__device__ A add_lanes(A value, int low, int high) {
  for (int bit = low; bit < high; bit *= 2) value += __shfl_xor_sync(0xffffffffu, value, bit);
  return value;
}

// A lane's part of a chunk: elements first, first + stride, ... (`count` of them) of rows row0, row0 + step, ... of the
// `rows` that begin at `top`.
template <int V, bool channels_last>
struct Place {
  int warp, lane_row, within, stride, count, rows, row0, step;
  unsigned tile, chunk;
  int64_t n, first, top;

  __device__ explicit Place(const Walk& walk) {
    const int lane = threadIdx.x % 32, groups = 32 / walk.lanes;
    warp = threadIdx.x / 32;
    tile = blockIdx.x % walk.tiles;
    chunk = blockIdx.x / walk.tiles % walk.chunks;
    n = blockIdx.x / walk.tiles / walk.chunks;

    stride = walk.packed ? 1 : walk.lanes;
    within = lane % walk.lanes * (walk.packed ? V : 1);
    first = (channels_last ? tile : int64_t(tile) * walk.warps + warp) * walk.lanes * V + within;
    const int64_t room = (walk.fast - first + stride - 1) / stride;
    count = int(room < 0 ? 0 : room < V ? room : V);

    lane_row = lane / walk.lanes;
    top = int64_t(chunk) * walk.rows;
    rows = int(walk.slow - top < walk.rows ? walk.slow - top : walk.rows);
    row0 = (channels_last ? warp * groups : 0) + lane_row;
    step = groups * (channels_last ? walk.warps : 1);
  }
  __device__ int count_in(int row) const { return row < rows ? count : 0; }
};

// What a lane holds of a row of one map.
template <class T, bool vectors>
__device__ Bits<T> load(const T* from, int stride, int count) {
  if constexpr (vectors) {
    return __ldg(reinterpret_cast<const Bits<T>*>(from));
  } else {
    Pack<T> pack;
#pragma unroll
    for (int v = 0; v < kVector<T>; ++v) pack.v[v] = v < count ? from[v * stride] : T(0.f);
    return bits_of(pack);
  }
}

template <bool vectors, class T>
__device__ void store(const Pack<T>& pack, T* to, int stride, int count) {
  if constexpr (vectors) {
    if (count) store_vector(pack, to);
  } else {
#pragma unroll
    for (int v = 0; v < kVector<T>; ++v) {
      if (v < count) to[v * stride] = pack.v[v];
    }
  }
}

// A lane's sums: down its columns, and across the present row.
template <class A, int V, bool channels_last, int kSums>
struct SumsOf {
  static constexpr int kStage = !kSums ? 1 : channels_last && 32 * V > kMaxRows ? 32 * V : kMaxRows;
  using Stage = A[kSums ? kSums : 1][kMaxWarps][kStage];  // what the warps of a block know of its channels
  using At = Place<V, channels_last>;
  A columns[2][V] = {}, across[2];

  __device__ void start_row() { across[0] = across[1] = 0; }
  __device__ void add(int v, const A (&sum)[2], bool inside) {
#pragma unroll
    for (int k = 0; k < kSums; ++k) {
      across[k] += inside ? sum[k] : A(0);
      columns[k][v] += inside ? sum[k] : A(0);
    }
  }
  __device__ void end_row(Stage& stage, const Partials<A>& partials, const Walk& walk, const At& at, int row) {
    const bool first_of_row = row < at.rows && threadIdx.x % walk.lanes == 0;
    if constexpr (kSums > 0 && channels_last) {
      if (!partials.pixels) return;
      const A sum = add_lanes(across[0], 1, walk.lanes);
      if (first_of_row) partials.pixels[(at.tile * walk.samples + at.n) * walk.slow + at.top + row] = sum;
    } else {
#pragma unroll
      for (int k = 0; k < kSums; ++k) {
        const A sum = add_lanes(across[k], 1, walk.lanes);
        if (first_of_row) stage[k][at.warp][row] = sum;
      }
    }
  }
  template <class Op>
  __device__ void end(Stage& stage, const Op& op, const Partials<A>& partials, const Walk& walk, const At& at) {
    const int64_t span = walk.lanes * V, tile0 = at.tile * span, rest = walk.fast - tile0;
    if constexpr (kSums > 0 && channels_last) {
#pragma unroll
      for (int k = 0; k < kSums * V; ++k) {
        const A sum = add_lanes(columns[k / V][k % V], walk.lanes, 32);
        if (at.lane_row == 0) stage[k / V][at.warp][at.within + k % V * at.stride] = sum;
      }
      const int channels = int(rest < span ? rest : span);
      if (partials.channels) merge(stage, op, partials, walk, at.n, at.chunk, tile0, channels);
    } else if constexpr (kSums > 0) {
      if (partials.channels) merge(stage, op, partials, walk, at.n, at.tile, at.top, at.rows);
      if (!partials.pixels) return;
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const A sum = add_lanes(columns[0][v], walk.lanes, 32);
        A* to = partials.pixels + (at.chunk * walk.samples + at.n) * walk.fast + at.first;
        if (at.lane_row == 0 && v < at.count) to[v * at.stride] = sum;
      }
    }
  }

 private:
  template <class Op>
  __device__ static void merge(const Stage& stage, const Op& op, const Partials<A>& partials, const Walk& walk,
                               int64_t n, int64_t piece, int64_t channel0, int channels) {
    __syncthreads();
    for (int i = threadIdx.x; i < channels; i += blockDim.x) {
#pragma unroll
      for (int k = 0; k < kSums; ++k) {
        A sum = 0;
        for (int warp = 0; warp < walk.warps; ++warp) sum += stage[k][warp][i];
        A* to = partials.channels + ((k * walk.samples + n) * walk.channel_pieces() + piece) * walk.channels();
        to[channel0 + i] = op.total(k, sum, n, channel0 + i);
      }
    }
  }
};

// What a lane knows of the fast axis for all rows, and of the slow one for the rows it holds.
template <class A, int V, bool channels_last, class Op>
struct Parameters {
  typename Op::Channel channel[channels_last ? V : 1];
  A pixel[channels_last ? 1 : V];

  struct OfRow {
    typename Op::Channel channel;
    A pixel;
  };

  __device__ Parameters(const Op& op, const Place<V, channels_last>& at) {
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const int64_t i = v < at.count ? at.first + v * at.stride : 0;
      if constexpr (channels_last) channel[v] = op.channel(at.n, i);
      if constexpr (!channels_last) pixel[v] = op.pixel(at.n, i);
    }
  }
  __device__ static OfRow of_row(const Op& op, int64_t n, int64_t row) {
    OfRow known;
    if constexpr (channels_last) known.pixel = op.pixel(n, row);
    if constexpr (!channels_last) known.channel = op.channel(n, row);
    return known;
  }
  __device__ typename Op::Channel channel_of(int v, const OfRow& known) const {
    if constexpr (channels_last) return channel[v];
    return known.channel;
  }
  __device__ A pixel_of(int v, const OfRow& known) const {
    if constexpr (channels_last) return known.pixel;
    return pixel[v];
  }
};

// Op: kInputs maps, kSums sums; Channel channel(n, c); A pixel(n, p);
// A element(const A (&in)[kInputs], Channel, A pixel, A (&sum)[2]), whose sum[0] is also the one over channels;
// A total(k, sum, n, c): what the k-th sum over pixels counts for.
// vectors: all maps are read and written by 16 bytes. All that a step reads is under way before any of it is used: so
// rows past the end are read as the last one again, not branched around, and are left out of sums and stores.
template <class T, bool channels_last, bool vectors, class Op>
__global__ void __launch_bounds__(32 * kMaxWarps, 2)
    walk_map(Maps<T, Op::kInputs> maps, Op op, Walk walk, Partials<Accumulator<T>> partials) {
  using A = Accumulator<T>;
  constexpr int V = kVector<T>, kInputs = Op::kInputs, kAtOnce = kRowsAtOnce<T, vectors, kInputs>;
  using Sums = SumsOf<A, V, channels_last, Op::kSums>;
  using Known = Parameters<A, V, channels_last, Op>;
  __shared__ typename Sums::Stage stage;

  const Place<V, channels_last> at(walk);
  const int64_t corner = (at.n * walk.slow + at.top) * walk.fast + (at.count ? at.first : 0);
  const Known parameters(op, at);
  Sums sums;
  // all lanes of a warp take part in its shuffles, so they leave together
  for (int row0 = at.row0; row0 - at.lane_row < at.rows; row0 += kAtOnce * at.step) {
    Bits<T> in[kAtOnce][kInputs];
    typename Known::OfRow known[kAtOnce];
#pragma unroll
    for (int r = 0; r < kAtOnce; ++r) {
      const int row = row0 + r * at.step, there = row < at.rows ? row : at.rows - 1;
#pragma unroll
      for (int k = 0; k < kInputs; ++k) {
        in[r][k] = load<T, vectors>(maps.in[k] + corner + there * walk.fast, at.stride, at.count_in(row));
      }
      known[r] = Known::of_row(op, at.n, at.top + there);
    }
#pragma unroll
    for (int r = 0; r < kAtOnce; ++r) {
      const int row = row0 + r * at.step, count = at.count_in(row);
      sums.start_row();
      Pack<T> x[kInputs], out;
#pragma unroll
      for (int k = 0; k < kInputs; ++k) x[k] = pack_of<T>(in[r][k]);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        A values[kInputs], sum[2];
#pragma unroll
        for (int k = 0; k < kInputs; ++k) values[k] = A(x[k].v[v]);
        out.v[v] = T(op.element(values, parameters.channel_of(v, known[r]), parameters.pixel_of(v, known[r]), sum));
        sums.add(v, sum, vectors ? count > 0 : v < count);
      }
      if (maps.out) store<vectors>(out, maps.out + corner + row * walk.fast, at.stride, count);
      sums.end_row(stage, partials, walk, at, row);
    }
  }
  sums.end(stage, op, partials, walk, at);
}

template <class T, class Op>
int pass(const Maps<T, Op::kInputs>& maps, const Op& op, const Walk& walk, const Partials<Accumulator<T>>& partials,
         void* stream) {
  bool vectors = walk.packed && aligned<Pack<T>>(maps.out);
  for (const T* in : maps.in) vectors = vectors && aligned<Pack<T>>(in);
  auto kernel = walk.channels_last ? walk_map<T, true, true, Op> : walk_map<T, false, true, Op>;
  if constexpr (kVector<T> > 1) {
    if (!vectors) kernel = walk.channels_last ? walk_map<T, true, false, Op> : walk_map<T, false, false, Op>;
  }
  return launch(kernel, walk.blocks(), 32 * walk.warps, stream, maps, op, walk, partials);
}

}  // namespace imago
