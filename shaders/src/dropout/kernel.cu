// Dropout: each thread takes eight elements, whose random bits are the halves of the words of one block of Philox4x32-10.
//
// Grid: in x and y together at least as many blocks as the elements need. shaders/src/ptx.cu and results.cu come before this text.

// How many elements, the key, and the bits below which one is dropped; what others are multiplied by; of how many elements the upper half.
struct Info { u32 count, key[2], threshold; float kept; u32 upper, unused[2]; };

__device__ __forceinline__ float value_of(float x) { return x; }
__device__ __forceinline__ float value_of(bf16 x) { return __uint_as_float((u32)x << 16); }

__device__ __forceinline__ u32 high(u32 a, u32 b) { return (u32)((unsigned long long)a * b >> 32); }

extern "C" __global__ void __launch_bounds__({{ threads }})
dropout(const Result* __restrict__ x, Result* __restrict__ y, const __grid_constant__ Info info) {
    const u32 block = (blockIdx.y * gridDim.x + blockIdx.x) * {{ threads }} + threadIdx.x;
    u32 counter[4] = { block, 0, 0, 0 }, key[2] = { info.key[0], info.key[1] };
#pragma unroll
    for (u32 round = 0; round < 10; round++) {
        const u32 first = counter[0], second = counter[2];
        counter[0] = high(0xcd9e8d57u, second) ^ counter[1] ^ key[0];
        counter[1] = 0xcd9e8d57u * second;
        counter[2] = high(0xd2511f53u, first) ^ counter[3] ^ key[1];
        counter[3] = 0xd2511f53u * first;
        key[0] += 0x9e3779b9u, key[1] += 0xbb67ae85u;
    }
    const unsigned long long count = (unsigned long long)info.upper << 32 | info.count;
    // Eight threads take 64 elements, neighbours of them at a time.
    const unsigned long long from = 64ull * (block / 8) + block % 8;
#pragma unroll
    for (u32 i = 0; i < 8; i++) {
        const unsigned long long at = from + 8 * i;
        const u32 bits = counter[i / 2] >> 16 * (i % 2) & 0xffff;
        if (at < count) put(y + at, bits < info.threshold ? 0.0f : value_of(x[at]) * info.kept);
    }
}
