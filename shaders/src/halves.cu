// Numbers of several types in f32, from their bits; shaders/src/ptx.cu, which comes before this, has the one for f16.

__device__ __forceinline__ float from_f32(u32 bits) { return __uint_as_float(bits); }

__device__ __forceinline__ float from_bf16(u32 bits) { return __uint_as_float(bits << 16); }
