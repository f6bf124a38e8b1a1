// Decodes elements of an NF4 weight: one thread takes one word of eight codes.
//
// Grid: in x and y together at least as many blocks as the words that the elements touch need.

// What is decoded: `count` elements from `first` on; and the word of the weight at which `codes` begins.
struct Range { u32 first, count, begin, unused; };

// Bytes of an element of the result.
constexpr u32 WIDTH = {{ width }};

__device__ __forceinline__ void store(void* dense, size_t at, float value) {
    if (WIDTH == 4) ((float*)dense)[at] = value;
    else ((unsigned short*)dense)[at] = (unsigned short){{ pack }}(value, 0);
}

// Eight elements, at an address that is a multiple of 16 bytes.
__device__ __forceinline__ void store(void* dense, size_t at, const float (&v)[8]) {
    if (WIDTH == 4) {
        float4* to = (float4*)((float*)dense + at);
        to[0] = make_float4(v[0], v[1], v[2], v[3]);
        to[1] = make_float4(v[4], v[5], v[6], v[7]);
    } else {
        *(uint4*)((unsigned short*)dense + at) = make_uint4({{ pack }}(v[0], v[1]), {{ pack }}(v[2], v[3]),
                                                            {{ pack }}(v[4], v[5]), {{ pack }}(v[6], v[7]));
    }
}

extern "C" __global__ void __launch_bounds__({{ threads }})
nf4_dequantize(const u32* __restrict__ codes, const u32* __restrict__ absmax, const u32* __restrict__ header,
               void* __restrict__ dense, const __grid_constant__ Range range) {
    // Constant memory would serve one level at a time; these are in different banks.
    __shared__ float levels[16];
    if (threadIdx.x < 16) levels[threadIdx.x] = NF4[threadIdx.x];
    __syncthreads();
    const u32 word = range.first / 8 + (blockIdx.y * gridDim.x + blockIdx.x) * {{ threads }} + threadIdx.x;
    const unsigned long long first = range.first, end = first + range.count, from = 8ull * word;
    if (from >= end) return;
    const Weight w = { codes, absmax, header, (const float*)(header + MAP), __uint_as_float(header[3]), header[0],
                       header[1], header[2] != 0 };
    // A block holds at least 32 elements, so the eight of one word never straddle two.
    const float scale = finish_scale(w, fetch_scale(w, (u32)from));
    const u32 packed = codes[word - range.begin];
    float value[8];
#pragma unroll
    for (u32 i = 0; i < 8; i++) {
        // Within each byte the first element is the high nibble.
        const u32 shift = 8 * (i / 2) + 4 * (1 - i % 2);
        value[i] = levels[(packed >> shift) & 15] * scale;
    }
    const bool whole = from >= first && from + 8 <= end && ((size_t)dense + (from - first) * WIDTH) % 16 == 0;
    if (whole) {
        store(dense, from - first, value);
        return;
    }
#pragma unroll
    for (u32 i = 0; i < 8; i++)
        if (from + i >= first && from + i < end) store(dense, from + i - first, value[i]);
}
