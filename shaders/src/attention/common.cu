// Attention on tensor cores: operands are bf16, sums f32. What all of its kernels share.
//
// A warp takes 16 rows of a tile through tiles of columns: scores lie in its registers, as the tensor cores leave them, and are already
// where they want them as the left operand of the next product (Dao, arXiv:2307.08691, section 3.3).

// Rows of the queries, and of the keys and values; scale of the scores, and their cap where they are CAPPED; the block of rows
// that the grid begins at; blocks that share the queries of a key head out.
struct Info { u32 tokens, keys, heads, kv_heads; float scale, softcap; u32 first_block, splits; };

constexpr bool CAPPED = {{ capped }};
constexpr u32 HEAD_DIM = {{ head_dim }}, THREADS = {{ threads }};
// Rows of a block, and columns that it takes at once.
constexpr u32 ROWS = {{ rows }}, COLUMNS = {{ columns }};
static_assert(ROWS == THREADS / 2, "a warp takes 16 rows");

constexpr float HIDDEN = -1e30f, LOG2_E = 1.44269504088896340736f;

// The blocks of a causal attention's last queries take the longest, so they come first.
__device__ __forceinline__ u32 block_of_queries(const Info& info) { return info.first_block + gridDim.y - 1 - blockIdx.y; }

// A score after scale and cap.
__device__ __forceinline__ float bounded(const Info& info, float product) {
    const float score = product * info.scale;
    return CAPPED ? tanhf(score / info.softcap) * info.softcap : score;
}

// The derivative of the cap where it gave this score.
__device__ __forceinline__ float slope(const Info& info, float score) {
    if (!CAPPED) return 1;
    const float ratio = score / info.softcap;
    return 1 - ratio * ratio;
}

__device__ __forceinline__ float exponential(float x) { return power_of_two(x * LOG2_E); }

// Stores two neighbouring elements of a row of a head.
__device__ __forceinline__ void store(Result* head, size_t stride, u32 row, u32 rows, u32 column, float low, float high) {
    if (row >= rows) return;
    Result* to = head + row * stride + column;
    if (HEAD_DIM % 2 == 0) {
        if (column < HEAD_DIM) put_pair(to, low, high);
    } else {
        if (column < HEAD_DIM) put(to, low);
        if (column + 1 < HEAD_DIM) put(to + 1, high);
    }
}

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

// Starts to copy what is known of COLUMNS queries of a head from `query` on, a word by each thread: the logarithms of their sums, delta, the
// first keys that they see and the last. Past the end the bounds are zero and zero, and the weights of what is no query do not matter: its
// gradient is zero.
__device__ __forceinline__ void start_known(char* to, const float* known, const uint2* bounds, const Info& info, u32 head,
                                            u32 query) {
    const u32 at = query + threadIdx.x % COLUMNS, what = threadIdx.x / COLUMNS;
    const bool inside = at < info.tokens;
    const size_t of = inside ? at : 0;
    const void* from = what < 2 ? (const void*)(known + (what * (size_t)info.tokens + of) * info.heads + head)
                                : (const void*)((const u32*)bounds + of * 2 + what - 2);
    if (what < 4) copy_word_async(to + (what * COLUMNS + threadIdx.x % COLUMNS) * 4, from, inside);
}
