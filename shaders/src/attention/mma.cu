// What those kernels share that multiply by mma. For sm_80 and up.

// A head in chunks of eight elements, which a thread copies at once; mma takes two at once.
constexpr u32 CHUNKS = (HEAD_DIM + 15) / 16 * 2;
// A line of a tile. Where chunks are not permuted, one more brings neighbouring lines into other banks.
constexpr bool PERMUTED = CHUNKS % 8 == 0;
constexpr u32 LINE = 8 * (PERMUTED ? CHUNKS : CHUNKS + 1);
static_assert(COLUMNS % 16 == 0, "mma takes 16 elements of the inner dimension");
static_assert(HEAD_DIM <= 256, "heads are at most 256 wide");

__device__ __forceinline__ u32 place(u32 row, u32 chunk) {
    return row * LINE + (PERMUTED ? chunk ^ row % 8 : chunk) * 8;
}

// Starts to copy COUNT rows of a head, of which there are `rows`, `stride` elements apart; beyond them and it there are zeros.
template <u32 COUNT>
__device__ __forceinline__ void start_rows(bf16* tile, const bf16* head, u32 first, u32 rows, size_t stride) {
#pragma unroll 4
    for (u32 i = threadIdx.x; i < COUNT * CHUNKS; i += THREADS) {
        const u32 row = i / CHUNKS, chunk = i % CHUNKS;
        const bool inside = first + row < rows && chunk * 8 < HEAD_DIM;
        const bf16* from = inside ? head + (size_t)(first + row) * stride + chunk * 8 : head;
        bf16* to = tile + place(row, chunk);
        if (HEAD_DIM % 8 == 0) {
            copy_async(to, from, inside);
        } else {
#pragma unroll
            for (u32 j = 0; j < 8; j++) to[j] = inside && chunk * 8 + j < HEAD_DIM ? from[j] : 0;
        }
    }
}

// sums[j] += 16 rows of `a` times eight rows of `b`, transposed, over the whole head.
__device__ __forceinline__ void multiply(const bf16* a, const bf16* b, float (&sums)[COLUMNS / 8][4]) {
    const u32 lane = threadIdx.x % 32, top = threadIdx.x / 32 * 16;
#pragma unroll
    for (u32 k = 0; k < CHUNKS; k += 2) {
        u32 left[4];
        load_matrices(left, a + place(top + lane % 16, k + lane / 16));
#pragma unroll
        for (u32 j = 0; j < COLUMNS / 8; j += 2) {
            u32 right[4];
            load_matrices(right, b + place(j * 8 + lane / 16 * 8 + lane % 8, k + lane / 8 % 2));
            multiply_add(sums[j], left, right[0], right[1]);
            multiply_add(sums[j + 1], left, right[2], right[3]);
        }
    }
}

// sums += a tile of scores in registers times WIDTH elements of the rows of `b`, from chunk `first` on.
template <u32 WIDTH>
__device__ __forceinline__ void accumulate(const float (&scores)[COLUMNS / 8][4], const bf16* b, u32 first,
                                           float (&sums)[WIDTH / 8][4]) {
    const u32 lane = threadIdx.x % 32;
#pragma unroll
    for (u32 k = 0; k < COLUMNS / 8; k += 2) {
        const u32 left[4] = { pack_bf16(scores[k][0], scores[k][1]), pack_bf16(scores[k][2], scores[k][3]),
                              pack_bf16(scores[k + 1][0], scores[k + 1][1]),
                              pack_bf16(scores[k + 1][2], scores[k + 1][3]) };
#pragma unroll
        for (u32 j = 0; j < WIDTH / 8; j += 2) {
            if (first + j >= CHUNKS) break;
            u32 right[4];
            load_matrices_transposed(right, b + place(k * 8 + lane % 16, first + j + lane / 16));
            multiply_add(sums[j], left, right[0], right[1]);
            multiply_add(sums[j + 1], left, right[2], right[3]);
        }
    }
}
