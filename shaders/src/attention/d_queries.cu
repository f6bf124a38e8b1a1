
// The gradient of the queries (Dao, arXiv:2307.08691, algorithm 2): with p the weights, dp = dy · vᵀ and delta = sum(dy ∘ y), that
// of the scores is p ∘ (dp - delta). A block takes ROWS queries of one head through the keys that they see. Grid: heads,
// blocks of queries. `known` has the logarithms of the sums of exponentials, then delta, each [tokens, heads].
extern "C" __global__ void __launch_bounds__(THREADS, 2)
attention_d_queries(const bf16* __restrict__ q, const bf16* __restrict__ k, const bf16* __restrict__ v,
                    const bf16* __restrict__ grad, const float* __restrict__ known, const uint2* __restrict__ bounds,
                    Result* __restrict__ d_q, const __grid_constant__ Info info) {
    __shared__ __align__(128) bf16 q_tile[ROWS * LINE];
    __shared__ __align__(128) bf16 grad_tile[ROWS * LINE];
    __shared__ __align__(128) bf16 k_tile[COLUMNS * LINE];
    __shared__ __align__(128) bf16 v_tile[COLUMNS * LINE];
    const u32 lane = threadIdx.x % 32, head = blockIdx.x, kv_head = head / (info.heads / info.kv_heads);
    const size_t width = (size_t)info.heads * HEAD_DIM, kv_width = (size_t)info.kv_heads * HEAD_DIM;
    const u32 row = block_of_queries(info) * ROWS, rows = row + ROWS < info.tokens ? ROWS : info.tokens - row;
    const u32 begin = bounds[row].x, end = bounds[row + rows - 1].y + 1;
    q += head * HEAD_DIM, grad += head * HEAD_DIM, k += kv_head * HEAD_DIM, v += kv_head * HEAD_DIM;
    start_rows<ROWS>(q_tile, q, row, info.tokens, width);
    start_rows<ROWS>(grad_tile, grad, row, info.tokens, width);
    start_rows<COLUMNS>(k_tile, k, begin, info.keys, kv_width);
    commit_copies();
    const u32 first = row + threadIdx.x / 32 * 16 + lane / 4;
    uint2 seen[2];
    float lse[2] = {}, delta[2] = {};
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        seen[half].x = 1, seen[half].y = 0;
        if (first + 8 * half >= info.tokens) continue;
        const size_t at = (size_t)(first + 8 * half) * info.heads + head;
        seen[half] = bounds[first + 8 * half];
        lse[half] = known[at];
        delta[half] = known[(size_t)info.tokens * info.heads + at];
    }
    float sums[CHUNKS][4] = {};
    for (u32 key = begin; key < end; key += COLUMNS) {
        start_rows<COLUMNS>(v_tile, v, key, info.keys, kv_width);
        commit_copies();
        await_copies_but_one();
        __syncthreads();
        float scores[COLUMNS / 8][4] = {}, d_scores[COLUMNS / 8][4] = {};
        multiply(q_tile, k_tile, scores);
        commit_copies();
        await_copies_but_one();
        __syncthreads();
        multiply(grad_tile, v_tile, d_scores);
#pragma unroll
        for (u32 j = 0; j < COLUMNS / 8; j++)
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                const u32 at = key + j * 8 + lane % 4 * 2 + i % 2, half = i / 2;
                const bool visible = at >= seen[half].x && at <= seen[half].y;
                const float score = bounded(info, scores[j][i]);
                const float weight = visible ? exponential(score - lse[half]) : 0;
                d_scores[j][i] = weight * (d_scores[j][i] - delta[half]) * slope(info, score) * info.scale;
            }
        accumulate<CHUNKS * 8>(d_scores, k_tile, 0, sums);
        __syncthreads();
        if (key + COLUMNS < end) start_rows<COLUMNS>(k_tile, k, key + COLUMNS, info.keys, kv_width);
        commit_copies();
    }
#pragma unroll
    for (u32 j = 0; j < CHUNKS; j++)
#pragma unroll
        for (u32 half = 0; half < 2; half++)
            store(d_q + head * HEAD_DIM, width, first + 8 * half, info.tokens, j * 8 + lane % 4 * 2, sums[j][2 * half],
                  sums[j][2 * half + 1]);
}
