// y[rows, out] = x[rows, in] · Wᵀ for a handful of rows, as in decoding: each packed weight is read once. With a BRANCH
// beside the weight, y = x · Wᵀ + scaling · low[rows, rank] · Bᵀ, B[out, rank].
//
// Grid: in x and y together at least ceil(out / (THREADS / 32 / SPLIT * FEATURES)): SPLIT warps take FEATURES output
// features. With 256 threads a block has 8 of them for one or two rows, 16 for four and 32 for more.
// The cost is the traffic of the codes, so all that each code needs beside its load is a shift, a shuffle and the
// multiply-adds: the 16 levels lie in the lanes of the warp, and the scale is applied once per piece of 32 codes.

// Rows that there are accumulators for; info.rows is at most this.
constexpr u32 ROWS = {{ rows }};
constexpr u32 THREADS = {{ threads }}, WARPS = THREADS / 32;
// Output features of a warp: what it reads of x from shared memory serves this many.
constexpr u32 FEATURES = 4;
// Warps that share the features and divide the inner dimension: with few rows there is too little work per feature to
// keep enough loads in flight otherwise, with many x would be read too often.
constexpr u32 SPLIT = ROWS <= 2 ? 4 : ROWS <= 4 ? 2 : 1;
// A lane's piece: codes that it loads at once, 16 bytes of them where x leaves enough shared memory.
constexpr u32 WORDS = ROWS <= 8 ? 4 : 2, PIECE = 8 * WORDS;
// Elements of x that are staged at a time. Four floats of padding per piece spread the lanes' reads over all banks.
constexpr u32 SPAN = 32 * PIECE, DEPTH = SPLIT * SPAN, STRIDE = PIECE + 4, ROW = DEPTH / PIECE * STRIDE;
constexpr u32 SUMS = ROWS * FEATURES;
static_assert(THREADS % (32 * SPLIT) == 0 && WARPS * SUMS <= ROWS * ROW, "no room for the sums of the warps");

#define BRANCH {{ branch }}
#if BRANCH
typedef BranchInfo SkinnyInfo;
#else
typedef Info SkinnyInfo;
#endif

__device__ __forceinline__ u32 block_index() { return blockIdx.y * gridDim.x + blockIdx.x; }

