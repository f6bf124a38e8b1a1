// A product with an NF4 weight W[out, in] on tensor cores: y[rows, out] = x[rows, in] · Wᵀ, or transposed, as the
// gradient needs it, y[rows, in] = x[rows, out] · W. x is bf16, W is decoded to bf16 once per tile, sums are f32. With a
// branch: more by a low-rank product, scaling · low[rows, rank] · bᵀ, b[out, rank], or scaling · low · b, b[rank, in]; both are
// rounded to bf16.
//
// Grid: x = ceil(columns of y / 128), y = ceil(rows / 128). Tiles of x arrive asynchronously two steps ahead; the codes of W
// wait in registers for one step: each thread decodes just what it loads, 16 codes. shaders/src/tiles.cu comes before this text.
// What one thread loads of W for one step: 16 codes with their scales before and from `left` on.
struct Fetched {
    u32 packed[2], left;
    Scale scale, after;
};

// ALIGNED: the codes are two whole words of one block.
template <bool ALIGNED>
__device__ __forceinline__ Fetched fetch_w(const Weight& w, const Info& info, u32 step) {
    Fetched fetched = {};
    const u32 start = step * TILE_DEPTH, left_column = blockIdx.x * TILE_COLUMNS;
    const u32 row = TRANSPOSED ? start + threadIdx.x / 8 : left_column + threadIdx.x / 2;
    const u32 column = TRANSPOSED ? left_column + threadIdx.x % 8 * 16 : start + threadIdx.x % 2 * 16;
    // What lies past the end needs no zeros here: it meets zeros of x, or columns that are not stored.
    if (row >= info.out || column >= info.in) return fetched;
    const u32 first = row * info.in + column;
    fetched.scale = fetch_scale(w, first);
    if (ALIGNED) {
        const uint2 pair = *(const uint2*)(w.codes + first / 8);
        fetched.packed[0] = pair.x, fetched.packed[1] = pair.y;
    } else {
        fetched.packed[0] = codes_at(w, first);
        fetched.packed[1] = codes_at(w, first + 8);
        fetched.left = (1u << w.log2_block) - (first & ((1u << w.log2_block) - 1));
        const bool two = fetched.left < 16 && w.count - first > fetched.left;
        fetched.after = two ? fetch_scale(w, first + fetched.left) : fetched.scale;
    }
    return fetched;
}

template <bool ALIGNED>
__device__ __forceinline__ void decode_w(bf16* tile, const Weight& w, const Fetched& fetched, float level) {
    const float scale = finish_scale(w, fetched.scale), after = ALIGNED ? scale : finish_scale(w, fetched.after);
#pragma unroll
    for (u32 i = 0; i < 2; i++) {
        float value[8];
#pragma unroll
        for (u32 j = 0; j < 8; j++) {
            // In memory order the first element of a byte is the high nibble.
            const u32 shift = ALIGNED ? 8 * (j / 2) + 4 * (1 - j % 2) : 28 - 4 * j;
            // A shuffle looks at five bits only, and the fifth chooses between two copies of the table.
            value[j] = __shfl_sync(0xffffffff, level, fetched.packed[i] >> shift);
            value[j] *= ALIGNED || 8 * i + j < fetched.left ? scale : after;
        }
        const u32 at = TRANSPOSED ? wide_at(threadIdx.x / 8, threadIdx.x % 8 * 2 + i)
                                  : deep_at(threadIdx.x / 2, threadIdx.x % 2 * 2 + i);
        *(uint4*)(tile + at) = make_uint4(pack_bf16(value[0], value[1]), pack_bf16(value[2], value[3]),
                                          pack_bf16(value[4], value[5]), pack_bf16(value[6], value[7]));
    }
}

template <bool ALIGNED>
__device__ __forceinline__ void start_x(bf16* tile, const bf16* x, const Info& info, u32 step) {
    start_rows<ALIGNED>(tile, x, blockIdx.y * TILE_ROWS, info.rows, TRANSPOSED ? info.out : info.in, step);
}

