// The gradients of keys and values: a block takes ROWS keys of one key head through the queries that see them, of all heads that share it
// or, where that leaves too few blocks, of one in `splits` of those; then d_k and d_v are [splits, keys, kv_heads * HEAD_DIM], for someone
// else to add up. See d_queries.cu for the formulas. Grid: splits times key heads, blocks of keys.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
attention_d_keys(const float* __restrict__ q, const float* __restrict__ k, const float* __restrict__ v,
                 const float* __restrict__ grad, const float* __restrict__ known, const uint2* __restrict__ bounds,
                 float* __restrict__ d_k, float* __restrict__ d_v, const __grid_constant__ Info info) {
    __shared__ __align__(16) Tiles tiles;
    const u32 kv_head = blockIdx.x % info.kv_heads, split = blockIdx.x / info.kv_heads;
    const u32 members = info.heads / info.kv_heads / info.splits;
    const size_t width = (size_t)info.heads * HEAD_DIM, kv_width = (size_t)info.kv_heads * HEAD_DIM;
    const Rows keys = { k + kv_head * HEAD_DIM, kv_width, info.keys }, values = { v + kv_head * HEAD_DIM, kv_width, info.keys };
    const u32 row = (info.first_block + blockIdx.y) * ROWS, first = row + row_group() * 4;
    const u32 begin = first_query(bounds, info.tokens, row), end = end_of_queries(bounds, info.tokens, row + ROWS - 1);
    float of_k[PARTS][4][4] = {}, of_v[PARTS][4][4] = {};
    for (u32 member = 0; member < members; member++) {
        const u32 head = (kv_head * info.splits + split) * members + member;
        const Rows queries = { q + head * HEAD_DIM, width, info.tokens }, grads = { grad + head * HEAD_DIM, width, info.tokens };
        for (u32 query = begin; query < end; query += COLUMNS) {
            float weights[4][4] = {}, d_scores[4][4] = {};
            multiply(tiles, keys, row, queries, query, weights);
            multiply(tiles, values, row, grads, query, d_scores);
#pragma unroll
            for (u32 j = 0; j < 4; j++) {
                const u32 own = query + column_group() * 4 + j;
                const bool inside = own < info.tokens;
                const size_t at = inside ? (size_t)own * info.heads + head : 0;
                // What is no query sees nothing.
                const uint2 seen = inside ? bounds[own] : make_uint2(1, 0);
                const float lse = known[at], delta = known[(size_t)info.tokens * info.heads + at];
#pragma unroll
                for (u32 i = 0; i < 4; i++) {
                    const float score = bounded(info, weights[i][j]);
                    weights[i][j] = first + i >= seen.x && first + i <= seen.y ? expf(score - lse) : 0;
                    d_scores[i][j] = weights[i][j] * (d_scores[i][j] - delta) * slope(info, score) * info.scale;
                }
            }
            put_scores(tiles, weights);
            accumulate(tiles, grads, query, of_v);
            put_scores(tiles, d_scores);
            accumulate(tiles, queries, query, of_k);
        }
    }
    d_k += split * info.keys * kv_width + kv_head * HEAD_DIM, d_v += split * info.keys * kv_width + kv_head * HEAD_DIM;
#pragma unroll
    for (u32 i = 0; i < 4; i++)
#pragma unroll
        for (u32 part = 0; part < PARTS; part++) {
            const u32 column = part * COLUMNS + column_group() * 4;
            store(d_k, kv_width, first + i, info.keys, column, of_k[part][i]);
            store(d_v, kv_width, first + i, info.keys, column, of_v[part][i]);
        }
}
