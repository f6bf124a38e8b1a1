// A product with a weight W[out, in] in bf16 on Hopper's tensor cores: y[rows, out] = x[rows, in] · Wᵀ, or transposed, as the gradient
// needs it, y[rows, in] = x[rows, out] · W.
//
// Grid: x = ceil(columns of y / 128), y = ceil(rows / TILE_ROWS). Tiles of both arrive asynchronously two steps ahead, and a slice of
// W is loaded into registers while the one before is multiplied. `in` and the inner dimension are multiples of 8, x and W begin at
// multiples of 16 bytes. shaders/src/warpgroup.cu comes before this text.
struct Info { u32 rows, out, in, unused; };

constexpr u32 W_BYTES = TILE_COLUMNS * DEPTH * 2, W_AT = STAGES * X_BYTES;
static_assert(W_AT + STAGES * W_BYTES <= {{ shared }}, "what the launch asks for");
// Rows of W in a tile, and chunks of 16 bytes of a row.
constexpr u32 W_ROWS = TRANSPOSED ? DEPTH : TILE_COLUMNS, W_CHUNKS = TRANSPOSED ? TILE_COLUMNS / 8 : DEPTH / 8;

// Where a chunk lies: permuted so that the eight rows of a matrix, which are every other one where columns are paired, lie in
// different banks.
__device__ __forceinline__ u32 w_at(u32 row, u32 chunk) {
    return row * W_CHUNKS * 16 + (chunk ^ (TRANSPOSED ? row : row / 2) % 8) * 16;
}

__device__ __forceinline__ void start_w(char* tile, const bf16* w, const Info& info, u32 left, u32 k) {
    const u32 tile_row = threadIdx.x / W_CHUNKS, chunk = threadIdx.x % W_CHUNKS;
    const u32 row = (TRANSPOSED ? k : left) + tile_row, column = (TRANSPOSED ? left : k) + chunk * 8;
    const bf16* from = w + (size_t)row * info.in + column;
    constexpr u32 AT_ONCE = THREADS / W_CHUNKS;
#pragma unroll
    for (u32 i = 0; i < W_ROWS; i += AT_ONCE, from += (size_t)AT_ONCE * info.in)
        copy_async(tile + w_at(tile_row + i, chunk), from, row + i < info.out && column < info.in);
}

// What a thread has of a slice of the left operand: matrices i and i + 2 belong to its column i.
__device__ __forceinline__ void load_w(u32 (&a)[4], const Place& at, const char* tile, u32 slice) {
    const u32 of = at.lane / 8, row = at.lane % 8;
    if (TRANSPOSED) {
        load_matrices_transposed(a, (const bf16*)(tile + w_at(slice * 16 + of / 2 * 8 + row, at.warp * 2 + of % 2)));
    } else {
        load_matrices(a, (const bf16*)(tile + w_at(at.warp * 16 + row * 2 + of % 2, slice * 2 + of / 2)));
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
half_warpgroup(const bf16* __restrict__ x, const bf16* __restrict__ w, float* __restrict__ y,
               const __grid_constant__ Info info) {
    LAUNCHED_SHARED(shared, {{ shared }});
    const Place at = place();
    float sum[SUMS] = {};
    const auto tile = [&](u32 step) { return shared + W_AT + step % STAGES * W_BYTES; };
    sum_up(
        sum, at, shared, x, info.rows, TRANSPOSED ? info.out : info.in,
        [&](u32 step) { start_w(tile(step), w, info, at.left, step * DEPTH); }, [](u32) {},
        [&](u32(&a)[4], u32 step, u32 slice) { load_w(a, at, tile(step), slice); }, [](u32) {});
    // The rows of transposed matrices are neighbours as they come.
    store<!TRANSPOSED>(y, sum, at, info.rows, TRANSPOSED ? info.in : info.out);
}
