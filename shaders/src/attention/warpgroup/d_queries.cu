// See ../d_queries.cu: ROWS queries of one head go through the keys that they see.
static_assert(2 * ROWS_BYTES + STAGES * 2 * COLUMNS_BYTES <= BARRIERS_AT, "what the launch asks for");

extern "C" __global__ void __launch_bounds__(THREADS, 1)
attention_d_queries_groups(const __grid_constant__ TileMap q, const __grid_constant__ TileMap k, const __grid_constant__ TileMap v,
                           const __grid_constant__ TileMap grad, const bf16*, const bf16*, const bf16*, const bf16*,
                           const float* __restrict__ known, const uint2* __restrict__ bounds, float* __restrict__ d_q,
                           const __grid_constant__ Info info) {
    LAUNCHED_SHARED(shared, {{ shared }});
    u64* const barriers = (u64*)(shared + BARRIERS_AT);
    const u32 head = blockIdx.x, kv_head = head / (info.heads / info.kv_heads);
    const u32 row = block_of_queries(info) * ROWS, last = min(row + ROWS, info.tokens) - 1;
    const u32 begin = bounds[row].x, steps = (bounds[last].y - begin) / COLUMNS + 1;
    if (threadIdx.x < BARRIERS) make_barrier(barriers + threadIdx.x);
    __syncthreads();
    const auto stage_of = [&](u32 step) { return shared + 2 * ROWS_BYTES + step % STAGES * 2 * COLUMNS_BYTES; };
    const auto start = [&](u32 step) {
        if (threadIdx.x != 0 || step >= steps) return;
        u64* const barrier = barriers + 1 + step % STAGES;
        expect_bytes(barrier, 2 * COLUMNS_BYTES);
        start_rows<COLUMNS>(stage_of(step), k, kv_head, begin + step * COLUMNS, barrier);
        start_rows<COLUMNS>(stage_of(step) + COLUMNS_BYTES, v, kv_head, begin + step * COLUMNS, barrier);
    };
    if (threadIdx.x == 0) {
        expect_bytes(barriers, 2 * ROWS_BYTES);
        start_rows<ROWS>(shared, q, head, row, barriers);
        start_rows<ROWS>(shared + ROWS_BYTES, grad, head, row, barriers);
    }
    start(0);
    const u32 first = row + threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4;
    const uint2 seen[2] = { seen_by(bounds, first, info.tokens), seen_by(bounds, first + 8, info.tokens) };
    const u32 all_from = bounds[last].x, all_to = bounds[row].y + 1;
    const float unit = info.scale * LOG2_E;
    float lse[2] = {}, delta[2] = {};
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        if (first + 8 * half >= info.tokens) continue;
        const size_t at = (size_t)(first + 8 * half) * info.heads + head;
        lse[half] = known[at] * LOG2_E;
        delta[half] = known[(size_t)info.tokens * info.heads + at];
    }
    float scores[COLUMNS / 2] = {}, d_scores[COLUMNS / 2] = {}, sums[HALVES][32] = {};
    // Products read them while the next step begins.
    u32 rounded[COLUMNS / 16][4];
    await_tile(barriers, 0);
    for (u32 step = 0; step < steps; step++) {
        const char* const stage = stage_of(step);
        await_tile(barriers + 1 + step % STAGES, step / STAGES % 2);
        start_scores(scores, shared, stage);
        start_scores(d_scores, shared + ROWS_BYTES, stage + COLUMNS_BYTES);
        // The products of the step before are done, in all warps: its stage is free.
        await_products_but<2>();
        __syncthreads();
        start(step + 1);
        await_products_but<1>();
        pin(scores);
        const u32 key = begin + step * COLUMNS;
        if (key < all_from || key + COLUMNS > all_to)
#pragma unroll
            for (u32 i = 0; i < COLUMNS / 2; i++) {
                const u32 at = key + column_of(i);
                const bool visible = at >= seen[row_of(i)].x && at <= seen[row_of(i)].y;
                scores[i] = visible ? scores[i] : HIDDEN;
            }
#pragma unroll
        for (u32 i = 0; i < COLUMNS / 2; i++) scores[i] = power_of_two(scores[i] * unit - lse[row_of(i)]);
        await_products(d_scores);
#pragma unroll
        for (u32 i = 0; i < COLUMNS / 2; i++) d_scores[i] = scores[i] * (d_scores[i] - delta[row_of(i)]);
        round_sums(rounded, d_scores);
        start_sums(sums, rounded, stage);
    }
    await_products_but<0>();
    pin(sums);
    store_rows(d_q + head * HEAD_DIM, (size_t)info.heads * HEAD_DIM, first, info.tokens, sums, info.scale, info.scale);
}