template <bool ALIGNED>
__device__ __forceinline__ void accumulate(const bf16* x, const Weight& w, const Info& info, bf16* x_tiles,
                                           bf16* w_tiles, float (&sum)[4][4][4]) {
    const float level = NF4[threadIdx.x % 16];
    const u32 depth = TRANSPOSED ? info.out : info.in, steps = (depth - 1) / TILE_DEPTH + 1;
    // A group of copies per step, an empty one where there is no step: the wait below counts groups.
    start_x<ALIGNED>(x_tiles, x, info, 0);
    commit_copies();
    if (steps > 1) start_x<ALIGNED>(x_tiles + X_TILE, x, info, 1);
    commit_copies();
    decode_w<ALIGNED>(w_tiles, w, fetch_w<ALIGNED>(w, info, 0), level);
    await_copies_but_one();
    __syncthreads();
    u32 now = 0, ahead = 2;
    for (u32 step = 0; step < steps; step++) {
        const bool more = step + 1 < steps;
        Fetched fetched;
        if (more) fetched = fetch_w<ALIGNED>(w, info, step + 1);
        // The tiles that are written here were last read before the barrier that ended the step before.
        if (step + 2 < steps) start_x<ALIGNED>(x_tiles + ahead * X_TILE, x, info, step + 2);
        commit_copies();
        multiply(x_tiles + now * X_TILE, w_tiles + step % 2 * W_TILE, sum);
        if (more) decode_w<ALIGNED>(w_tiles + (step + 1) % 2 * W_TILE, w, fetched, level);
        now = now + 1 < STAGES ? now + 1 : 0;
        ahead = ahead + 1 < STAGES ? ahead + 1 : 0;
        await_copies_but_one();
        __syncthreads();
    }
}

// The tile of a step of the branch's second matrix, in which each thread rounds 16 neighbours as it decodes those of W.
__device__ __forceinline__ void round_b(bf16* tile, const float* b, const BranchInfo& info, u32 k) {
    const u32 left = blockIdx.x * TILE_COLUMNS, rows = TRANSPOSED ? info.rank : info.out;
    const u32 columns = TRANSPOSED ? info.in : info.rank;
    const u32 row = TRANSPOSED ? k + threadIdx.x / 8 : left + threadIdx.x / 2;
    const u32 column = TRANSPOSED ? left + threadIdx.x % 8 * 16 : k + threadIdx.x % 2 * 16;
#pragma unroll
    for (u32 i = 0; i < 2; i++) {
        float value[8];
#pragma unroll
        for (u32 j = 0; j < 8; j++) {
            const u32 at = column + 8 * i + j;
            value[j] = row < rows && at < columns ? b[(size_t)row * columns + at] * info.scaling : 0.0f;
        }
        const u32 at = TRANSPOSED ? wide_at(threadIdx.x / 8, threadIdx.x % 8 * 2 + i)
                                  : deep_at(threadIdx.x / 2, threadIdx.x % 2 * 2 + i);
        *(uint4*)(tile + at) = make_uint4(pack_bf16(value[0], value[1]), pack_bf16(value[2], value[3]),
                                          pack_bf16(value[4], value[5]), pack_bf16(value[6], value[7]));
    }
}

template <bool ALIGNED>
__device__ __forceinline__ void add_branch(const bf16* low, const float* b, const BranchInfo& info, bf16* x_tile,
                                           bf16* w_tile, float (&sum)[4][4][4]) {
    for (u32 step = 0; step * TILE_DEPTH < info.rank; step++) {
        // What lies in these tiles has been read.
        __syncthreads();
        start_rows<ALIGNED>(x_tile, low, blockIdx.y * TILE_ROWS, info.rows, info.rank, step);
        // An empty group after it, so that all but the last one are all there are.
        commit_copies();
        commit_copies();
        round_b(w_tile, b, info, step * TILE_DEPTH);
        await_copies_but_one();
        __syncthreads();
        multiply(x_tile, w_tile, sum);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
nf4_mma(const u32* __restrict__ codes, const u32* __restrict__ absmax, const u32* __restrict__ header,
        const bf16* __restrict__ x, Result* __restrict__ y,
#if {{ branch }}
        const bf16* __restrict__ low, const float* __restrict__ b,
#endif
        const __grid_constant__ BranchInfo info) {
    __shared__ __align__(128) bf16 x_tiles[STAGES * X_TILE];
    __shared__ __align__(128) bf16 w_tiles[2 * W_TILE];
    __shared__ float map[256];
    const Weight w = { codes, absmax, header, map, __uint_as_float(header[3]), header[0], header[1], header[2] != 0 };
    if (w.nested) {
        for (u32 i = threadIdx.x; i < 256; i += THREADS) map[i] = __uint_as_float(header[MAP + i]);
        __syncthreads();
    }
    float sum[4][4][4] = {};
    const u32 depth = TRANSPOSED ? info.out : info.in, columns = TRANSPOSED ? info.in : info.out;
    // Buffers begin at aligned addresses, but a view of one need not.
    if (info.in % 16 == 0 && depth % 8 == 0 && ((size_t)x | (size_t)codes) % 16 == 0)
        accumulate<true>(x, w, info, x_tiles, w_tiles, sum);
    else accumulate<false>(x, w, info, x_tiles, w_tiles, sum);
#if {{ branch }}
    if (info.rank % 8 == 0 && (size_t)low % 16 == 0) add_branch<true>(low, b, info, x_tiles, w_tiles, sum);
    else add_branch<false>(low, b, info, x_tiles, w_tiles, sum);
#endif
    store(y, sum, info.rows, columns);
}
