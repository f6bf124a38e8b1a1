// A product with an NF4 weight W[out, in] on Hopper's tensor cores: y[rows, out] = x[rows, in] · Wᵀ, or transposed, as the
// gradient needs it, y[rows, in] = x[rows, out] · W. x is bf16, W is decoded to bf16, sums are f32. With a branch: more by a
// low-rank product, scaling · low[rows, rank] · bᵀ, b[out, rank], or scaling · low · b, b[rank, in]; both are rounded to bf16.
//
// Grid: x = ceil(columns of y / 128), y = ceil(rows / TILE_ROWS). W is decoded in registers and never goes through shared memory as
// bf16. Codes and x arrive asynchronously two steps ahead, scales are decoded for the four steps that come, and a slice of W is decoded
// while those before are multiplied. shaders/src/warpgroup.cu comes before this text.
//
// `in` is a multiple of 32, the inner dimension and `rank` of 8, a block no smaller than 32; x, low and the codes begin at
// multiples of 16 bytes.
// Codes lie in shared memory as in W, rows of it so far apart that what a warp reads at a time is in different banks.
constexpr u32 CODE_ROWS = TRANSPOSED ? DEPTH : TILE_COLUMNS, CODE_COLUMNS = TRANSPOSED ? TILE_COLUMNS : DEPTH;
constexpr u32 CODE_STRIDE = CODE_COLUMNS / 2 + 16, CODE_CHUNKS = CODE_COLUMNS / 32;
static_assert(CODE_ROWS * CODE_CHUNKS == THREADS, "a thread copies 16 bytes of codes a step");

// Scales are decoded for four steps at once, one for each piece of 32 codes; a thread has 128 neighbouring codes, which are mostly two
// blocks.
constexpr u32 EPOCH = 4, PIECES = 4, SCALE_ROWS = TRANSPOSED ? EPOCH * DEPTH : TILE_COLUMNS, SCALES = THREADS * PIECES;
constexpr u32 CODE_BYTES = CODE_ROWS * CODE_STRIDE;
constexpr u32 CODES_AT = STAGES * X_BYTES, SCALES_AT = CODES_AT + STAGES * CODE_BYTES, MAP_AT = SCALES_AT + 2 * SCALES * 4;
static_assert(MAP_AT + 256 * 4 <= BARRIERS_AT, "what the launch asks for");

__device__ __forceinline__ void start_codes(char* tile, const Weight& w, const Info& info, u32 left, u32 k) {
    const u32 tile_row = threadIdx.x / CODE_CHUNKS, chunk = threadIdx.x % CODE_CHUNKS;
    const u32 row = (TRANSPOSED ? k : left) + tile_row, column = (TRANSPOSED ? left : k) + chunk * 32;
    const bool inside = row < info.out && column < info.in;
    const char* from = (const char*)w.codes + (inside ? ((size_t)row * info.in + column) / 2 : 0);
    copy_async(tile + tile_row * CODE_STRIDE + chunk * 16, from, inside);
}

// This thread's scales of four steps from `k` on. Those past the end are zero: there a product would multiply zeros by what no one knows.
struct Pieces {
    Scale scale[PIECES];
    // The first one's element; how many there are.
    u32 first, count;
};

__device__ __forceinline__ bool begins(const Weight& w, const Pieces& pieces, u32 i) {
    return i == 0 || (pieces.first + 32 * i & (1u << w.log2_block) - 1) == 0;
}

__device__ __forceinline__ Pieces fetch_pieces(const Weight& w, const Info& info, u32 left, u32 k) {
    const u32 tile_row = threadIdx.x % SCALE_ROWS, tile_column = threadIdx.x / SCALE_ROWS * 32 * PIECES;
    const u32 row = (TRANSPOSED ? k : left) + tile_row, column = (TRANSPOSED ? left : k) + tile_column;
    Pieces pieces = {};
    if (row >= info.out || column >= info.in) return pieces;
    pieces.first = row * info.in + column;
    pieces.count = (info.in - column) / 32;
#pragma unroll
    for (u32 i = 0; i < PIECES; i++)
        if (i < pieces.count && begins(w, pieces, i)) pieces.scale[i] = fetch_scale(w, pieces.first + 32 * i);
    return pieces;
}

__device__ __forceinline__ void finish_pieces(float* scales, const Weight& w, const Pieces& pieces) {
    float* const to = scales + threadIdx.x / SCALE_ROWS * PIECES * SCALE_ROWS + threadIdx.x % SCALE_ROWS;
    float scale = 0;
#pragma unroll
    for (u32 i = 0; i < PIECES; i++) {
        if (i < pieces.count && begins(w, pieces, i)) scale = finish_scale(w, pieces.scale[i]);
        to[i * SCALE_ROWS] = i < pieces.count ? scale : 0.0f;
    }
}

