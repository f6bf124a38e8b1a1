// What those kernels share that multiply by groups of four warps: a block of two of them takes 128 rows. Tiles lie in shared memory where
// the engine for copies puts them and the tensor cores take them, and while a step's scores become weights, products of the other group, and
// of the step before, are under way. For sm_90a, heads of 64 or 128 and scores without a cap.
//
// shaders/src/wgmma.cu and common.cu come before this text; tests/cuda/warpgroup.h has a twin of each function between the #ifdef and its
// #endif for the host.
constexpr u32 HALVES = HEAD_DIM / 64;
// A tile of rows is one of 64 elements of each after the other, in lines of 128 bytes.
constexpr u32 ROWS_BYTES = ROWS * HEAD_DIM * 2, COLUMNS_BYTES = COLUMNS * HEAD_DIM * 2, LINE_BYTES = 128;
// Tiles of columns that arrive while those before are worked on, and of each stage, after that of the block's own rows, a barrier that
// its bytes arrive at, at the end of shared memory.
constexpr u32 STAGES = 2, BARRIERS = 1 + STAGES, BARRIERS_AT = {{ shared }} - BARRIERS * 8;
static_assert(THREADS == 256, "two groups of four warps");
static_assert(HEAD_DIM % 64 == 0 && HALVES <= 2 && !CAPPED, "what these kernels are for");
static_assert(COLUMNS % 16 == 0, "wgmma takes 16 elements of the inner dimension");

#ifdef __CUDACC_RTC__
// Starts sum[64, COLUMNS] = a[64, 16] · b[COLUMNS, 16]ᵀ or, to `add`, more by that, both in shared memory.
__device__ __forceinline__ void start_product(float (&sum)[COLUMNS / 2], u64 a, u64 b, bool add) {
    asm volatile("{\n.reg .pred add;\nsetp.ne.u32 add, {{ add }}, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n{{ columns }}k16.f32.bf16.bf16 "
                 "{ {{ scores }} }, {{ both_described }}, add, 1, 1, 0, 0;\n}"
                 : {{ score_operands }} : "l"(a), "l"(b), "r"((u32)add));
}

