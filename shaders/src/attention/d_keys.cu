
// The gradients of keys and values: a block takes ROWS keys of one key head through the queries that see them, of all heads
// that share it, so that each result is written once. See d_queries.cu for the formulas. Grid: key heads times PARTS, blocks
// of keys. A block writes 128 elements of a head: more sums than that do not fit the registers of a thread.
constexpr u32 WIDTH = CHUNKS < 16 ? CHUNKS * 8 : 128, PARTS = (CHUNKS * 8 + WIDTH - 1) / WIDTH;

// The first query whose own key is `key` or later.
__device__ u32 first_query(const uint2* bounds, u32 tokens, u32 key) {
    u32 low = 0, high = tokens;
    while (low < high) {
        const u32 middle = (low + high) / 2;
        if (bounds[middle].y < key) low = middle + 1;
        else high = middle;
    }
    return low;
}

// One after the last query that sees `key` or one before.
__device__ u32 end_of_queries(const uint2* bounds, u32 tokens, u32 key) {
    u32 low = 0, high = tokens;
    while (low < high) {
        const u32 middle = (low + high) / 2;
        if (bounds[middle].x <= key) low = middle + 1;
        else high = middle;
    }
    return low;
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
attention_d_keys(const bf16* __restrict__ q, const bf16* __restrict__ k, const bf16* __restrict__ v,
                 const bf16* __restrict__ grad, const float* __restrict__ known, const uint2* __restrict__ bounds,
                 float* __restrict__ d_k, float* __restrict__ d_v, const __grid_constant__ Info info) {
    __shared__ __align__(128) bf16 k_tile[ROWS * LINE];
    __shared__ __align__(128) bf16 v_tile[ROWS * LINE];
    __shared__ __align__(128) bf16 q_tile[COLUMNS * LINE];
    __shared__ __align__(128) bf16 grad_tile[COLUMNS * LINE];
    const u32 lane = threadIdx.x % 32, kv_head = blockIdx.x / PARTS, part = blockIdx.x % PARTS;
    const u32 shared_by = info.heads / info.kv_heads;
    const size_t width = (size_t)info.heads * HEAD_DIM, kv_width = (size_t)info.kv_heads * HEAD_DIM;
    const u32 row = (info.first_block + blockIdx.y) * ROWS, first = row + threadIdx.x / 32 * 16 + lane / 4;
    const u32 begin = first_query(bounds, info.tokens, row), end = end_of_queries(bounds, info.tokens, row + ROWS - 1);
    start_rows<ROWS>(k_tile, k + kv_head * HEAD_DIM, row, info.keys, kv_width);
    start_rows<ROWS>(v_tile, v + kv_head * HEAD_DIM, row, info.keys, kv_width);
    commit_copies();
    float of_k[WIDTH / 8][4] = {}, of_v[WIDTH / 8][4] = {};
    for (u32 member = 0; member < shared_by; member++) {
        const u32 head = kv_head * shared_by + member;
        for (u32 query = begin; query < end; query += COLUMNS) {
            start_rows<COLUMNS>(q_tile, q + head * HEAD_DIM, query, info.tokens, width);
            commit_copies();
            start_rows<COLUMNS>(grad_tile, grad + head * HEAD_DIM, query, info.tokens, width);
            commit_copies();
            await_copies_but_one();
            __syncthreads();
            float weights[COLUMNS / 8][4] = {};
            multiply(k_tile, q_tile, weights);
            float slopes[CAPPED ? COLUMNS / 8 : 1][4];
#pragma unroll
            for (u32 j = 0; j < COLUMNS / 8; j++)
#pragma unroll
                for (u32 i = 0; i < 4; i++) {
                    const u32 at = query + j * 8 + lane % 4 * 2 + i % 2, key = first + i / 2 * 8;
                    const float score = bounded(info, weights[j][i]);
                    if (CAPPED) slopes[j][i] = slope(info, score);
                    weights[j][i] = 0;
                    if (at >= info.tokens) continue;
                    const uint2 seen = bounds[at];
                    if (key >= seen.x && key <= seen.y)
                        weights[j][i] = exponential(score - known[(size_t)at * info.heads + head]);
                }
            commit_copies();
            await_copies_but_one();
            __syncthreads();
            accumulate<WIDTH>(weights, grad_tile, part * (WIDTH / 8), of_v);
            float d_scores[COLUMNS / 8][4] = {};
            multiply(v_tile, grad_tile, d_scores);
#pragma unroll
            for (u32 j = 0; j < COLUMNS / 8; j++)
#pragma unroll
                for (u32 i = 0; i < 4; i++) {
                    const u32 at = query + j * 8 + lane % 4 * 2 + i % 2;
                    const size_t place = (size_t)(info.tokens + at) * info.heads + head;
                    const float delta = at < info.tokens ? known[place] : 0;
                    d_scores[j][i] = weights[j][i] * (d_scores[j][i] - delta) * info.scale;
                    if (CAPPED) d_scores[j][i] *= slopes[j][i];
                }
            accumulate<WIDTH>(d_scores, q_tile, part * (WIDTH / 8), of_k);
            __syncthreads();
        }
    }
#pragma unroll
    for (u32 j = 0; j < WIDTH / 8; j++)
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            const u32 column = part * WIDTH + j * 8 + lane % 4 * 2;
            store(d_k + kv_head * HEAD_DIM, kv_width, first + 8 * half, info.keys, column, of_k[j][2 * half],
                  of_k[j][2 * half + 1]);
            store(d_v + kv_head * HEAD_DIM, kv_width, first + 8 * half, info.keys, column, of_v[j][2 * half],
                  of_v[j][2 * half + 1]);
        }
}
