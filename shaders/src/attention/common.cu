// What all attention kernels in CUDA C++ share.

// Rows of the queries, and of the keys and values; scale of the scores, and their cap where they are CAPPED; the block of rows
// that the grid begins at; blocks that share the queries of a key head out.
struct Info { u32 tokens, keys, heads, kv_heads; float scale, softcap; u32 first_block, splits; };

constexpr bool CAPPED = {{ capped }};
constexpr u32 HEAD_DIM = {{ head_dim }}, THREADS = {{ threads }};
// Rows of a block, and columns that it takes at once.
constexpr u32 ROWS = {{ rows }}, COLUMNS = {{ columns }};

// Stands in for minus infinity, and stays finite.
constexpr float HIDDEN = -1e30f;

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
