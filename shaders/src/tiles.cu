// Tiles of a product y[rows, columns] on tensor cores, 128 x 128 by 256 threads: what the kernels for its operands have in common.
// Operands are bf16, sums f32. For sm_80 and up; shaders/src/results.cu comes before this text.
constexpr bool TRANSPOSED = {{ gradient }};
constexpr u32 THREADS = {{ threads }};
constexpr u32 TILE_ROWS = 128, TILE_COLUMNS = 128, TILE_DEPTH = 32, STAGES = 3;
static_assert(THREADS == 256, "8 warps, each with 64 x 32 elements of y");

// Tiles are made of chunks of 16 bytes. Within a line of shared memory the chunks are permuted, so that the eight rows
// of a matrix lie in different banks.
__device__ __forceinline__ u32 deep_at(u32 row, u32 chunk) { return row * TILE_DEPTH + (chunk ^ (row / 2 % 4)) * 8; }
__device__ __forceinline__ u32 wide_at(u32 row, u32 chunk) { return row * TILE_COLUMNS + (chunk ^ (row % 8)) * 8; }

constexpr u32 X_TILE = TILE_ROWS * TILE_DEPTH, W_TILE = TILE_COLUMNS * TILE_DEPTH;

// Starts the copy of a step's tile of 128 rows of a matrix, from row `top` on. ALIGNED: all of a chunk is inside of the matrix or none
// is, and it can be copied as a whole.
template <bool ALIGNED>
__device__ __forceinline__ void start_rows(bf16* tile, const bf16* matrix, u32 top, u32 rows, u32 depth, u32 step) {
#pragma unroll
    for (u32 i = 0; i < 2; i++) {
        const u32 tile_row = threadIdx.x / 4 + 64 * i, chunk = threadIdx.x % 4;
        const u32 row = top + tile_row, k = step * TILE_DEPTH + chunk * 8;
        const bool inside = row < rows && k < depth;
        const bf16* from = inside ? matrix + (size_t)row * depth + k : matrix;
        bf16* to = tile + deep_at(tile_row, chunk);
        if (ALIGNED) {
            copy_async(to, from, inside);
        } else {
#pragma unroll
            for (u32 j = 0; j < 8; j++) to[j] = inside && k + j < depth ? from[j] : 0;
        }
    }
}

__device__ __forceinline__ void multiply(const bf16* x_tile, const bf16* w_tile, float (&sum)[4][4][4]) {
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const u32 top = warp / 4 * 64, left = warp % 4 * 32;
#pragma unroll
    for (u32 k = 0; k < TILE_DEPTH; k += 16) {
        u32 a[4][4], b[2][4];
#pragma unroll
        for (u32 i = 0; i < 4; i++) load_matrices(a[i], x_tile + deep_at(top + 16 * i + lane % 16, k / 8 + lane / 16));
#pragma unroll
        for (u32 j = 0; j < 2; j++) {
            const u32 column = left + 16 * j;
            if (TRANSPOSED) load_matrices_transposed(b[j], w_tile + wide_at(k + lane % 16, column / 8 + lane / 16));
            else load_matrices(b[j], w_tile + deep_at(column + lane / 16 * 8 + lane % 8, k / 8 + lane / 8 % 2));
        }
#pragma unroll
        for (u32 i = 0; i < 4; i++)
#pragma unroll
            for (u32 j = 0; j < 4; j++) multiply_add(sum[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
    }
}

// Writes what a block has of y.
__device__ __forceinline__ void store(Result* y, const float (&sum)[4][4][4], u32 rows, u32 columns) {
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const bool vector = columns % 2 == 0 && (size_t)y % (2 * sizeof(Result)) == 0;
#pragma unroll
    for (u32 i = 0; i < 8; i++) {
        const u32 row = blockIdx.y * TILE_ROWS + warp / 4 * 64 + i * 8 + lane / 4;
        if (row >= rows) continue;
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
            const u32 column = blockIdx.x * TILE_COLUMNS + warp % 4 * 32 + j * 8 + lane % 4 * 2;
            Result* to = y + (size_t)row * columns + column;
            const float low = sum[i / 2][j][i % 2 * 2], high = sum[i / 2][j][i % 2 * 2 + 1];
            if (vector) {
                if (column < columns) put_pair(to, low, high);
            } else {
                if (column < columns) put(to, low);
                if (column + 1 < columns) put(to + 1, high);
            }
        }
    }
}
