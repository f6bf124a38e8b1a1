
// Attention without its scores in memory (Dao, arXiv:2307.08691, algorithm 1): a block takes ROWS queries of one head through
// the keys that they see. Grid: heads, blocks of queries. Of `bounds`, x is the first key that a query sees, y the last.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
attention_forward(const bf16* __restrict__ q, const bf16* __restrict__ k, const bf16* __restrict__ v,
                  const uint2* __restrict__ bounds, Result* __restrict__ y, float* __restrict__ lse,
                  const __grid_constant__ Info info) {
    __shared__ __align__(128) bf16 q_tile[ROWS * LINE];
    __shared__ __align__(128) bf16 k_tile[COLUMNS * LINE];
    __shared__ __align__(128) bf16 v_tile[COLUMNS * LINE];
    const u32 lane = threadIdx.x % 32, head = blockIdx.x, kv_head = head / (info.heads / info.kv_heads);
    const size_t width = (size_t)info.heads * HEAD_DIM, kv_width = (size_t)info.kv_heads * HEAD_DIM;
    const u32 row = block_of_queries(info) * ROWS, rows = row + ROWS < info.tokens ? ROWS : info.tokens - row;
    const u32 begin = bounds[row].x, end = bounds[row + rows - 1].y + 1;
    q += head * HEAD_DIM, k += kv_head * HEAD_DIM, v += kv_head * HEAD_DIM;
    start_rows<ROWS>(q_tile, q, row, info.tokens, width);
    start_rows<COLUMNS>(k_tile, k, begin, info.keys, kv_width);
    commit_copies();
    // The rows of a thread: one in each half of the warp's.
    const u32 first = row + threadIdx.x / 32 * 16 + lane / 4;
    uint2 seen[2];
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        // A row that is none sees nothing.
        seen[half].x = 1, seen[half].y = 0;
        if (first + 8 * half < info.tokens) seen[half] = bounds[first + 8 * half];
    }
    float sums[CHUNKS][4] = {}, largest[2] = { HIDDEN, HIDDEN }, total[2] = {};
    for (u32 key = begin; key < end; key += COLUMNS) {
        start_rows<COLUMNS>(v_tile, v, key, info.keys, kv_width);
        commit_copies();
        await_copies_but_one();
        __syncthreads();
        float scores[COLUMNS / 8][4] = {};
        multiply(q_tile, k_tile, scores);
        __syncthreads();
        // An empty group where there is no next tile: what is waited for is counted.
        if (key + COLUMNS < end) start_rows<COLUMNS>(k_tile, k, key + COLUMNS, info.keys, kv_width);
        commit_copies();
        float top[2] = { largest[0], largest[1] };
#pragma unroll
        for (u32 j = 0; j < COLUMNS / 8; j++)
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                const u32 at = key + j * 8 + lane % 4 * 2 + i % 2;
                const bool visible = at >= seen[i / 2].x && at <= seen[i / 2].y;
                scores[j][i] = visible ? bounded(info, scores[j][i]) : HIDDEN;
                top[i / 2] = fmaxf(top[i / 2], scores[j][i]);
            }
        float shrunk[2];
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            // Four lanes have the columns of a row.
            top[half] = fmaxf(top[half], __shfl_xor_sync(0xffffffff, top[half], 1));
            top[half] = fmaxf(top[half], __shfl_xor_sync(0xffffffff, top[half], 2));
            // What a row gathered before it saw a key is multiplied by zero when it sees the first.
            shrunk[half] = exponential(largest[half] - top[half]);
            largest[half] = top[half];
            total[half] *= shrunk[half];
        }
#pragma unroll
        for (u32 j = 0; j < COLUMNS / 8; j++)
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                scores[j][i] = exponential(scores[j][i] - largest[i / 2]);
                total[i / 2] += scores[j][i];
            }
#pragma unroll
        for (u32 j = 0; j < CHUNKS; j++)
#pragma unroll
            for (u32 i = 0; i < 4; i++) sums[j][i] *= shrunk[i / 2];
        await_copies_but_one();
        __syncthreads();
        accumulate<CHUNKS * 8>(scores, v_tile, 0, sums);
        __syncthreads();
    }
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        total[half] += __shfl_xor_sync(0xffffffff, total[half], 1);
        total[half] += __shfl_xor_sync(0xffffffff, total[half], 2);
        const u32 own = first + 8 * half;
        const float inverse = 1 / total[half];
#pragma unroll
        for (u32 j = 0; j < CHUNKS; j++)
            store(y + head * HEAD_DIM, width, own, info.tokens, j * 8 + lane % 4 * 2, sums[j][2 * half] * inverse,
                  sums[j][2 * half + 1] * inverse);
        if (lane % 4 == 0 && own < info.tokens) lse[(size_t)own * info.heads + head] = largest[half] + logf(total[half]);
    }
}