// A shuffle looks at five bits only, and the fifth chooses between two copies of the table.
__device__ __forceinline__ float decoded(u32 code, float level) { return __shfl_sync(0xffffffff, level, code); }

// What a thread has of 64 x 16 of the left operand: a[0] and a[2] belong to its first column of y, a[1] and a[3] to the other one;
// each has two neighbours of the inner dimension, from 2 (lane % 4) on, of a[2] and a[3] eight later.
__device__ __forceinline__ void decode(u32 (&a)[4], const Place& at, const char* codes, const float* scales, u32 slice,
                                       float level, float2& scale) {
    const u32 pair = at.lane % 4, column = column_of<true>(at, 0);
    if (TRANSPOSED) {
        // Both columns are in one byte, of each of four rows of W.
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            const u32 k = slice * 16 + i * 8 + pair * 2;
            scale = *(const float2*)(scales + at.warp / 2 * SCALE_ROWS + k);
            const u32 low = (unsigned char)codes[k * CODE_STRIDE + column / 2];
            const u32 high = (unsigned char)codes[(k + 1) * CODE_STRIDE + column / 2];
            a[2 * i] = pack_bf16(decoded(low >> 4, level) * scale.x, decoded(high >> 4, level) * scale.y);
            a[2 * i + 1] = pack_bf16(decoded(low, level) * scale.x, decoded(high, level) * scale.y);
        }
    } else {
        // Two slices have the same.
        if (slice % 2 == 0) scale = *(const float2*)(scales + slice / 2 * SCALE_ROWS + column);
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            const uint2 words = *(const uint2*)(codes + (column + i) * CODE_STRIDE + slice * 8);
            const float factor = i == 0 ? scale.x : scale.y;
            // The first element of a byte is the high nibble.
            const u32 near = words.x >> pair * 8, far = words.y >> pair * 8;
            a[i] = pack_bf16(decoded(near >> 4, level) * factor, decoded(near, level) * factor);
            a[2 + i] = pack_bf16(decoded(far >> 4, level) * factor, decoded(far, level) * factor);
        }
    }
}

__device__ __forceinline__ void add_weight(float (&sum)[SUMS], const Place& at, char* shared, const Weight& w,
                                           const TileMap& x, const Info& info) {
    const auto codes = [&](u32 step) { return shared + CODES_AT + step % STAGES * CODE_BYTES; };
    const auto scales = [&](u32 step) { return (float*)(shared + SCALES_AT) + step / EPOCH % 2 * SCALES; };
    // A step's part of them: rows in the one case, pieces in the other.
    constexpr u32 STEP_SCALES = TRANSPOSED ? DEPTH : DEPTH / 32 * SCALE_ROWS;
    const float level = NF4[threadIdx.x % 16];
    const u32 depth = TRANSPOSED ? info.out : info.in;
    finish_pieces(scales(0), w, fetch_pieces(w, info, at.left, 0));
    Pieces next = {};
    float2 scale;
    sum_up(
        sum, at, shared, x, depth,
        [&](u32 step) { start_codes(codes(step), w, info, at.left, step * DEPTH); },
        [&](u32 step) {
            if (step % EPOCH == 0) next = fetch_pieces(w, info, at.left, (step + EPOCH) * DEPTH);
        },
        [&](u32(&a)[4], u32 step, u32 slice) {
            decode(a, at, codes(step), scales(step) + step % EPOCH * STEP_SCALES, slice, level, scale);
        },
        // The other half was last read four steps before.
        [&](u32 step) {
            if (step % EPOCH == EPOCH - 1) finish_pieces(scales(step + 1), w, next);
        });
}

extern "C" __global__ void __launch_bounds__(THREADS, {{ blocks }})
nf4_warpgroup(const __grid_constant__ TileMap x, const bf16*, const u32* __restrict__ codes, const u32* __restrict__ absmax,
              const u32* __restrict__ header, Result* __restrict__ y,
#if {{ branch }}
              const bf16* __restrict__ low, const float* __restrict__ b,
#endif
              const __grid_constant__ BranchInfo info) {
    LAUNCHED_SHARED(shared, {{ shared }});
    float* const map = (float*)(shared + MAP_AT);
    const Weight w = { codes, absmax, header, map, __uint_as_float(header[3]), header[0], header[1], header[2] != 0 };
    if (w.nested) {
        for (u32 i = threadIdx.x; i < 256; i += THREADS) map[i] = __uint_as_float(header[MAP + i]);
        __syncthreads();
    }
    const Place at = place();
    float sum[SUMS] = {};
    add_weight(sum, at, shared, w, x, info);
#if {{ branch }}
    add_branch<true>(sum, at, shared, low, b, info);
#endif
    store<true>(y, sum, at, info.rows, TRANSPOSED ? info.in : info.out);
}
