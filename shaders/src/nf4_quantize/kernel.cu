// f32, bf16 or f16 to NF4, bit for bit what engine/nf4/src/quantize.rs computes: the scale of each block, then a code per element.
//
// Grid: in x and y together at least ceil(blocks / (THREADS / min(32, block_size / 8))), where blocks is
// ceil(count / block_size): a warp takes one block, or several of those that have fewer than 32 words. `codes` has
// ceil(count / 8) words.
// A weight that is NaN or infinite makes the scale of its block NaN or infinite: the caller must look there.
typedef unsigned long long u64;
struct Info { u32 count, block_size, unused[2]; };

__constant__ float NF4[16] = { {{ nf4_table }} };
constexpr u32 THREADS = {{ threads }};
constexpr u32 ZERO_CODE = 7;

// The bits of a weight.
typedef {{ bits }} Bits;

// Eight elements of a block from `first` on; those from `count` on are 0.
__device__ __forceinline__ void load(float (&value)[8], const Bits* weights, u64 first, u32 count, bool vector) {
    if (vector && first + 8 <= count) {
        constexpr u32 WORDS = 2 * sizeof(Bits), PER_WORD = 4 / sizeof(Bits);
        u32 word[WORDS];
#pragma unroll
        for (u32 i = 0; i < WORDS; i += 4) {
            const uint4 four = *(const uint4*)((const u32*)(weights + first) + i);
            word[i] = four.x, word[i + 1] = four.y, word[i + 2] = four.z, word[i + 3] = four.w;
        }
#pragma unroll
        for (u32 i = 0; i < 8; i++) value[i] = from_{{ dtype }}((Bits)(word[i / PER_WORD] >> (i % PER_WORD * 16)));
    } else {
#pragma unroll
        for (u32 i = 0; i < 8; i++) value[i] = first + i < count ? from_{{ dtype }}(weights[first + i]) : 0.0f;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
nf4_quantize(const Bits* __restrict__ weights, u32* __restrict__ codes, float* __restrict__ absmax,
             const __grid_constant__ Info info) {
    const u32 words = info.block_size / 8, lanes = words < 32 ? words : 32;
    const u32 lane = threadIdx.x % lanes;
    const u64 group = (u64)blockIdx.y * gridDim.x + blockIdx.x;
    const u64 block = group * (THREADS / lanes) + threadIdx.x / lanes, start = block * info.block_size;
    const bool vector = (size_t)weights % 16 == 0;
    float value[8];

    // Of numbers that are not negative the bits are in the same order, and NaN, unlike in fmaxf, comes out on top.
    u32 max_bits = 0;
    for (u32 word = lane; word < words; word += lanes) {
        load(value, weights, start + 8 * word, info.count, vector);
#pragma unroll
        for (u32 i = 0; i < 8; i++) max_bits = max(max_bits, __float_as_uint(value[i]) & 0x7fffffff);
    }
    for (u32 offset = lanes / 2; offset > 0; offset /= 2)
        max_bits = max(max_bits, __shfl_xor_sync(0xffffffff, max_bits, offset));
    // A block past the end is only here for the shuffles.
    if (start >= info.count) return;
    const bool whole = start + info.block_size <= info.count;
    const float divisor = __uint_as_float(max(max_bits, __float_as_uint(1e-38f)));
    if (lane == 0) absmax[block] = whole ? __uint_as_float(max_bits) : divisor;

    const float reciprocal = __frcp_rn(divisor);
    float bound[15];
#pragma unroll
    for (u32 i = 0; i < 15; i++) bound[i] = __fmul_rn(__fadd_rn(NF4[i], NF4[i + 1]), 0.5f);
    for (u32 word = lane; word < words && start + 8 * word < info.count; word += lanes) {
        load(value, weights, start + 8 * word, info.count, vector);
        u32 packed = 0;
#pragma unroll
        for (u32 i = 0; i < 8; i++) {
            const u64 element = start + 8 * word + i;
            // The reference clamps to [-1, 1] here; all bounds lie within, so that never changes a code.
            const float scaled = whole ? __fmul_rn(value[i], reciprocal) : __fdiv_rn(value[i], divisor);
            u32 code = 0;
#pragma unroll
            for (u32 j = 0; j < 15; j++) code += bound[j] < scaled;
            // Past the end the other half of a byte that is in use holds the code of zero; unused bytes are 0.
            if (element >= info.count) code = i % 2 == 1 && element - 1 < info.count ? ZERO_CODE : 0;
            packed |= code << (8 * (i / 2) + 4 * (1 - i % 2));
        }
        codes[(start + 8 * word) / 8] = packed;
    }
}
