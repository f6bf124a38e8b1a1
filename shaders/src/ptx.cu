// Instructions that CUDA C++ has no function for. This text is put before every kernel that reads a weight, and
// tests/cuda/ptx.h has a twin of each function for the host. Copies, matrices and bf16 are for sm_80 and up.
typedef unsigned int u32;
typedef unsigned short bf16;

// Shared memory of a size that the launch says, as sizes above 48 KiB have to be.
#define LAUNCHED_SHARED(name, bytes) extern __shared__ __align__(1024) char name[]

// Codes that no one reads again: they must not push x out of the first-level cache.
__device__ __forceinline__ void load_codes(u32 (&packed)[4], const u32* from) {
    asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(packed[0]), "=r"(packed[1]), "=r"(packed[2]), "=r"(packed[3]) : "l"(from));
}

__device__ __forceinline__ void load_codes(u32 (&packed)[2], const u32* from) {
    asm("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];" : "=r"(packed[0]), "=r"(packed[1]) : "l"(from));
}

// Where something lies in shared memory.
__device__ __forceinline__ u32 place_in_shared(const void* what) { return (u32)__cvta_generic_to_shared(what); }

// A word of a table in shared memory, of the line that a byte of `word` names: lines lie 256 >> CLOSER bytes apart, and `within`, of a byte, is 1 <<
// CLOSER times where the word lies in its line. Byte and place become an address by one instruction; the table's own place, if it is the same
// for all lanes, costs none.
template <u32 BYTE, u32 CLOSER>
__device__ __forceinline__ u32 load_by_byte(u32 table, u32 within, u32 word) {
    u32 found;
    asm volatile("{ .reg .u32 at; prmt.b32 at, %2, %3, %4; shr.u32 at, at, %5; add.u32 at, at, %1; ld.shared.u32 %0, [at]; }"
                 : "=r"(found) : "r"(table), "r"(within), "r"(word), "n"(0x1140 + 0x10 * BYTE), "n"(CLOSER));
    return found;
}

// A pointer that the compiler keeps instead of making it again from what it was made of.
template <class T>
__device__ __forceinline__ T* kept(T* pointer) {
    asm volatile("" : "+l"(pointer));
    return pointer;
}

// 2^x, wrong by two units in the last place at most; results below the normal ones are zeros.
__device__ __forceinline__ float power_of_two(float x) {
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
    return power;
}

// Two numbers rounded to nearest even, the first in the low half. Turing has no instruction for it.
__device__ __forceinline__ u32 pack_bf16(float low, float high) {
#if __CUDA_ARCH__ >= 800
    u32 pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
#else
    const auto rounded = [](float value) {
        const u32 bits = __float_as_uint(value);
        // Where bits are added to it, no number might become one.
        return value == value ? (bits + 0x7fff + (bits >> 16 & 1)) >> 16 : 0x7fff;
    };
    return rounded(high) << 16 | rounded(low);
#endif
}

__device__ __forceinline__ u32 pack_f16(float low, float high) {
    u32 pair;
    // Ampere could do it by one instruction, but Turing has f16, too.
    asm("{ .reg .b16 low, high; cvt.rn.f16.f32 low, %1; cvt.rn.f16.f32 high, %2; mov.b32 %0, {low, high}; }"
        : "=r"(pair) : "f"(low), "f"(high));
    return pair;
}

// A number in f16, from its bits.
__device__ __forceinline__ float from_f16(u32 bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"((unsigned short)bits));
    return value;
}

// Starts a copy of 16 bytes to shared memory; of zeros, if not `inside`.
__device__ __forceinline__ void copy_async(void* to, const void* from, bool inside) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :: "r"((u32)__cvta_generic_to_shared(to)), "l"(from), "r"(inside ? 16 : 0) : "memory");
}

// Starts a copy of four bytes.
__device__ __forceinline__ void copy_word_async(void* to, const void* from, bool inside) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;"
                 :: "r"((u32)__cvta_generic_to_shared(to)), "l"(from), "r"(inside ? 4 : 0) : "memory");
}

__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until all groups of copies but so many of the last ones have arrived.
template <u32 LAST>
__device__ __forceinline__ void await_copies_but() { asm volatile("cp.async.wait_group %0;" ::"n"(LAST) : "memory"); }

// All but the last one.
__device__ __forceinline__ void await_copies_but_one() { await_copies_but<1>(); }

// Four matrices of 8 x 8; eight lanes each give the addresses of the rows of one.
__device__ __forceinline__ void load_matrices(u32 (&to)[4], const bf16* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"((u32)__cvta_generic_to_shared(row)) : "memory");
}

__device__ __forceinline__ void load_matrices_transposed(u32 (&to)[4], const bf16* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"((u32)__cvta_generic_to_shared(row)) : "memory");
}

// sum[16, 8] += a[16, 16] · b[16, 8].
__device__ __forceinline__ void multiply_add(float (&sum)[4], const u32 (&a)[4], u32 b_low, u32 b_high) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b_low), "r"(b_high));
}