// Adds this warp's part of the product to `sum`. ALIGNED: every piece is whole words of one row and of one block.
template <bool ALIGNED>
__device__ __forceinline__ void accumulate(const float* x, const Weight& w, const Info& info, float* tile,
                                           float (&sum)[SUMS]) {
    // One multiplication for each row or one for each code, whichever are fewer.
    constexpr bool SCALE_SUMS = ALIGNED && ROWS <= 4;
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, part = warp % SPLIT;
    const u32 feature = (block_index() * (WARPS / SPLIT) + warp / SPLIT) * FEATURES;
    const float level = NF4[lane % 16];
    const float* piece = tile + (part * 32 + lane) * STRIDE;
    for (u32 start = 0; start < info.in; start += DEPTH) {
        const bool busy = start + part * SPAN < info.in;
        const u32 k = start + part * SPAN + lane * PIECE;
        u32 packed[FEATURES][WORDS] = {}, left[FEATURES] = {};
        float factor[FEATURES] = {}, after[FEATURES] = {};
        Scale scale[FEATURES] = {};
#pragma unroll
        for (u32 f = 0; f < FEATURES; f++) {
            // What lies past the end keeps code 0 and is multiplied by zeros of x.
            if (k >= info.in || feature + f >= info.out) continue;
            const u32 first = (feature + f) * info.in + k;
            if (ALIGNED) {
                load_codes(packed[f], w.codes + first / 8);
                scale[f] = fetch_scale(w, first);
            } else {
                // A piece is no longer than a block, so it touches two at most.
                left[f] = (1u << w.log2_block) - (first & ((1u << w.log2_block) - 1));
                factor[f] = finish_scale(w, fetch_scale(w, first));
                if (left[f] < PIECE && w.count - first > left[f])
                    after[f] = finish_scale(w, fetch_scale(w, first + left[f]));
            }
        }
        __syncthreads();
        if (ALIGNED) {
#pragma unroll 4
            for (u32 i = 4 * threadIdx.x; i < ROWS * DEPTH; i += 4 * THREADS) {
                const u32 row = i / DEPTH, at = i % DEPTH;
                float4 value = make_float4(0, 0, 0, 0);
                const bool inside = row < info.rows && start + at < info.in;
                if (inside) value = *(const float4*)(x + (size_t)row * info.in + start + at);
                *(float4*)(tile + row * ROW + at / PIECE * STRIDE + at % PIECE) = value;
            }
        } else {
#pragma unroll 1
            for (u32 i = threadIdx.x; i < ROWS * DEPTH; i += THREADS) {
                const u32 row = i / DEPTH, at = i % DEPTH;
                const bool inside = row < info.rows && start + at < info.in;
                const float value = inside ? x[(size_t)row * info.in + start + at] : 0.0f;
                tile[row * ROW + at / PIECE * STRIDE + at % PIECE] = value;
            }
        }
        __syncthreads();
        // All lanes agree; the vote lets the compiler know that it needs no code for shuffles between diverged lanes.
        if (!__any_sync(0xffffffff, busy)) continue;
        float staged[SUMS] = {};
        if (ALIGNED)
#pragma unroll
            for (u32 f = 0; f < FEATURES; f++) factor[f] = finish_scale(w, scale[f]);
        // Unrolled, the ragged case would need the most registers, and no one waits for it.
#pragma unroll (ALIGNED ? 2 * WORDS : 1)
        for (u32 e = 0; e < PIECE; e += 4) {
            float value[FEATURES][4];
#pragma unroll
            for (u32 f = 0; f < FEATURES; f++) {
                u32 word = ALIGNED ? packed[f][e / 8] : 0;
                if (!ALIGNED && k < info.in && feature + f < info.out)
                    word = codes_at(w, (feature + f) * info.in + k + e);
#pragma unroll
                for (u32 i = 0; i < 4; i++) {
                    // In memory order the first element of a byte is the high nibble.
                    const u32 at = (e + i) % 8, shift = ALIGNED ? 8 * (at / 2) + 4 * (1 - at % 2) : 28 - 4 * i;
                    // A shuffle looks at five bits only, and the fifth chooses between two copies of the table.
                    value[f][i] = __shfl_sync(0xffffffff, level, word >> shift);
                    if (!ALIGNED) value[f][i] *= e + i < left[f] ? factor[f] : after[f];
                    else if (!SCALE_SUMS) value[f][i] *= factor[f];
                }
            }
#pragma unroll
            for (u32 r = 0; r < ROWS; r++) {
                const float4 v = *(const float4*)(piece + r * ROW + e);
#pragma unroll
                for (u32 f = 0; f < FEATURES; f++) {
                    float& to = SCALE_SUMS ? staged[r * FEATURES + f] : sum[r * FEATURES + f];
                    to += value[f][0] * v.x;
                    to += value[f][1] * v.y;
                    to += value[f][2] * v.z;
                    to += value[f][3] * v.w;
                }
            }
        }
        if (SCALE_SUMS)
#pragma unroll
            for (u32 r = 0; r < ROWS; r++)
#pragma unroll
                for (u32 f = 0; f < FEATURES; f++) sum[r * FEATURES + f] += factor[f] * staged[r * FEATURES + f];
    }
}

