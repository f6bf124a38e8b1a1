// The gradient of a low-rank matrix, a sum over rows: scaling · nᵀ · z of n[rows, rank] in bf16 and z[rows, wide], as [rank, wide], or
// transposed, as [wide, rank], in f32.
//
// Grid: x = ceil(wide / TILE), y = ceil(rank / WIDTH). shaders/src/low_rank/common.cu comes before this text.
constexpr u32 DEPTH = 16;
static_assert(TILE == 32, "a thread has four neighbouring columns");
// Steps whose loads are under way together, as far as there are registers for them.
constexpr u32 UNROLLED = TILES > 4 ? 1 : sizeof(Input) == 2 ? 4 : 2;

// The elements of two rows in four neighbouring columns, one column's side by side.
__device__ __forceinline__ void pair_rows(u32 (&pairs)[4], float4 first, float4 second) {
    pairs[0] = pack_bf16(first.x, second.x), pairs[1] = pack_bf16(first.y, second.y);
    pairs[2] = pack_bf16(first.z, second.z), pairs[3] = pack_bf16(first.w, second.w);
}

__device__ __forceinline__ void pair_rows(u32 (&pairs)[4], uint2 first, uint2 second) {
    pairs[0] = __byte_perm(first.x, second.x, 0x5410), pairs[1] = __byte_perm(first.x, second.x, 0x7632);
    pairs[2] = __byte_perm(first.y, second.y, 0x5410), pairs[3] = __byte_perm(first.y, second.y, 0x7632);
}

template <bool ALIGNED>
__device__ __forceinline__ void accumulate(const bf16* n, const Input* z, const Info& info,
                                           float (&sum)[PIECES][TILES][4]) {
    const u32 left = blockIdx.y * WIDTH, group = lane() / 4, quad = lane() % 4 * 4;
    // Four neighbouring columns of z: rows `group` and `group + 8` of two instructions' left operands.
    const u32 column = blockIdx.x * TILE + group * 4;
#pragma unroll UNROLLED
    for (u32 start = threadIdx.x / 32 * DEPTH; start < info.rows; start += WARPS * DEPTH) {
        Loaded four[4];
        u32 factor[TILES][4];
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            const u32 row = start + quad + i;
            const bool inside = row < info.rows;
            four[i] = load_four<ALIGNED>(z + (size_t)row * info.wide, column, inside ? info.wide : 0);
#pragma unroll
            for (u32 j = 0; j < TILES; j++) {
                const u32 of = left + 8 * j + group;
                factor[j][i] = inside && of < info.rank ? n[(size_t)row * info.rank + of] : 0;
            }
        }
        u32 upper[4], lower[4];
        pair_rows(upper, four[0], four[1]);
        pair_rows(lower, four[2], four[3]);
        const u32 a[2][4] = { { upper[0], upper[1], lower[0], lower[1] }, { upper[2], upper[3], lower[2], lower[3] } };
#pragma unroll
        for (u32 j = 0; j < TILES; j++) {
            const u32 low = factor[j][0] | factor[j][1] << 16, high = factor[j][2] | factor[j][3] << 16;
#pragma unroll
            for (u32 t = 0; t < 2; t++) multiply_add(sum[t][j], a[t], low, high);
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
low_rank_outer(const bf16* __restrict__ n, const Input* __restrict__ z, float* __restrict__ result,
               const __grid_constant__ Info info) {
    // Row 16 t + 8 h + g of the total is column 4 g + 2 t + h of the block's.
    __shared__ float total[TILE][WIDTH + 1];
    float sum[PIECES][TILES][4] = {};
    if (info.wide % 4 == 0 && (size_t)z % (4 * sizeof(Input)) == 0) accumulate<true>(n, z, info, sum);
    else accumulate<false>(n, z, info, sum);
    add_up(total, sum);
    for (u32 i = threadIdx.x; i < TILE * WIDTH; i += THREADS) {
        // Neighbouring threads write neighbours.
        const u32 of_wide = TRANSPOSED ? i / WIDTH : i % TILE, of_rank = TRANSPOSED ? i % WIDTH : i / TILE;
        const u32 column = blockIdx.x * TILE + of_wide, rank = blockIdx.y * WIDTH + of_rank;
        if (column >= info.wide || rank >= info.rank) continue;
        const float value = total[of_wide % 4 / 2 * 16 + of_wide % 2 * 8 + of_wide / 4][of_rank] * info.scaling;
        result[TRANSPOSED ? (size_t)column * info.rank + rank : (size_t)rank * info.wide + column] = value;
    }
}
