// A product with an NF4 weight W[out, in] in f32, decoded as its tiles are loaded: y[rows, out] = x[rows, in] · Wᵀ, or
// transposed, as the gradient needs it, y[rows, in] = x[rows, out] · W.
//
// Grid: x = ceil(columns of y / 64), y = ceil(rows / 128); 128 threads, each with 8 x 8 elements of y. What is loaded
// for the next 16 steps of the inner dimension waits in registers while the present ones are multiplied.
constexpr bool TRANSPOSED = {{ gradient }};
constexpr u32 THREADS = {{ threads }};
constexpr u32 TILE_ROWS = 128, TILE_COLUMNS = 64, TILE_DEPTH = 16;
static_assert(THREADS == 128, "each thread loads one word of codes and has 8 x 8 sums");

// What one thread loads for one step: a word of codes with the scales of its elements before and from `left` on, and
// four times four elements of x.
struct Fetched {
    u32 packed, left;
    Scale scale, after;
    float4 x[4];
};

// ALIGNED: a thread's eight codes are one word of one block, and its four elements of x are one vector.
template <bool ALIGNED>
__device__ __forceinline__ Fetched fetch(const float* x, const Weight& w, const Info& info, u32 step) {
    const u32 depth = TRANSPOSED ? info.out : info.in;
    const u32 start = step * TILE_DEPTH;
    Fetched fetched = {};
    const u32 row = TRANSPOSED ? start + threadIdx.x / 8 : blockIdx.x * TILE_COLUMNS + threadIdx.x / 2;
    const u32 column = TRANSPOSED ? blockIdx.x * TILE_COLUMNS + threadIdx.x % 8 * 8 : start + threadIdx.x % 2 * 8;
    // What lies past the end needs no zeros here: it meets zeros of x, or columns that are not stored.
    if (row < info.out && column < info.in) {
        const u32 first = row * info.in + column;
        fetched.scale = fetch_scale(w, first);
        if (ALIGNED) {
            fetched.packed = w.codes[first / 8];
        } else {
            fetched.packed = codes_at(w, first);
            fetched.left = (1u << w.log2_block) - (first & ((1u << w.log2_block) - 1));
            const bool two = fetched.left < 8 && w.count - first > fetched.left;
            fetched.after = two ? fetch_scale(w, first + fetched.left) : fetched.scale;
        }
    }
    const u32 k = start + threadIdx.x % 4 * 4;
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        const u32 x_row = blockIdx.y * TILE_ROWS + threadIdx.x / 4 + 32 * i;
        if (x_row >= info.rows) continue;
        const float* from = x + (size_t)x_row * depth + k;
        if (ALIGNED) {
            if (k < depth) fetched.x[i] = *(const float4*)from;
        } else {
            if (k < depth) fetched.x[i].x = from[0];
            if (k + 1 < depth) fetched.x[i].y = from[1];
            if (k + 2 < depth) fetched.x[i].z = from[2];
            if (k + 3 < depth) fetched.x[i].w = from[3];
        }
    }
    return fetched;
}

// Both tiles are stored by the inner dimension first. The positions in a line are permuted by exclusive or, so that the
// threads of a warp, which store to several lines, meet different banks.
struct Tiles { float x[TILE_DEPTH][TILE_ROWS], w[TILE_DEPTH][TILE_COLUMNS]; };

__device__ __forceinline__ u32 x_at(u32 k, u32 row) { return row ^ (k / 4 * 8); }
__device__ __forceinline__ u32 w_at(u32 k, u32 column) { return column ^ (k / 8 * 16); }

template <bool ALIGNED>
__device__ __forceinline__ void store(Tiles& tiles, const Weight& w, const Fetched& fetched, float level) {
    const float scale = finish_scale(w, fetched.scale), after = ALIGNED ? scale : finish_scale(w, fetched.after);
    float value[8];
#pragma unroll
    for (u32 i = 0; i < 8; i++) {
        // In memory order the first element of a byte is the high nibble.
        const u32 shift = ALIGNED ? 8 * (i / 2) + 4 * (1 - i % 2) : 28 - 4 * i;
        // A shuffle looks at five bits only, and the fifth chooses between two copies of the table.
        value[i] = __shfl_sync(0xffffffff, level, fetched.packed >> shift);
        value[i] *= ALIGNED || i < fetched.left ? scale : after;
    }
    if (TRANSPOSED) {
        const u32 k = threadIdx.x / 8;
        float* line = &tiles.w[k][w_at(k, threadIdx.x % 8 * 8)];
        *(float4*)line = make_float4(value[0], value[1], value[2], value[3]);
        *(float4*)(line + 4) = make_float4(value[4], value[5], value[6], value[7]);
    } else {
        const u32 k = threadIdx.x % 2 * 8;
#pragma unroll
        for (u32 i = 0; i < 8; i++) tiles.w[k + i][w_at(k, threadIdx.x / 2)] = value[i];
    }
    const u32 k = threadIdx.x % 4 * 4;
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        const u32 at = x_at(k, threadIdx.x / 4 + 32 * i);
        tiles.x[k][at] = fetched.x[i].x;
        tiles.x[k + 1][at] = fetched.x[i].y;
        tiles.x[k + 2][at] = fetched.x[i].z;
        tiles.x[k + 3][at] = fetched.x[i].w;
    }
}

