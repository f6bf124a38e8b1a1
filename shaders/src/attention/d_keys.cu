
// The gradients of keys and values: a block takes ROWS keys of one key head through the queries that see them, of all heads that share
// it or, where that leaves too few blocks, of one in `splits` of those; then d_k and d_v are [splits, keys, kv_heads * HEAD_DIM], for
// someone else to add up. See d_queries.cu for the formulas. Grid: splits times key heads times PARTS, blocks of keys. A block writes 128
// elements of a head: more sums than that do not fit the registers of a thread.
constexpr u32 WIDTH = CHUNKS < 16 ? CHUNKS * 8 : 128, PARTS = (CHUNKS * 8 + WIDTH - 1) / WIDTH;

// Queries that arrive while those before are worked on.
constexpr u32 STAGES = 2, TILE_BYTES = COLUMNS * LINE * 2, GRAD_AT = TILE_BYTES, KNOWN_AT = 2 * TILE_BYTES;
// What is known of each query: the logarithm of its sum, delta, and its bounds.
constexpr u32 STAGE_BYTES = KNOWN_AT + 4 * COLUMNS * 4, KEYS_BYTES = 2 * ROWS * LINE * 2;
static_assert(KEYS_BYTES + STAGES * STAGE_BYTES <= {{ shared }}, "what the launch asks for");
static_assert(4 * COLUMNS <= THREADS, "a thread copies a word of what is known");

extern "C" __global__ void __launch_bounds__(THREADS, 2)
attention_d_keys(const bf16* __restrict__ q, const bf16* __restrict__ k, const bf16* __restrict__ v,
                 const bf16* __restrict__ grad, const float* __restrict__ known, const uint2* __restrict__ bounds,
                 Result* __restrict__ d_k, Result* __restrict__ d_v, const __grid_constant__ Info info) {
    LAUNCHED_SHARED(shared, {{ shared }});
    bf16* const k_tile = (bf16*)shared;
    bf16* const v_tile = k_tile + ROWS * LINE;
    const u32 lane = threadIdx.x % 32, part = blockIdx.x % PARTS, kv_head = blockIdx.x / PARTS % info.kv_heads;
    const u32 split = blockIdx.x / PARTS / info.kv_heads, members = info.heads / info.kv_heads / info.splits;
    const size_t width = (size_t)info.heads * HEAD_DIM, kv_width = (size_t)info.kv_heads * HEAD_DIM;
    const u32 row = (info.first_block + blockIdx.y) * ROWS, first = row + threadIdx.x / 32 * 16 + lane / 4;
    const u32 begin = first_query(bounds, info.tokens, row), end = end_of_queries(bounds, info.tokens, row + ROWS - 1);
    const u32 tiles = begin < end ? (end - begin - 1) / COLUMNS + 1 : 0, steps = members * tiles;
    const auto head_of = [&](u32 step) { return (kv_head * info.splits + split) * members + step / tiles; };
    const auto stage_of = [&](u32 step) { return shared + KEYS_BYTES + step % STAGES * STAGE_BYTES; };
    const auto start = [&](u32 step) {
        if (step < steps) {
            char* const stage = stage_of(step);
            const u32 head = head_of(step), query = begin + step % tiles * COLUMNS;
            start_rows<COLUMNS>((bf16*)stage, q + head * HEAD_DIM, query, info.tokens, width);
            start_rows<COLUMNS>((bf16*)(stage + GRAD_AT), grad + head * HEAD_DIM, query, info.tokens, width);
            start_known(stage + KNOWN_AT, known, bounds, info, head, query);
        }
        commit_copies();
    };
    start_rows<ROWS>(k_tile, k + kv_head * HEAD_DIM, row, info.keys, kv_width);
    start_rows<ROWS>(v_tile, v + kv_head * HEAD_DIM, row, info.keys, kv_width);
    start(0);
    float of_k[WIDTH / 8][4] = {}, of_v[WIDTH / 8][4] = {};
    for (u32 step = 0; step < steps; step++) {
        start(step + 1);
        await_copies_but_one();
        __syncthreads();
        const bf16 *q_tile = (const bf16*)stage_of(step), *grad_tile = (const bf16*)(stage_of(step) + GRAD_AT);
        const float* lse = (const float*)(stage_of(step) + KNOWN_AT);
        const float* delta = lse + COLUMNS;
        const u32 *first_key = (const u32*)(delta + COLUMNS), *last_key = first_key + COLUMNS;
        float weights[COLUMNS / 8][4] = {};
        multiply(k_tile, q_tile, weights);
        float slopes[CAPPED ? COLUMNS / 8 : 1][4];
#pragma unroll
        for (u32 j = 0; j < COLUMNS / 8; j++)
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                const u32 at = j * 8 + lane % 4 * 2 + i % 2, key = first + i / 2 * 8;
                const float score = bounded(info, weights[j][i]);
                if (CAPPED) slopes[j][i] = slope(info, score);
                const bool visible = key >= first_key[at] && key <= last_key[at];
                weights[j][i] = visible ? exponential(score - lse[at]) : 0;
            }
        accumulate<WIDTH>(weights, grad_tile, part * (WIDTH / 8), of_v);
        float d_scores[COLUMNS / 8][4] = {};
        multiply(v_tile, grad_tile, d_scores);
#pragma unroll
        for (u32 j = 0; j < COLUMNS / 8; j++)
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                const u32 at = j * 8 + lane % 4 * 2 + i % 2;
                d_scores[j][i] = weights[j][i] * (d_scores[j][i] - delta[at]) * info.scale;
                if (CAPPED) d_scores[j][i] *= slopes[j][i];
            }
        accumulate<WIDTH>(d_scores, q_tile, part * (WIDTH / 8), of_k);
        // The stage is taken by the step after the next one.
        __syncthreads();
    }
    d_k += split * info.keys * kv_width + kv_head * HEAD_DIM, d_v += split * info.keys * kv_width + kv_head * HEAD_DIM;
#pragma unroll
    for (u32 j = 0; j < WIDTH / 8; j++)
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            const u32 column = part * WIDTH + j * 8 + lane % 4 * 2;
            store(d_k, kv_width, first + 8 * half, info.keys, column, of_k[j][2 * half],
                  of_k[j][2 * half + 1]);
            store(d_v, kv_width, first + 8 * half, info.keys, column, of_v[j][2 * half],
                  of_v[j][2 * half + 1]);
        }
}
