// Products y[rows, columns] on Hopper's tensor cores by groups of four warps, whose products run beside what the threads do next: what
// the kernels for their operands have in common. Operands are bf16, sums f32. For sm_90a.
//
// A block of 256 threads makes 128 columns of TILE_ROWS rows of y; two groups have 64 columns each. What they multiply is
// yᵀ = W · xᵀ: the left operand of a group's products may come from registers, so that W can be made there; tiles of x, the right
// one, lie in shared memory, where the GPU's engine for copies of tiles puts them. A step takes 64 elements of the inner dimension, in
// four slices, and the products of a step's four slices are under way together: what the threads do between two of them, waiting for
// each other included, costs no time as long as the queue does not run empty.
//
// shaders/src/wgmma.cu and results.cu come before this text; tests/cuda/warpgroup.h has a twin of each function between the #ifdef and its #endif for the
// host.
constexpr u32 TILE_ROWS = {{ tile_rows }}, SUMS = TILE_ROWS / 2, TILE_COLUMNS = 128, DEPTH = 64, STAGES = 4;
constexpr u32 THREADS = {{ threads }}, X_BYTES = TILE_ROWS * DEPTH * 2, SLICES = DEPTH / 16;
// Of each stage of x, a barrier that its bytes arrive at, at the end of shared memory.
constexpr u32 BARRIERS_AT = {{ shared }} - STAGES * 8;
constexpr bool TRANSPOSED = {{ gradient }};
static_assert(THREADS == 256, "two groups of four warps");
#ifdef __CUDACC_RTC__
// Starts sum[64, TILE_ROWS] += a[64, 16] · b[TILE_ROWS, 16]ᵀ, where b is what `described` says.
__device__ __forceinline__ void start_product(float (&sum)[SUMS], const u32 (&a)[4], u64 b) {
    asm volatile("{\n.reg .pred add;\nsetp.eq.u32 add, 0, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n{{ tile_rows }}k16.f32.bf16.bf16 "
                 "{ {{ sums }} }, {{ a_and_b }}, add, 1, 1, 0;\n}"
                 : {{ sum_operands }}
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

// Starts sum[64, TILE_ROWS] += a[64, 16] · b[TILE_ROWS, 16]ᵀ with both in shared memory; a may lie TRANSPOSED there.
__device__ __forceinline__ void start_product(float (&sum)[SUMS], u64 a, u64 b) {
    asm volatile("{\n.reg .pred add;\nsetp.eq.u32 add, 0, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n{{ tile_rows }}k16.f32.bf16.bf16 "
                 "{ {{ sums }} }, {{ both_described }}, add, 1, 1, {{ transposed }}, 0;\n}"
                 : {{ sum_operands }} : "l"(a), "l"(b));
}
#endif

struct Place { u32 lane, warp, top, left; };

// Blocks that run at a time take the same columns of eight tiles of rows: what they read of W they read together, and what they read
// of x is still in the second-level cache when the next ones come.
__device__ __forceinline__ Place place() {
    constexpr u32 TOGETHER = 8;
    const u32 block = blockIdx.y * gridDim.x + blockIdx.x, first = block / (TOGETHER * gridDim.x) * TOGETHER;
    const u32 of_group = block - first * gridDim.x, height = gridDim.y - first < TOGETHER ? gridDim.y - first : TOGETHER;
    return { threadIdx.x % 32, threadIdx.x / 32, (first + of_group % height) * TILE_ROWS, of_group / height * TILE_COLUMNS };
}

// The columns of y within the tile, i = 0 and 1, that a thread has sums of: rows lane / 4 and lane / 4 + 8 of its warp's 16. Which row
// of a product is which column of y is free. PAIRED: they are neighbours.
template <bool PAIRED>
__device__ __forceinline__ u32 column_of(const Place& at, u32 i) {
    return at.warp * 16 + (PAIRED ? at.lane / 4 * 2 + i : at.lane / 4 + 8 * i);
}

// Starts the copy of DEPTH columns of a matrix [rows, depth] from column `k` on.
__device__ __forceinline__ void start_rows(char* tile, const bf16* matrix, u32 top, u32 rows, u32 depth, u32 k) {
    const u32 tile_row = threadIdx.x / 8, chunk = threadIdx.x % 8;
    const bf16* from = matrix + (size_t)(top + tile_row) * depth + k + chunk * 8;
    char* const to = tile + tile_row * 128 + (chunk ^ tile_row % 8) * 16;
    const bool inside = k + chunk * 8 < depth;
#pragma unroll
    for (u32 i = 0; i < TILE_ROWS; i += 32, from += (size_t)32 * depth)
        copy_async(to + i * 128, from, inside && top + tile_row + i < rows);
}

__device__ __forceinline__ void multiply(float (&sum)[SUMS], const u32 (&a)[4], const char* x_tile, u32 slice) {
    fence_registers();
    // A slice is 32 bytes of each row: two units of the descriptor's address.
    start_product(sum, a, described(x_tile) + slice * 2);
    commit_products();
}

// Sums products of a step after the other up. `start_w(step)` starts the copies of W's part of a step, `begin(step)` and `end(step)` are
// called around its products, `left(a, step, slice)` makes a slice of the left operand. Tiles of x are the first STAGES of shared
// memory.
template <class Start, class Begin, class Left, class End>
__device__ __forceinline__ void sum_up(float (&sum)[SUMS], const Place& at, char* shared, const TileMap& x, u32 depth, Start start_w,
                                       Begin begin, Left left, End end) {
    const u32 steps = (depth - 1) / DEPTH + 1;
    u64* const barriers = (u64*)(shared + BARRIERS_AT);
    if (threadIdx.x < STAGES) make_barrier(barriers + threadIdx.x);
    __syncthreads();
    const auto start = [&](u32 step) {
        if (step < steps) {
            const u32 stage = step % STAGES;
            if (threadIdx.x == 0) {
                expect_bytes(barriers + stage, X_BYTES);
                start_tile(shared + stage * X_BYTES, x, step * DEPTH, at.top, barriers + stage);
            }
            start_w(step);
        }
        // A group of copies per step, an empty one where there is no step: the wait below counts groups.
        commit_copies();
    };
    start(0);
    start(1);
    u32 a[SLICES][4];
    for (u32 step = 0; step < steps; step++) {
        await_copies_but_one();
        await_tile(barriers + step % STAGES, step / STAGES % 2);
        __syncthreads();
        // Products of the step before may still read its stage; those of two before, whose stage is taken here, are done.
        start(step + 2);
        begin(step);
#pragma unroll
        for (u32 slice = 0; slice < SLICES; slice++) {
            await_products_but<3>();
            left(a[slice], step, slice);
            multiply(sum, a[slice], shared + step % STAGES * X_BYTES, slice);
        }
        end(step);
    }
    await_products(sum);
}

// What a thread has of 64 x 16 of a left operand, of the second matrix of a low-rank branch: a[0] and a[2] belong to its first column of
// y, a[1] and a[3] to the other one; each has two neighbours of the inner dimension, from 2 (lane % 4) on, of a[2] and a[3] eight later.
template <bool PAIRED, class Info>
__device__ __forceinline__ void round_b(u32 (&a)[4], const Place& at, const float* b, const Info& info, u32 k) {
    const u32 columns = TRANSPOSED ? info.in : info.out;
    const auto scaled = [&](u32 column, u32 k) {
        if (column >= columns || k >= info.rank) return 0.0f;
        return b[TRANSPOSED ? (size_t)k * columns + column : (size_t)column * info.rank + k] * info.scaling;
    };
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        const u32 first = k + i / 2 * 8 + at.lane % 4 * 2, column = at.left + column_of<PAIRED>(at, i % 2);
        a[i] = pack_bf16(scaled(column, first), scaled(column, first + 1));
    }
}

// Adds a low-rank branch, scaling · low[rows, rank] · bᵀ or, TRANSPOSED, scaling · low · b, to sums that are done.
template <bool PAIRED, class Info>
__device__ __forceinline__ void add_branch(float (&sum)[SUMS], const Place& at, char* shared, const bf16* low, const float* b,
                                           const Info& info) {
    for (u32 k = 0; k < info.rank; k += DEPTH) {
        // The products that read this memory are done, in all warps.
        __syncthreads();
        start_rows(shared, low, at.top, info.rows, info.rank, k);
        // An empty group after it, so that all but the last one are all there are.
        commit_copies();
        commit_copies();
        await_copies_but_one();
        fence_shared();
        __syncthreads();
        for (u32 slice = 0; slice < SLICES && k + slice * 16 < info.rank; slice++) {
            u32 a[4];
            round_b<PAIRED>(a, at, b, info, k + slice * 16);
            multiply(sum, a, shared, slice);
            await_products(sum);
        }
    }
}

// sum[4 t + 2 i + e] is row 8 t + 2 (lane % 4) + e of the tile, column i of the thread's two.
template <bool PAIRED, bool WHOLE>
__device__ __forceinline__ void store_rows(Result* y, const float (&sum)[SUMS], const Place& at, u32 rows, u32 columns) {
    const u32 column = at.left + column_of<PAIRED>(at, 0), other = at.left + column_of<PAIRED>(at, 1);
    const u32 first = at.top + at.lane % 4 * 2;
    Result* to = y + (size_t)first * columns;
#pragma unroll
    for (u32 t = 0; t < TILE_ROWS / 8; t++, to += (size_t)8 * columns)
#pragma unroll
        for (u32 e = 0; e < 2; e++) {
            Result* const row = to + (e == 0 ? 0 : columns);
            if (WHOLE && PAIRED) {
                put_pair(row + column, sum[4 * t + e], sum[4 * t + 2 + e]);
            } else if (WHOLE || first + 8 * t + e < rows) {
                if (WHOLE || column < columns) put(row + column, sum[4 * t + e]);
                if (WHOLE || other < columns) put(row + other, sum[4 * t + 2 + e]);
            }
        }
}

template <bool PAIRED>
__device__ __forceinline__ void store(Result* y, const float (&sum)[SUMS], const Place& at, u32 rows, u32 columns) {
    const bool whole = at.top + TILE_ROWS <= rows && at.left + TILE_COLUMNS <= columns;
    if (whole && columns % 2 == 0 && (size_t)y % (2 * sizeof(Result)) == 0) store_rows<PAIRED, true>(y, sum, at, rows, columns);
    else store_rows<PAIRED, false>(y, sum, at, rows, columns);
}
