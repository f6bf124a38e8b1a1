// y[rows, out] = x[rows, in] · Wᵀ for a handful of rows and a weight in 16 bits, bound by reading W: every eight elements are read
// once, by one lane, for all rows.
//
// Grid: in x and y together at least ceil(out / (THREADS / 32 * FEATURES)): a warp takes FEATURES output features. `in` is a multiple of
// eight, and both operands begin at multiples of 16 bytes.

// Rows, output features, input features.
struct Info { u32 rows, out, in, unused; };

// Rows that there are accumulators for; info.rows is at most this.
constexpr u32 ROWS = {{ rows }};
constexpr u32 THREADS = {{ threads }};
// What a warp reads of x serves this many.
constexpr u32 FEATURES = 4;

__device__ __forceinline__ float low(u32 word) { return from_{{ dtype }}(word & 0xffff); }

__device__ __forceinline__ float high(u32 word) { return from_{{ dtype }}(word >> 16); }

extern "C" __global__ void __launch_bounds__(THREADS, 1)
half_skinny(const uint4* __restrict__ weight, const float4* __restrict__ x, float* __restrict__ y,
            const __grid_constant__ Info info) {
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, eights = info.in / 8;
    const u32 first = ((blockIdx.y * gridDim.x + blockIdx.x) * (THREADS / 32) + warp) * FEATURES;
    if (first >= info.out) return;
    float sum[ROWS][FEATURES] = {};
    for (u32 eight = lane; eight < eights; eight += 32) {
        uint4 words[FEATURES];
        // The last warp may have fewer features; it reads the last one again.
#pragma unroll
        for (u32 f = 0; f < FEATURES; f++) words[f] = weight[(size_t)min(first + f, info.out - 1) * eights + eight];
#pragma unroll
        for (u32 row = 0; row < ROWS; row++) {
            const float4* of_row = x + ((size_t)min(row, info.rows - 1) * eights + eight) * 2;
            const float4 a = of_row[0], b = of_row[1];
#pragma unroll
            for (u32 f = 0; f < FEATURES; f++) {
                float& to = sum[row][f];
                to += a.x * low(words[f].x);
                to += a.y * high(words[f].x);
                to += a.z * low(words[f].y);
                to += a.w * high(words[f].y);
                to += b.x * low(words[f].z);
                to += b.y * high(words[f].z);
                to += b.z * low(words[f].w);
                to += b.w * high(words[f].w);
            }
        }
    }
#pragma unroll
    for (u32 row = 0; row < ROWS; row++) {
#pragma unroll
        for (u32 f = 0; f < FEATURES; f++) {
            float total = sum[row][f];
#pragma unroll
            for (u32 offset = 16; offset > 0; offset /= 2) total += __shfl_xor_sync(0xffffffff, total, offset);
            if (lane == 0 && row < info.rows && first + f < info.out) y[(size_t)row * info.out + first + f] = total;
        }
    }
}
