// Attention without its scores in memory (Dao, arXiv:2307.08691, algorithm 1): a block takes ROWS queries of one head through the keys that
// they see. Grid: heads, blocks of queries. Of `bounds`, x is the first key that a query sees, y the last.
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
attention_forward(const float* __restrict__ q, const float* __restrict__ k, const float* __restrict__ v,
                  const uint2* __restrict__ bounds, float* __restrict__ y, float* __restrict__ lse,
                  const __grid_constant__ Info info) {
    __shared__ __align__(16) Tiles tiles;
    const u32 head = blockIdx.x, kv_head = head / (info.heads / info.kv_heads);
    const size_t width = (size_t)info.heads * HEAD_DIM, kv_width = (size_t)info.kv_heads * HEAD_DIM;
    const Rows queries = { q + head * HEAD_DIM, width, info.tokens };
    const Rows keys = { k + kv_head * HEAD_DIM, kv_width, info.keys }, values = { v + kv_head * HEAD_DIM, kv_width, info.keys };
    const u32 row = block_of_queries(info) * ROWS, rows = row + ROWS < info.tokens ? ROWS : info.tokens - row;
    const u32 begin = bounds[row].x, end = bounds[row + rows - 1].y + 1, first = row + row_group() * 4;
    uint2 seen[4];
    float sums[PARTS][4][4] = {}, largest[4], total[4] = {};
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        // A row that is none sees nothing.
        seen[i] = first + i < info.tokens ? bounds[first + i] : make_uint2(1, 0);
        largest[i] = HIDDEN;
    }
    for (u32 key = begin; key < end; key += COLUMNS) {
        float scores[4][4] = {};
        multiply(tiles, queries, row, keys, key, scores);
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            float top = largest[i];
#pragma unroll
            for (u32 j = 0; j < 4; j++) {
                const u32 at = key + column_group() * 4 + j;
                scores[i][j] = at >= seen[i].x && at <= seen[i].y ? bounded(info, scores[i][j]) : HIDDEN;
                top = fmaxf(top, scores[i][j]);
            }
            top = largest_of_row(top);
            // What a row gathered before it saw a key is multiplied by zero when it sees the first.
            const float shrunk = expf(largest[i] - top);
            largest[i] = top;
            total[i] *= shrunk;
#pragma unroll
            for (u32 j = 0; j < 4; j++) {
                scores[i][j] = expf(scores[i][j] - top);
                total[i] += scores[i][j];
            }
#pragma unroll
            for (u32 part = 0; part < PARTS; part++)
#pragma unroll
                for (u32 j = 0; j < 4; j++) sums[part][i][j] *= shrunk;
        }
        put_scores(tiles, scores);
        accumulate(tiles, values, key, sums);
    }
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        total[i] = sum_of_row(total[i]);
#pragma unroll
        for (u32 part = 0; part < PARTS; part++) {
#pragma unroll
            for (u32 j = 0; j < 4; j++) sums[part][i][j] /= total[i];
            store(y + head * HEAD_DIM, width, first + i, info.tokens, part * COLUMNS + column_group() * 4, sums[part][i]);
        }
        if (column_group() == 0 && first + i < info.tokens) lse[(size_t)(first + i) * info.heads + head] = largest[i] + logf(total[i]);
    }
}
