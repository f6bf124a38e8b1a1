// See ../forward.cu: ROWS queries of one head go through the keys that they see.
static_assert(ROWS_BYTES + STAGES * 2 * COLUMNS_BYTES <= BARRIERS_AT, "what the launch asks for");

extern "C" __global__ void __launch_bounds__(THREADS, 1)
attention_forward_groups(const __grid_constant__ TileMap q, const __grid_constant__ TileMap k, const __grid_constant__ TileMap v,
                         const bf16*, const bf16*, const bf16*, const uint2* __restrict__ bounds, Result* __restrict__ y,
                         float* __restrict__ lse, const __grid_constant__ Info info) {
    LAUNCHED_SHARED(shared, {{ shared }});
    u64* const barriers = (u64*)(shared + BARRIERS_AT);
    const Queries of = queries_of(info, bounds);
    make_barriers(barriers);
    const auto stage_of = [&](u32 step) { return shared + ROWS_BYTES + step % STAGES * 2 * COLUMNS_BYTES; };
    const auto start = [&](u32 step) { start_step(stage_of(step), k, v, of, step, barriers); };
    if (threadIdx.x == 0) {
        expect_bytes(barriers, ROWS_BYTES);
        start_rows<ROWS>(shared, q, of.head, of.row, barriers);
    }
    start(0);
    // The rows of a thread: one in each half of the warp's.
    const u32 first = of.row + threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4;
    const uint2 seen[2] = { seen_by(bounds, first, info.tokens), seen_by(bounds, first + 8, info.tokens) };
    // Keys that all queries of the block see.
    const u32 all_from = bounds[of.last].x, all_to = bounds[of.row].y + 1;
    const float unit = info.scale * LOG2_E;
    float scores[COLUMNS / 2] = {}, sums[HALVES][32] = {}, largest[2] = { HIDDEN, HIDDEN }, total[2] = {};
    // Products read them while the next step begins.
    u32 weights[COLUMNS / 16][4];
    await_tile(barriers, 0);
    for (u32 step = 0; step < of.steps; step++) {
        const char* const stage = stage_of(step);
        await_tile(barriers + 1 + step % STAGES, step / STAGES % 2);
        start_scores(scores, shared, stage);
        await_products(scores);
        pin(sums);
        // So are the products of the step before, in all warps: its stage is free.
        __syncthreads();
        start(step + 1);
        const u32 key = of.begin + step * COLUMNS;
        if (key < all_from || key + COLUMNS > all_to) hide(scores, seen, key);
        float top[2] = { largest[0], largest[1] }, of_top[2], shrunk[2];
#pragma unroll
        for (u32 i = 0; i < COLUMNS / 2; i++) top[row_of(i)] = fmaxf(top[row_of(i)], scores[i]);
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            // Four lanes have the columns of a row.
            top[half] = fmaxf(top[half], __shfl_xor_sync(0xffffffff, top[half], 1));
            top[half] = fmaxf(top[half], __shfl_xor_sync(0xffffffff, top[half], 2));
            // Where all is hidden yet, nothing of it is to come near 1.
            of_top[half] = top[half] == HIDDEN ? 0 : top[half] * unit;
            shrunk[half] = power_of_two((largest[half] - top[half]) * unit);
            largest[half] = top[half];
            total[half] *= shrunk[half];
        }
#pragma unroll
        for (u32 i = 0; i < COLUMNS / 2; i++) {
            scores[i] = power_of_two(scores[i] * unit - of_top[row_of(i)]);
            total[row_of(i)] += scores[i];
        }
        round_sums(weights, scores);
#pragma unroll
        for (u32 half = 0; half < HALVES; half++)
#pragma unroll
            for (u32 i = 0; i < 32; i++) sums[half][i] *= shrunk[row_of(i)];
        pin(sums);
        start_sums(sums, weights, stage + COLUMNS_BYTES);
    }
    await_products_but<0>();
    pin(sums);
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        total[half] += __shfl_xor_sync(0xffffffff, total[half], 1);
        total[half] += __shfl_xor_sync(0xffffffff, total[half], 2);
        const u32 own = first + 8 * half;
        if (threadIdx.x % 4 == 0 && own < info.tokens)
            lse[(size_t)own * info.heads + of.head] = largest[half] * info.scale + logf(total[half]);
    }
    store_rows(y + of.head * HEAD_DIM, (size_t)info.heads * HEAD_DIM, first, info.tokens, sums, 1 / total[0], 1 / total[1]);
}
