// What the products with a low-rank matrix have in common. One side of each is narrow, `rank` wide, so that the other one is read once,
// at the speed of memory; it comes in bf16, or in f32 and is rounded on its way to the tensor cores; sums are f32. Which element of the
// inner dimension is which of an instruction is free, as long as both operands agree: each thread takes four neighbours.
//
// A block's warps take turns along the inner dimension, and what they have is added up in an order that is always the same: a run can be
// repeated bit by bit. shaders/src/ptx.cu comes before this text.
constexpr u32 THREADS = {{ threads }}, WARPS = THREADS / 32;
// Rows or columns of a block's tile, in pieces of 16.
constexpr u32 TILE = {{ tile }}, PIECES = TILE / 16;
// Of the rank, 8 columns each; more are further blocks.
constexpr u32 TILES = {{ tiles }}, WIDTH = 8 * TILES;
constexpr bool TRANSPOSED = {{ transposed }};
// The wide operand's elements.
typedef {{ input }} Input;
struct Info { u32 rows, wide, rank; float scaling; };

__device__ __forceinline__ u32 lane() { return threadIdx.x % 32; }

// Four neighbours of a row, as many of them as lie before `end`. ALIGNED: all or none do, at a multiple of 16 bytes.
template <bool ALIGNED>
__device__ __forceinline__ float4 load_four(const float* row, u32 first, u32 end) {
    if (ALIGNED) return first < end ? *(const float4*)(row + first) : make_float4(0, 0, 0, 0);
    const auto at = [&](u32 i) { return first + i < end ? row[first + i] : 0.0f; };
    return make_float4(at(0), at(1), at(2), at(3));
}

// The same of a row in bf16; ALIGNED: at a multiple of 8 bytes.
template <bool ALIGNED>
__device__ __forceinline__ uint2 load_four(const bf16* row, u32 first, u32 end) {
    if (ALIGNED) return first < end ? *(const uint2*)(row + first) : make_uint2(0, 0);
    const auto at = [&](u32 i) { return first + i < end ? (u32)row[first + i] : 0; };
    return make_uint2(at(0) | at(1) << 16, at(2) | at(3) << 16);
}

// Four neighbours in bf16.
__device__ __forceinline__ uint2 rounded_four(float4 four) { return make_uint2(pack_bf16(four.x, four.y), pack_bf16(four.z, four.w)); }
__device__ __forceinline__ uint2 rounded_four(uint2 four) { return four; }

// What load_four gives.
template <class Element> struct Four { typedef float4 type; };
template <> struct Four<bf16> { typedef uint2 type; };
typedef Four<Input>::type Loaded;

// Room for the sums of a warp, product by product of all its lanes; of as many warps as there are, or as 32 KiB hold.
constexpr u32 SLOT = TILE * WIDTH, SLOTS = WARPS * SLOT <= 8192 ? WARPS : 8192 / SLOT;
static_assert(WARPS % SLOTS == 0, "warps take turns");

// Adds the sums of all warps up: sum[t][j] are rows 16 t, columns 8 j of a tile of TILE x WIDTH, laid out as mma does.
__device__ __forceinline__ void add_up(float (&total)[TILE][WIDTH + 1], const float (&sum)[PIECES][TILES][4]) {
    __shared__ float slots[SLOTS][SLOT];
    const u32 warp = threadIdx.x / 32;
    for (u32 first = 0; first < WARPS; first += SLOTS) {
        if (warp / SLOTS == first / SLOTS)
#pragma unroll
            for (u32 t = 0; t < PIECES; t++)
#pragma unroll
                for (u32 j = 0; j < TILES; j++)
#pragma unroll
                    for (u32 i = 0; i < 4; i++) {
                        float& to = slots[warp % SLOTS][((t * TILES + j) * 4 + i) * 32 + lane()];
                        to = first == 0 ? sum[t][j][i] : to + sum[t][j][i];
                    }
        __syncthreads();
    }
    for (u32 at = threadIdx.x; at < SLOT; at += THREADS) {
        const u32 of = at % 32, i = at / 32 % 4, j = at / 128 % TILES, t = at / 128 / TILES;
        float value = slots[0][at];
        for (u32 slot = 1; slot < SLOTS; slot++) value += slots[slot][at];
        total[16 * t + of / 4 + i / 2 * 8][8 * j + of % 4 * 2 + i % 2] = value;
    }
    __syncthreads();
}