#if BRANCH
// Adds this lane's part of the branch, which is as many more inner elements as its rank.
__device__ __forceinline__ void add_branch(const float* low, const float* b, const SkinnyInfo& info,
                                           float (&sum)[SUMS]) {
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, part = warp % SPLIT;
    const u32 feature = (block_index() * (WARPS / SPLIT) + warp / SPLIT) * FEATURES;
#pragma unroll 1
    for (u32 k = part * 32 + lane; k < info.rank; k += 32 * SPLIT) {
        float factor[FEATURES];
#pragma unroll
        for (u32 f = 0; f < FEATURES; f++)
            factor[f] = feature + f < info.out ? info.scaling * b[(size_t)(feature + f) * info.rank + k] : 0.0f;
#pragma unroll
        for (u32 r = 0; r < ROWS; r++) {
            if (r >= info.rows) break;
            const float value = low[(size_t)r * info.rank + k];
#pragma unroll
            for (u32 f = 0; f < FEATURES; f++) sum[r * FEATURES + f] += factor[f] * value;
        }
    }
}
#endif

// Sums over the lanes: of WIDTH sums, lane i has the WIDTH / 32 from i * WIDTH / 32 on in the end. While there are
// several, two lanes that are OFFSET apart halve them between each other instead of both adding all.
template <u32 WIDTH, u32 OFFSET>
__device__ __forceinline__ void sum_lanes(float (&sum)[SUMS]) {
    constexpr u32 HALF = WIDTH / 2;
    if constexpr (WIDTH > 1) {
        const bool upper = threadIdx.x & OFFSET;
#pragma unroll
        for (u32 i = 0; i < HALF; i++) {
            const float keep = upper ? sum[i + HALF] : sum[i], give = upper ? sum[i] : sum[i + HALF];
            sum[i] = keep + __shfl_xor_sync(0xffffffff, give, OFFSET);
        }
    } else {
        sum[0] += __shfl_xor_sync(0xffffffff, sum[0], OFFSET);
    }
    if constexpr (OFFSET > 1) sum_lanes<(WIDTH > 1 ? HALF : 1), OFFSET / 2>(sum);
}

extern "C" __global__ void __launch_bounds__(THREADS)
nf4_skinny(const u32* __restrict__ codes, const u32* __restrict__ absmax, const u32* __restrict__ header,
           const float* __restrict__ x, float* __restrict__ y,
#if BRANCH
           const float* __restrict__ low, const float* __restrict__ b,
#endif
           const __grid_constant__ SkinnyInfo info) {
    __shared__ __align__(16) float tile[ROWS * ROW];
    __shared__ float map[256];
    const Weight w = { codes, absmax, header, map, __uint_as_float(header[3]), header[0], header[1], header[2] != 0 };
    if (w.nested) {
        for (u32 i = threadIdx.x; i < 256; i += THREADS) map[i] = __uint_as_float(header[MAP + i]);
        __syncthreads();
    }

    float sum[SUMS] = {};
#if BRANCH
    add_branch(low, b, info, sum);
#endif
    // Buffers begin at aligned addresses, but a view of one need not.
    if (info.in % 32 == 0 && ((size_t)x | (size_t)codes) % 16 == 0) accumulate<true>(x, w, info, tile, sum);
    else accumulate<false>(x, w, info, tile, sum);

    sum_lanes<SUMS, 16>(sum);
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    __syncthreads();
    constexpr u32 KEPT = SUMS > 32 ? SUMS / 32 : 1;
#pragma unroll
    for (u32 i = 0; i < KEPT; i++) tile[warp * SUMS + lane * SUMS / 32 + i] = sum[i];
    __syncthreads();
    for (u32 i = threadIdx.x; i < WARPS / SPLIT * SUMS; i += THREADS) {
        const u32 group = i / SUMS, row = i % SUMS / FEATURES;
        const u32 feature = (block_index() * (WARPS / SPLIT) + group) * FEATURES + i % FEATURES;
        float total = 0;
        for (u32 part = 0; part < SPLIT; part++) total += tile[(group * SPLIT + part) * SUMS + i % SUMS];
        if (row < info.rows && feature < info.out) y[(size_t)row * info.out + feature] = total;
    }
}
