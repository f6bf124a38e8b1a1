// See ../d_keys.cu: ROWS keys of one key head go through the queries that see them. Grid: splits times key heads, blocks of keys.

// What is known of each query: the logarithm of its sum, delta, and its bounds.
constexpr u32 KNOWN_AT = 2 * COLUMNS_BYTES, STAGE_BYTES = KNOWN_AT + 4 * COLUMNS * 4;
static_assert(STAGE_BYTES % 1024 == 0, "tiles begin at multiples of 1024");
static_assert(2 * ROWS_BYTES + STAGES * STAGE_BYTES <= BARRIERS_AT, "what the launch asks for");
static_assert(4 * COLUMNS <= THREADS, "a thread copies a word of what is known");

extern "C" __global__ void __launch_bounds__(THREADS, 1)
attention_d_keys_groups(const __grid_constant__ TileMap q, const __grid_constant__ TileMap k, const __grid_constant__ TileMap v,
                        const __grid_constant__ TileMap grad, const bf16*, const bf16*, const bf16*, const bf16*,
                        const float* __restrict__ known, const uint2* __restrict__ bounds, Result* __restrict__ d_k,
                        Result* __restrict__ d_v, const __grid_constant__ Info info) {
    LAUNCHED_SHARED(shared, {{ shared }});
    u64* const barriers = (u64*)(shared + BARRIERS_AT);
    const u32 kv_head = blockIdx.x % info.kv_heads, split = blockIdx.x / info.kv_heads;
    const u32 members = info.heads / info.kv_heads / info.splits;
    const u32 row = (info.first_block + blockIdx.y) * ROWS;
    const u32 begin = first_query(bounds, info.tokens, row), end = end_of_queries(bounds, info.tokens, row + ROWS - 1);
    const u32 tiles = begin < end ? (end - begin - 1) / COLUMNS + 1 : 0, steps = members * tiles;
    make_barriers(barriers);
    const auto stage_of = [&](u32 step) { return shared + 2 * ROWS_BYTES + step % STAGES * STAGE_BYTES; };
    const auto start = [&](u32 step) {
        if (step >= steps) return;
        char* const stage = stage_of(step);
        const u32 head = (kv_head * info.splits + split) * members + step / tiles, query = begin + step % tiles * COLUMNS;
        if (threadIdx.x == 0) start_both<COLUMNS>(stage, q, grad, head, query, barriers + 1 + step % STAGES);
        start_known(stage + KNOWN_AT, known, bounds, info, head, query);
    };
    if (threadIdx.x == 0) start_both<ROWS>(shared, k, v, kv_head, row, barriers);
    start(0);
    const u32 first = row + threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4;
    const float unit = info.scale * LOG2_E;
    float weights[COLUMNS / 2] = {}, d_scores[COLUMNS / 2] = {}, of_k[HALVES][32] = {}, of_v[HALVES][32] = {};
    u32 rounded[COLUMNS / 16][4], d_rounded[COLUMNS / 16][4];
    await_tile(barriers, 0);
    for (u32 step = 0; step < steps; step++) {
        const char* const stage = stage_of(step);
        const float *lse = (const float*)(stage + KNOWN_AT), *delta = lse + COLUMNS;
        const u32 *first_key = (const u32*)(delta + COLUMNS), *last_key = first_key + COLUMNS;
        // What the thread copied is there: all groups of copies but an empty one.
        commit_copies();
        commit_copies();
        await_copies_but_one();
        await_tile(barriers + 1 + step % STAGES, step / STAGES % 2);
        start_scores(weights, shared, stage);
        start_scores(d_scores, shared + ROWS_BYTES, stage + COLUMNS_BYTES);
        // The step before is done, in all warps: its stage is free.
        __syncthreads();
        start(step + 1);
        await_products(weights);
        pin(d_scores);
        // Bounds never fall: keys that the last query of the tile begins after, or the first one ends before, are not seen by all.
        if (first_key[COLUMNS - 1] > row || last_key[0] < row + ROWS - 1 || last_key[COLUMNS - 1] == 0)
#pragma unroll
            for (u32 i = 0; i < COLUMNS / 2; i++) {
                const u32 at = column_of(i), key = first + 8 * row_of(i);
                weights[i] = key >= first_key[at] && key <= last_key[at] ? weights[i] : HIDDEN;
            }
#pragma unroll
        for (u32 i = 0; i < COLUMNS / 2; i++) weights[i] = power_of_two(weights[i] * unit - lse[column_of(i)] * LOG2_E);
        round_sums(rounded, weights);
#pragma unroll
        for (u32 i = 0; i < COLUMNS / 2; i++) d_scores[i] = weights[i] * (d_scores[i] - delta[column_of(i)]);
        round_sums(d_rounded, d_scores);
        start_sums(of_v, rounded, stage + COLUMNS_BYTES);
        start_sums(of_k, d_rounded, stage);
        // Not beside the next step's: the compiler has not the registers for that.
        await_products_but<0>();
        pin(of_k);
        pin(of_v);
    }
    const size_t kv_width = (size_t)info.kv_heads * HEAD_DIM;
    d_k += split * info.keys * kv_width + kv_head * HEAD_DIM, d_v += split * info.keys * kv_width + kv_head * HEAD_DIM;
    store_rows(d_k, kv_width, first, info.keys, of_k, info.scale, info.scale);
    store_rows(d_v, kv_width, first, info.keys, of_v, 1, 1);
}
