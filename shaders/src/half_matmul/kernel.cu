// A product with a weight W[out, in] in bf16 on tensor cores: y[rows, out] = x[rows, in] · Wᵀ, or transposed, as the gradient needs
// it, y[rows, in] = x[rows, out] · W.
//
// Grid: x = ceil(columns of y / 128), y = ceil(rows / 128). Tiles of both arrive asynchronously two steps ahead.
// shaders/src/tiles.cu comes before this text.
struct Info { u32 rows, out, in, unused; };

// W lies as x does, or its rows are the inner dimension.
template <bool ALIGNED>
__device__ __forceinline__ void start_w(bf16* tile, const bf16* w, const Info& info, u32 step) {
    if (!TRANSPOSED) return start_rows<ALIGNED>(tile, w, blockIdx.x * TILE_COLUMNS, info.out, info.in, step);
#pragma unroll
    for (u32 i = 0; i < 2; i++) {
        const u32 tile_row = threadIdx.x / 16 + 16 * i, chunk = threadIdx.x % 16;
        const u32 row = step * TILE_DEPTH + tile_row, column = blockIdx.x * TILE_COLUMNS + chunk * 8;
        const bool inside = row < info.out && column < info.in;
        const bf16* from = inside ? w + (size_t)row * info.in + column : w;
        bf16* to = tile + wide_at(tile_row, chunk);
        if (ALIGNED) {
            copy_async(to, from, inside);
        } else {
#pragma unroll
            for (u32 j = 0; j < 8; j++) to[j] = inside && column + j < info.in ? from[j] : 0;
        }
    }
}

template <bool ALIGNED>
__device__ __forceinline__ void accumulate(const bf16* x, const bf16* w, const Info& info, bf16* x_tiles, bf16* w_tiles,
                                           float (&sum)[4][4][4]) {
    const u32 depth = TRANSPOSED ? info.out : info.in, steps = (depth - 1) / TILE_DEPTH + 1;
    const auto start = [&](u32 stage, u32 step) {
        if (step < steps) {
            start_rows<ALIGNED>(x_tiles + stage * X_TILE, x, blockIdx.y * TILE_ROWS, info.rows, depth, step);
            start_w<ALIGNED>(w_tiles + stage * W_TILE, w, info, step);
        }
        // A group of copies per step, an empty one where there is no step: the wait below counts groups.
        commit_copies();
    };
    start(0, 0);
    start(1, 1);
    u32 now = 0, ahead = 2;
    for (u32 step = 0; step < steps; step++) {
        await_copies_but_one();
        // What is written from here on was last read in the step before.
        __syncthreads();
        start(ahead, step + 2);
        multiply(x_tiles + now * X_TILE, w_tiles + now * W_TILE, sum);
        now = now + 1 < STAGES ? now + 1 : 0;
        ahead = ahead + 1 < STAGES ? ahead + 1 : 0;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
half_matmul(const bf16* __restrict__ x, const bf16* __restrict__ w, Result* __restrict__ y,
            const __grid_constant__ Info info) {
    __shared__ __align__(128) bf16 x_tiles[STAGES * X_TILE];
    __shared__ __align__(128) bf16 w_tiles[STAGES * W_TILE];
    float sum[4][4][4] = {};
    const u32 depth = TRANSPOSED ? info.out : info.in;
    // Buffers begin at aligned addresses, but a view of one need not.
    if (info.in % 8 == 0 && depth % 8 == 0 && ((size_t)x | (size_t)w) % 16 == 0)
        accumulate<true>(x, w, info, x_tiles, w_tiles, sum);
    else accumulate<false>(x, w, info, x_tiles, w_tiles, sum);
    store(y, sum, info.rows, TRANSPOSED ? info.in : info.out);
}
