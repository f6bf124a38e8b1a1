// Attention on tensor cores: operands are bf16, sums f32. What all of these kernels share.
//
// A warp takes 16 rows of a tile through tiles of columns: scores lie in its registers, as the tensor cores leave them, and are already
// where they want them as the left operand of the next product (Dao, arXiv:2307.08691, section 3.3).

static_assert(ROWS == THREADS / 2, "a warp takes 16 rows");

constexpr float LOG2_E = 1.44269504088896340736f;

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
