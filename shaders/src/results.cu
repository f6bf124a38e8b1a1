// How sums are written: as they are, or rounded to bf16.
typedef {{ result }} Result;

__device__ __forceinline__ void put(float* to, float sum) { *to = sum; }
__device__ __forceinline__ void put(bf16* to, float sum) { *to = (bf16)pack_bf16(sum, 0); }

// Two neighbours, at a multiple of what both take.
__device__ __forceinline__ void put_pair(float* to, float low, float high) { *(float2*)to = make_float2(low, high); }
__device__ __forceinline__ void put_pair(bf16* to, float low, float high) { *(u32*)to = pack_bf16(low, high); }
