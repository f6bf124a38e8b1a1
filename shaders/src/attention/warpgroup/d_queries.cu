// See ../d_queries.cu: ROWS queries of one head go through the keys that they see.
static_assert(2 * ROWS_BYTES + STAGES * 2 * COLUMNS_BYTES <= BARRIERS_AT, "what the launch asks for");

extern "C" __global__ void __launch_bounds__(THREADS, 1)
attention_d_queries_groups(const __grid_constant__ TileMap q, const __grid_constant__ TileMap k, const __grid_constant__ TileMap v,
                           const __grid_constant__ TileMap grad, const bf16*, const bf16*, const bf16*, const bf16*,
                           const float* __restrict__ known, const uint2* __restrict__ bounds, Result* __restrict__ d_q,
                           const __grid_constant__ Info info) {
    LAUNCHED_SHARED(shared, {{ shared }});
    u64* const barriers = (u64*)(shared + BARRIERS_AT);
    const Queries of = queries_of(info, bounds);
    make_barriers(barriers);
    const auto stage_of = [&](u32 step) { return shared + 2 * ROWS_BYTES + step % STAGES * 2 * COLUMNS_BYTES; };
    const auto start = [&](u32 step) { start_step(stage_of(step), k, v, of, step, barriers); };
    if (threadIdx.x == 0) start_both<ROWS>(shared, q, grad, of.head, of.row, barriers);
    start(0);
    const u32 first = of.row + threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4;
    const uint2 seen[2] = { seen_by(bounds, first, info.tokens), seen_by(bounds, first + 8, info.tokens) };
    const u32 all_from = bounds[of.last].x, all_to = bounds[of.row].y + 1;
    const float unit = info.scale * LOG2_E;
    float lse[2] = {}, delta[2] = {};
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        if (first + 8 * half >= info.tokens) continue;
        const size_t at = (size_t)(first + 8 * half) * info.heads + of.head;
        lse[half] = known[at] * LOG2_E;
        delta[half] = known[(size_t)info.tokens * info.heads + at];
    }
    float scores[COLUMNS / 2] = {}, d_scores[COLUMNS / 2] = {}, sums[HALVES][32] = {};
    // Products read them while the next step begins.
    u32 rounded[COLUMNS / 16][4];
    await_tile(barriers, 0);
    for (u32 step = 0; step < of.steps; step++) {
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
        const u32 key = of.begin + step * COLUMNS;
        if (key < all_from || key + COLUMNS > all_to) hide(scores, seen, key);
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
    store_rows(d_q + of.head * HEAD_DIM, (size_t)info.heads * HEAD_DIM, first, info.tokens, sums, info.scale, info.scale);
}
