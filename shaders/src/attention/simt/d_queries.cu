// The gradient of the queries (Dao, arXiv:2307.08691, algorithm 2): with p the weights, dp = dy · vᵀ and delta = sum(dy ∘ y), that of the
// scores is p ∘ (dp - delta). A block takes ROWS queries of one head through the keys that they see. Grid: heads, blocks of queries.
// `known` has the logarithms of the sums of exponentials, then delta, each [tokens, heads].
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
attention_d_queries(const float* __restrict__ q, const float* __restrict__ k, const float* __restrict__ v,
                    const float* __restrict__ grad, const float* __restrict__ known, const uint2* __restrict__ bounds,
                    float* __restrict__ d_q, const __grid_constant__ Info info) {
    __shared__ __align__(16) Tiles tiles;
    const u32 head = blockIdx.x, kv_head = head / (info.heads / info.kv_heads);
    const size_t width = (size_t)info.heads * HEAD_DIM, kv_width = (size_t)info.kv_heads * HEAD_DIM;
    const Rows queries = { q + head * HEAD_DIM, width, info.tokens }, grads = { grad + head * HEAD_DIM, width, info.tokens };
    const Rows keys = { k + kv_head * HEAD_DIM, kv_width, info.keys }, values = { v + kv_head * HEAD_DIM, kv_width, info.keys };
    const u32 row = block_of_queries(info) * ROWS, rows = row + ROWS < info.tokens ? ROWS : info.tokens - row;
    const u32 begin = bounds[row].x, end = bounds[row + rows - 1].y + 1, first = row + row_group() * 4;
    uint2 seen[4];
    float sums[PARTS][4][4] = {}, lse[4] = {}, delta[4] = {};
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        seen[i] = make_uint2(1, 0);
        if (first + i >= info.tokens) continue;
        const size_t at = (size_t)(first + i) * info.heads + head;
        seen[i] = bounds[first + i];
        lse[i] = known[at];
        delta[i] = known[(size_t)info.tokens * info.heads + at];
    }
    for (u32 key = begin; key < end; key += COLUMNS) {
        float scores[4][4] = {}, d_scores[4][4] = {};
        multiply(tiles, queries, row, keys, key, scores);
        multiply(tiles, grads, row, values, key, d_scores);
#pragma unroll
        for (u32 i = 0; i < 4; i++)
#pragma unroll
            for (u32 j = 0; j < 4; j++) {
                const u32 at = key + column_group() * 4 + j;
                const float score = bounded(info, scores[i][j]);
                const float weight = at >= seen[i].x && at <= seen[i].y ? expf(score - lse[i]) : 0;
                d_scores[i][j] = weight * (d_scores[i][j] - delta[i]) * slope(info, score) * info.scale;
            }
        put_scores(tiles, d_scores);
        accumulate(tiles, keys, key, sums);
    }
#pragma unroll
    for (u32 i = 0; i < 4; i++)
#pragma unroll
        for (u32 part = 0; part < PARTS; part++)
            store(d_q + head * HEAD_DIM, width, first + i, info.tokens, part * COLUMNS + column_group() * 4, sums[part][i]);
}
