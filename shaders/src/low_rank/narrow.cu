// low[rows, rank] = scaling · x[rows, wide] · Fᵀ, F[rank, wide], or transposed, scaling · x · F, F[wide, rank], rounded to bf16; and x
// where it comes in f32, for the product with a 4-bit weight that comes next.
//
// Grid: x = ceil(rows / TILE), y = ceil(rank / WIDTH). shaders/src/low_rank/common.cu comes before this text.
// Columns that a warp takes at once, in slices of 16: as many bytes are under way for a tile of any height.
constexpr u32 DEPTH = 1024 / TILE, SLICES = DEPTH / 16;

// F at four neighbours of the inner dimension, for the column of the rank that a thread has of a tile.
template <bool ALIGNED>
__device__ __forceinline__ float4 load_factor(const float* f, const Info& info, u32 column, u32 k) {
    if (column >= info.rank) return make_float4(0, 0, 0, 0);
    if (!TRANSPOSED) return load_four<ALIGNED>(f + (size_t)column * info.wide, k, info.wide);
    const auto at = [&](u32 k) { return k < info.wide ? f[(size_t)k * info.rank + column] : 0.0f; };
    return make_float4(at(k), at(k + 1), at(k + 2), at(k + 3));
}

// A row's four neighbours in bf16, as they are written.
template <bool ALIGNED>
__device__ __forceinline__ void store_rounded(bf16* row, u32 first, u32 end, uint2 four) {
    if (ALIGNED) {
        if (first < end) *(uint2*)(row + first) = four;
        return;
    }
    const u32 pairs[2] = { four.x, four.y };
#pragma unroll
    for (u32 i = 0; i < 4; i++)
        if (first + i < end) row[first + i] = (bf16)(pairs[i / 2] >> i % 2 * 16);
}

template <bool ALIGNED>
__device__ __forceinline__ void accumulate(const Input* x, const float* f, bf16* rounded, const Info& info,
                                           float (&sum)[PIECES][TILES][4]) {
    const u32 top = blockIdx.x * TILE, left = blockIdx.y * WIDTH, group = lane() / 4, quad = lane() % 4 * 4;
    for (u32 start = threadIdx.x / 32 * DEPTH; start < info.wide; start += WARPS * DEPTH) {
        // Everything is asked for before anything is used.
        Loaded loaded[SLICES][2 * PIECES];
        float4 factor[SLICES][TILES];
#pragma unroll
        for (u32 s = 0; s < SLICES; s++)
#pragma unroll
            for (u32 i = 0; i < 2 * PIECES; i++) {
                const u32 row = top + 8 * i + group, end = row < info.rows ? info.wide : 0;
                loaded[s][i] = load_four<ALIGNED>(x + (size_t)row * info.wide, start + 16 * s + quad, end);
            }
#pragma unroll
        for (u32 s = 0; s < SLICES; s++)
#pragma unroll
            for (u32 j = 0; j < TILES; j++)
                factor[s][j] = load_factor<ALIGNED>(f, info, left + 8 * j + group, start + 16 * s + quad);
#pragma unroll
        for (u32 s = 0; s < SLICES; s++) {
            const u32 k = start + 16 * s + quad;
            u32 a[PIECES][4];
#pragma unroll
            for (u32 i = 0; i < 2 * PIECES; i++) {
                const uint2 four = rounded_four(loaded[s][i]);
                a[i / 2][i % 2] = four.x, a[i / 2][2 + i % 2] = four.y;
                const u32 row = top + 8 * i + group;
                if (sizeof(Input) == 4 && blockIdx.y == 0 && row < info.rows)
                    store_rounded<ALIGNED>(rounded + (size_t)row * info.wide, k, info.wide, four);
            }
#pragma unroll
            for (u32 j = 0; j < TILES; j++) {
                const uint2 four = rounded_four(factor[s][j]);
#pragma unroll
                for (u32 t = 0; t < PIECES; t++) multiply_add(sum[t][j], a[t], four.x, four.y);
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
low_rank_narrow(const Input* __restrict__ x, const float* __restrict__ f, bf16* __restrict__ low,
#if {{ rounds }}
                bf16* __restrict__ rounded,
#endif
                const __grid_constant__ Info info) {
#if !{{ rounds }}
    bf16* const rounded = nullptr;
#endif
    __shared__ float total[TILE][WIDTH + 1];
    float sum[PIECES][TILES][4] = {};
    const bool aligned =
        info.wide % 4 == 0 && (size_t)x % (4 * sizeof(Input)) == 0 && (size_t)f % 16 == 0 && (size_t)rounded % 8 == 0;
    if (aligned) accumulate<true>(x, f, rounded, info, sum);
    else accumulate<false>(x, f, rounded, info, sum);
    add_up(total, sum);
    for (u32 i = threadIdx.x; i < TILE * WIDTH; i += THREADS) {
        const u32 row = blockIdx.x * TILE + i / WIDTH, column = blockIdx.y * WIDTH + i % WIDTH;
        if (row < info.rows && column < info.rank)
            low[(size_t)row * info.rank + column] = (bf16)pack_bf16(total[i / WIDTH][i % WIDTH] * info.scaling, 0);
    }
}