// Starts sum[64, 64] += a[64, 16] · b[16, 64], where b is what `described` says.
__device__ __forceinline__ void start_product_of_rows(float (&sum)[32], const u32 (&a)[4], u64 b) {
    asm volatile("{\n.reg .pred add;\nsetp.eq.u32 add, 0, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
                 "{ {{ sums }} }, {{ a_and_b }}, add, 1, 1, 1;\n}"
                 : {{ sum_operands }}
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
#endif

// Starts the copy of COUNT rows of a head from `row` on, by one thread; beyond the last one there are zeros.
template <u32 COUNT>
__device__ __forceinline__ void start_rows(char* tile, const TileMap& map, u32 head, u32 row, u64* barrier) {
#pragma unroll
    for (u32 half = 0; half < HALVES; half++)
        start_tile(tile + half * COUNT * LINE_BYTES, map, head * HEAD_DIM + half * 64, row, barrier);
}

// The same of two tensors, one tile after the other: all that a barrier expects.
template <u32 COUNT>
__device__ __forceinline__ void start_both(char* tiles, const TileMap& one, const TileMap& other, u32 head, u32 row, u64* barrier) {
    constexpr u32 BYTES = COUNT * HEAD_DIM * 2;
    expect_bytes(barrier, 2 * BYTES);
    start_rows<COUNT>(tiles, one, head, row, barrier);
    start_rows<COUNT>(tiles + BYTES, other, head, row, barrier);
}

// That of the block's own rows and one of each stage, which all threads see afterwards.
__device__ __forceinline__ void make_barriers(u64* barriers) {
    if (threadIdx.x < BARRIERS) make_barrier(barriers + threadIdx.x);
    __syncthreads();
}

// Starts scores[64, COLUMNS] = the group's rows of `a` times those of `b`, transposed, over the whole head.
__device__ __forceinline__ void start_scores(float (&scores)[COLUMNS / 2], const char* a, const char* b) {
    const u64 left = described(a + threadIdx.x / 128 * 64 * LINE_BYTES), right = described(b);
    fence_registers();
#pragma unroll
    for (u32 k = 0; k < HEAD_DIM; k += 16) {
        // A slice is 32 bytes of each line: two units of the descriptor's address.
        const u32 half = k / 64, slice = k % 64 / 16 * 2;
        start_product(scores, left + half * (ROWS * LINE_BYTES / 16) + slice,
                      right + half * (COLUMNS * LINE_BYTES / 16) + slice, k > 0);
    }
    commit_products();
}

// Starts sums[64, HEAD_DIM] += rounded[64, COLUMNS] · b, the rows of which lie after each other.
__device__ __forceinline__ void start_sums(float (&sums)[HALVES][32], const u32 (&rounded)[COLUMNS / 16][4], const char* b) {
    const u64 right = described(b);
    fence_registers();
#pragma unroll
    for (u32 i = 0; i < COLUMNS / 16; i++)
#pragma unroll
        for (u32 half = 0; half < HALVES; half++)
            start_product_of_rows(sums[half], rounded[i], right + (half * COLUMNS + i * 16) * (LINE_BYTES / 16));
    commit_products();
}

// As products have sums, they want left operands.
__device__ __forceinline__ void round_sums(u32 (&rounded)[COLUMNS / 16][4], const float (&sums)[COLUMNS / 2]) {
#pragma unroll
    for (u32 i = 0; i < COLUMNS / 4; i++) rounded[i / 4][i % 4] = pack_bf16(sums[2 * i], sums[2 * i + 1]);
    // All of it before the first product: in between, the compiler would have the products wait for each other.
#pragma unroll
    for (u32 i = 0; i < COLUMNS / 16; i++) pin(rounded[i]);
}

__device__ __forceinline__ void pin(float (&sums)[HALVES][32]) {
#pragma unroll
    for (u32 half = 0; half < HALVES; half++) pin(sums[half]);
}

// The column of a tile, and which of the thread's two rows, that a score belongs to.
__device__ __forceinline__ u32 column_of(u32 i) { return i / 4 * 8 + threadIdx.x % 4 * 2 + i % 2; }
__device__ __forceinline__ u32 row_of(u32 i) { return i / 2 % 2; }

// A block's queries, from `row` to `last`, of one head, and the keys that they see, from `begin` on in steps of COLUMNS.
struct Queries { u32 head, kv_head, row, last, begin, steps; };

__device__ __forceinline__ Queries queries_of(const Info& info, const uint2* bounds) {
    const u32 head = blockIdx.x, kv_head = head / (info.heads / info.kv_heads);
    const u32 row = block_of_queries(info) * ROWS, last = min(row + ROWS, info.tokens) - 1;
    const u32 begin = bounds[row].x, steps = (bounds[last].y - begin) / COLUMNS + 1;
    return { head, kv_head, row, last, begin, steps };
}

// Starts the copies of a step's keys and values, by one thread, if there are so many steps.
__device__ __forceinline__ void start_step(char* tiles, const TileMap& k, const TileMap& v, const Queries& of, u32 step,
                                           u64* barriers) {
    if (threadIdx.x != 0 || step >= of.steps) return;
    start_both<COLUMNS>(tiles, k, v, of.kv_head, of.begin + step * COLUMNS, barriers + 1 + step % STAGES);
}

// What a query may see: the first key and the last one. A row that is none sees nothing.
__device__ __forceinline__ uint2 seen_by(const uint2* bounds, u32 row, u32 tokens) {
    return row < tokens ? bounds[row] : make_uint2(1, 0);
}

// Hides from the thread's two queries what they do not see of the COLUMNS keys from `key` on.
__device__ __forceinline__ void hide(float (&scores)[COLUMNS / 2], const uint2 (&seen)[2], u32 key) {
#pragma unroll
    for (u32 i = 0; i < COLUMNS / 2; i++) {
        const u32 at = key + column_of(i);
        const bool visible = at >= seen[row_of(i)].x && at <= seen[row_of(i)].y;
        scores[i] = visible ? scores[i] : HIDDEN;
    }
}

// Stores what a thread has of 64 rows of a head.
__device__ __forceinline__ void store_rows(Result* head, size_t stride, u32 first, u32 rows, const float (&sums)[HALVES][32],
                                           float factor, float other) {
#pragma unroll
    for (u32 half = 0; half < HALVES; half++)
#pragma unroll
        for (u32 i = 0; i < 32; i += 2) {
            const float by = row_of(i) == 0 ? factor : other;
            store(head, stride, first + 8 * row_of(i), rows, half * 64 + column_of(i), sums[half][i] * by, sums[half][i + 1] * by);
        }
}
