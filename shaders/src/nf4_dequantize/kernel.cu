// Decodes a whole NF4 weight into f32: one thread takes one word of eight codes.

__device__ float block_scale(const u32* absmax, const u32* header, u32 block) {
    if (header[2] == 0) return __uint_as_float(absmax[block]);
    const u32 code = (absmax[block / 4] >> (8 * (block % 4))) & 0xff;
    // Two roundings, as the reference does it: a fused multiply-add would change the last bit.
    const float product = __fmul_rn(__uint_as_float(header[MAP + code]), __uint_as_float(header[NESTED + block / 256]));
    return __fadd_rn(product, __uint_as_float(header[3]));
}

extern "C" __global__ void __launch_bounds__({{ threads }})
nf4_dequantize(const u32* __restrict__ codes, const u32* __restrict__ absmax, const u32* __restrict__ header,
            float* __restrict__ dense) {
    const u32 count = header[0];
    const u32 word = (blockIdx.y * gridDim.x + blockIdx.x) * {{ threads }} + threadIdx.x;
    const unsigned long long first = 8ull * word;
    if (first >= count) return;
    // A block holds at least 32 elements, so the eight of one word never straddle two.
    const float scale = block_scale(absmax, header, (u32)(first >> header[1]));
    const u32 packed = codes[word];
    const u32 left = count - (u32)first;
#pragma unroll
    for (u32 i = 0; i < 8; i++) {
        // Within each byte the first element is the high nibble.
        const u32 shift = 8 * (i / 2) + 4 * (1 - i % 2);
        if (i < left) dense[first + i] = NF4[(packed >> shift) & 15] * scale;
    }
}
