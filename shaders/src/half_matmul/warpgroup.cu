// A product with a weight W[out, in] in bf16 on Hopper's tensor cores: y[rows, out] = x[rows, in] · Wᵀ, or transposed, as the gradient
// needs it, y[rows, in] = x[rows, out] · W. With a branch: more by a low-rank product, scaling · low[rows, rank] · bᵀ, b[out, rank], or
// scaling · low · b, b[rank, in]; both are rounded to bf16.
//
// Grid: x = ceil(columns of y / 128), y = ceil(rows / TILE_ROWS). Tiles of both arrive three steps ahead and are multiplied where they
// lie; the products of a step run while the next ones are waited for. `in` and the inner dimension and `rank` are multiples of 8, x, W and
// low begin at multiples of 16 bytes. shaders/src/warpgroup.cu comes before this text.
struct Info { u32 rows, out, in, unused; };
struct BranchInfo : Info { u32 rank; float scaling; };

constexpr u32 W_BYTES = TILE_COLUMNS * DEPTH * 2, W_AT = STAGES * X_BYTES;
static_assert(W_AT + STAGES * W_BYTES <= BARRIERS_AT, "what the launch asks for");
// Each group's half of a tile of W: 64 columns of y by 64 of the inner dimension, or transposed; of rows of 128 bytes in either case.
constexpr u32 HALF_BYTES = W_BYTES / 2;
// Between slices of 16 of the inner dimension: bytes along a row, or rows.
constexpr u32 SLICE_BYTES = TRANSPOSED ? 16 * 128 : 16 * 2;

__device__ __forceinline__ void start_w(char* tile, const TileMap& w, u32 left, u32 k, u64* barrier) {
#pragma unroll
    for (u32 half = 0; half < 2; half++)
        start_tile(tile + half * HALF_BYTES, w, TRANSPOSED ? left + half * 64 : k, TRANSPOSED ? k : left + half * 64, barrier);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
half_warpgroup(const __grid_constant__ TileMap x, const __grid_constant__ TileMap w, const bf16*, const bf16*, Result* __restrict__ y,
#if {{ branch }}
               const bf16* __restrict__ low, const float* __restrict__ b,
#endif
               const __grid_constant__ BranchInfo info) {
    LAUNCHED_SHARED(shared, {{ shared }});
    u64* const barriers = (u64*)(shared + BARRIERS_AT);
    const Place at = place();
    if (threadIdx.x < STAGES) make_barrier(barriers + threadIdx.x);
    __syncthreads();
    const u32 depth = TRANSPOSED ? info.out : info.in, steps = (depth - 1) / DEPTH + 1;
    const auto start = [&](u32 step) {
        if (threadIdx.x != 0 || step >= steps) return;
        const u32 stage = step % STAGES;
        expect_bytes(barriers + stage, X_BYTES + W_BYTES);
        start_tile(shared + stage * X_BYTES, x, step * DEPTH, at.top, barriers + stage);
        start_w(shared + W_AT + stage * W_BYTES, w, at.left, step * DEPTH, barriers + stage);
    };
    for (u32 step = 0; step < STAGES - 1; step++) start(step);
    float sum[SUMS] = {};
    for (u32 step = 0; step < steps; step++) {
        const u32 stage = step % STAGES;
        await_tile(barriers + stage, step / STAGES % 2);
        const u64 left = described(shared + W_AT + stage * W_BYTES + at.warp / 4 * HALF_BYTES);
        const u64 right = described(shared + stage * X_BYTES);
        fence_registers();
#pragma unroll
        for (u32 slice = 0; slice < SLICES; slice++)
            start_product(sum, left + slice * (SLICE_BYTES >> 4), right + slice * 2);
        commit_products();
        // Those of the step before are done, in all warps: its stage is free.
        await_products_but<1>();
        __syncthreads();
        start(step + STAGES - 1);
    }
    await_products(sum);
#if {{ branch }}
    add_branch<false>(sum, at, shared, low, b, info);
#endif
    store<false>(y, sum, at, info.rows, TRANSPOSED ? info.in : info.out);
}
