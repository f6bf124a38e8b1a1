// Attention in f32 on the cores of any GPU: nothing is rounded. What all of these kernels share.
//
// A block takes tiles of ROWS by COLUMNS scores, of which a thread has four by four, and multiplies a tile with COLUMNS elements of a head
// at once.

// Elements of the inner dimension that are in shared memory at once, and how often a head is as wide as a tile.
constexpr u32 DEPTH = 16, PARTS = (HEAD_DIM + COLUMNS - 1) / COLUMNS;
static_assert(ROWS == 64 && COLUMNS == 64 && THREADS == 256, "16 by 16 threads have four rows and four columns each");

// Blocks on a processor: sums of wide heads take the registers of two.
constexpr u32 RESIDENT = PARTS > 2 ? 1 : 2;

// The rows of a head, `stride` elements apart.
struct Rows { const float* head; size_t stride; u32 count; };

// By the inner dimension first. While one pair of operands is multiplied the next one arrives.
struct Tiles {
    float a[2][DEPTH][ROWS], b[2][DEPTH][COLUMNS];
    float scores[COLUMNS][ROWS];
};

// This thread's four rows and four columns of a tile.
__device__ __forceinline__ u32 row_group() { return threadIdx.x / 16; }
__device__ __forceinline__ u32 column_group() { return threadIdx.x % 16; }

// Four elements of a row from `column` on; zeros outside.
__device__ __forceinline__ float4 fetch(const Rows& x, u32 row, u32 column) {
    float4 found = make_float4(0, 0, 0, 0);
    if (row >= x.count) return found;
    const float* from = x.head + row * x.stride + column;
    if (HEAD_DIM % 4 == 0) {
        if (column < HEAD_DIM) found = *(const float4*)from;
    } else {
        if (column < HEAD_DIM) found.x = from[0];
        if (column + 1 < HEAD_DIM) found.y = from[1];
        if (column + 2 < HEAD_DIM) found.z = from[2];
        if (column + 3 < HEAD_DIM) found.w = from[3];
    }
    return found;
}

__device__ __forceinline__ void store(float* head, size_t stride, u32 row, u32 rows, u32 column, const float (&values)[4]) {
    if (row >= rows) return;
    float* to = head + row * stride + column;
    if (HEAD_DIM % 4 == 0) {
        if (column < HEAD_DIM) *(float4*)to = make_float4(values[0], values[1], values[2], values[3]);
    } else {
#pragma unroll
        for (u32 i = 0; i < 4; i++)
            if (column + i < HEAD_DIM) to[i] = values[i];
    }
}

// Where elements of an operand lie whose inner dimension is `k`: permuted, so that a warp's threads, which each store four of these
// dimensions, meet different banks.
__device__ __forceinline__ u32 operand_at(u32 k, u32 line) { return line ^ k / 4 * 8; }

// Where four rows of a column of scores lie: permuted for the same reason.
__device__ __forceinline__ u32 scores_at(u32 column, u32 group) { return (group ^ column / 4) * 4; }

__device__ __forceinline__ void multiply_add(float (&sums)[4][4], const float* a, const float* b) {
    const float4 left = *(const float4*)a, right = *(const float4*)b;
    const float rows[4] = { left.x, left.y, left.z, left.w }, columns[4] = { right.x, right.y, right.z, right.w };
#pragma unroll
    for (u32 i = 0; i < 4; i++)
#pragma unroll
        for (u32 j = 0; j < 4; j++) sums[i][j] += rows[i] * columns[j];
}

// sums += ROWS rows of `a` times COLUMNS rows of `b`, transposed, over the whole head. The block's threads have left it together.
__device__ __forceinline__ void multiply(Tiles& tiles, const Rows& a, u32 row, const Rows& b, u32 column, float (&sums)[4][4]) {
    constexpr u32 STEPS = (HEAD_DIM + DEPTH - 1) / DEPTH;
    const u32 line = threadIdx.x / 4, deep = threadIdx.x % 4 * 4, place = operand_at(deep, line);
    float4 of_a = fetch(a, row + line, deep), of_b = fetch(b, column + line, deep);
#pragma unroll 1
    for (u32 step = 0; step < STEPS; step++) {
        float (&left)[DEPTH][ROWS] = tiles.a[step % 2];
        float (&right)[DEPTH][COLUMNS] = tiles.b[step % 2];
        left[deep][place] = of_a.x, left[deep + 1][place] = of_a.y, left[deep + 2][place] = of_a.z, left[deep + 3][place] = of_a.w;
        right[deep][place] = of_b.x, right[deep + 1][place] = of_b.y, right[deep + 2][place] = of_b.z, right[deep + 3][place] = of_b.w;
        // The other pair is written to after the next one: then all have read it.
        __syncthreads();
        if (step + 1 < STEPS) {
            of_a = fetch(a, row + line, (step + 1) * DEPTH + deep);
            of_b = fetch(b, column + line, (step + 1) * DEPTH + deep);
        }
#pragma unroll
        for (u32 k = 0; k < DEPTH; k++)
            multiply_add(sums, &left[k][operand_at(k, row_group() * 4)], &right[k][operand_at(k, column_group() * 4)]);
    }
    __syncthreads();
}

// Puts a thread's scores where `accumulate` reads them.
__device__ __forceinline__ void put_scores(Tiles& tiles, const float (&scores)[4][4]) {
#pragma unroll
    for (u32 c = 0; c < 4; c++) {
        const u32 column = column_group() * 4 + c;
        *(float4*)&tiles.scores[column][scores_at(column, row_group())] =
            make_float4(scores[0][c], scores[1][c], scores[2][c], scores[3][c]);
    }
}

// sums[part] += the tile of scores times a part of the rows of `b` from `first` on. The block's threads have left it together.
__device__ __forceinline__ void accumulate(Tiles& tiles, const Rows& b, u32 first, float (&sums)[PARTS][4][4]) {
    constexpr u32 STRIPS = COLUMNS / DEPTH;
    const u32 line = threadIdx.x / 16, column = threadIdx.x % 16 * 4;
    float4 next = fetch(b, first + line, column);
#pragma unroll
    for (u32 part = 0; part < PARTS; part++)
#pragma unroll 1
        for (u32 strip = 0; strip < STRIPS; strip++) {
            float (&right)[DEPTH][COLUMNS] = tiles.b[strip % 2];
            *(float4*)&right[line][column] = next;
            __syncthreads();
            const u32 after = part * STRIPS + strip + 1;
            if (after < PARTS * STRIPS) next = fetch(b, first + after % STRIPS * DEPTH + line, after / STRIPS * COLUMNS + column);
#pragma unroll
            for (u32 k = 0; k < DEPTH; k++) {
                const u32 at = strip * DEPTH + k;
                multiply_add(sums[part], &tiles.scores[at][scores_at(at, row_group())], &right[k][column_group() * 4]);
            }
        }
    __syncthreads();
}

// Over the threads that share a row.
__device__ __forceinline__ float largest_of_row(float value) {
#pragma unroll
    for (u32 lanes = 8; lanes > 0; lanes /= 2) value = fmaxf(value, __shfl_xor_sync(0xffffffff, value, lanes));
    return value;
}

__device__ __forceinline__ float sum_of_row(float value) {
#pragma unroll
    for (u32 lanes = 8; lanes > 0; lanes /= 2) value += __shfl_xor_sync(0xffffffff, value, lanes);
    return value;
}