// Two groups of four rows and two of four columns: neighbouring threads read neighbouring vectors.
__device__ __forceinline__ u32 member(u32 thread, u32 half, u32 i) { return thread * 4 + half * i; }

__device__ __forceinline__ void multiply(const Tiles& tiles, float (&sum)[8][8]) {
#pragma unroll
    for (u32 k = 0; k < TILE_DEPTH; k++) {
        float a[8], b[8];
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            *(float4*)(a + 4 * i) = *(const float4*)&tiles.x[k][x_at(k, member(threadIdx.x / 8, TILE_ROWS / 2, i))];
            *(float4*)(b + 4 * i) = *(const float4*)&tiles.w[k][w_at(k, member(threadIdx.x % 8, TILE_COLUMNS / 2, i))];
        }
#pragma unroll
        for (u32 i = 0; i < 8; i++)
#pragma unroll
            for (u32 j = 0; j < 8; j++) sum[i][j] += a[i] * b[j];
    }
}

template <bool ALIGNED>
__device__ __forceinline__ void accumulate(const float* x, const Weight& w, const Info& info, Tiles (&tiles)[2],
                                           float (&sum)[8][8]) {
    const float level = NF4[threadIdx.x % 16];
    const u32 depth = TRANSPOSED ? info.out : info.in, steps = (depth - 1) / TILE_DEPTH + 1;
    store<ALIGNED>(tiles[0], w, fetch<ALIGNED>(x, w, info, 0), level);
    __syncthreads();
    for (u32 step = 0; step < steps; step++) {
        const bool more = step + 1 < steps;
        Fetched fetched;
        if (more) fetched = fetch<ALIGNED>(x, w, info, step + 1);
        multiply(tiles[step % 2], sum);
        // The other pair of tiles was last read before the barrier that ended the step before.
        if (more) store<ALIGNED>(tiles[(step + 1) % 2], w, fetched, level);
        __syncthreads();
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
nf4_matmul(const u32* __restrict__ codes, const u32* __restrict__ absmax, const u32* __restrict__ header,
           const float* __restrict__ x, float* __restrict__ y, const __grid_constant__ Info info) {
    __shared__ __align__(16) Tiles tiles[2];
    __shared__ float map[256];
    const Weight w = { codes, absmax, header, map, __uint_as_float(header[3]), header[0], header[1], header[2] != 0 };
    if (w.nested) {
        for (u32 i = threadIdx.x; i < 256; i += THREADS) map[i] = __uint_as_float(header[MAP + i]);
        __syncthreads();
    }
    float sum[8][8] = {};
    const u32 depth = TRANSPOSED ? info.out : info.in, columns = TRANSPOSED ? info.in : info.out;
    // Buffers begin at aligned addresses, but a view of one need not.
    if (info.in % 8 == 0 && depth % 4 == 0 && (size_t)x % 16 == 0) accumulate<true>(x, w, info, tiles, sum);
    else accumulate<false>(x, w, info, tiles, sum);

    const bool vector = columns % 4 == 0 && (size_t)y % 16 == 0;
#pragma unroll
    for (u32 i = 0; i < 8; i++) {
        const u32 row = blockIdx.y * TILE_ROWS + member(threadIdx.x / 8, TILE_ROWS / 2, i / 4) + i % 4;
        if (row >= info.rows) continue;
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            const u32 column = blockIdx.x * TILE_COLUMNS + member(threadIdx.x % 8, TILE_COLUMNS / 2, half);
            float* to = y + (size_t)row * columns + column;
            const float* from = sum[i] + 4 * half;
            if (vector) {
                if (column < columns) *(float4*)to = make_float4(from[0], from[1], from[2], from[3]);
            } else {
#pragma unroll
                for (u32 j = 0; j < 4; j++)
                    if (column + j < columns) to[j] = from[j];
            }
        }
    }
}
