// What the products with a low-rank matrix have in common. One side of each is narrow, `rank` wide, so that the other one is read once,
// at the speed of memory; it comes in bf16, or in f32 and is rounded on its way to the tensor cores; sums are f32. Which element of the
// inner dimension is which of an instruction is free, as long as both operands agree: each thread takes four neighbours.
//
// A block sums with eight warps, which take turns along the inner dimension, and adds up in the order of the warps: a run can be
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

// Adds the sums of all warps up: sum[t][j] are rows 16 t, columns 8 j of a tile of TILE x WIDTH, laid out as mma does.
__device__ __forceinline__ void add_up(float (&total)[TILE][WIDTH + 1], const float (&sum)[PIECES][TILES][4]) {
    for (u32 warp = 0; warp < WARPS; warp++) {
        if (threadIdx.x / 32 == warp) {
#pragma unroll
            for (u32 t = 0; t < PIECES; t++)
#pragma unroll
                for (u32 j = 0; j < TILES; j++)
#pragma unroll
                    for (u32 i = 0; i < 4; i++) {
                        float& to = total[16 * t + lane() / 4 + i / 2 * 8][8 * j + lane() % 4 * 2 + i % 2];
                        to = warp == 0 ? sum[t][j][i] : to + sum[t][j][i];
                    }
        }
        __syncthreads();
    }
}
