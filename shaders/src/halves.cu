// Numbers of several types in f32, from their bits.
typedef unsigned int u32;

__device__ __forceinline__ float from_f32(u32 bits) { return __uint_as_float(bits); }

__device__ __forceinline__ float from_bf16(u32 bits) { return __uint_as_float(bits << 16); }

__device__ __forceinline__ float from_f16(u32 bits) {
    const u32 sign = (bits & 0x8000) << 16, exponent = bits >> 10 & 31, fraction = bits & 0x3ff;
    // Below the smallest normal one it is so many times 2^-24.
    const u32 magnitude = exponent == 0 ? __float_as_uint((float)fraction * 0x1p-24f)
                                        : (exponent == 31 ? 255 : exponent + 112) << 23 | fraction << 13;
    return __uint_as_float(sign | magnitude);
}
