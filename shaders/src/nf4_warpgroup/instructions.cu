// Instructions of sm_90a for groups of four warps, whose products run beside what the threads do next. tests/cuda/warpgroup.h has
// a twin of each function for the host.
typedef unsigned long long u64;
constexpr u32 TILE_ROWS = {{ tile_rows }}, SUMS = TILE_ROWS / 2;
#ifdef __CUDACC_RTC__
// Shared memory of a size that the launch says, as sizes above 48 KiB have to be.
#define LAUNCHED_SHARED(name, bytes) extern __shared__ __align__(1024) char name[]

__device__ __forceinline__ u32 shared_address(const void* in_shared) { return (u32)__cvta_generic_to_shared(in_shared); }

// What this thread wrote or copied to shared memory is seen by products that are started after the next barrier.
__device__ __forceinline__ void fence_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// What this thread wrote to registers is seen by the products that it starts next.
__device__ __forceinline__ void fence_registers() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// Starts sum[64, TILE_ROWS] += a[64, 16] · b[TILE_ROWS, 16]ᵀ, where b is described as `described` of kernel.cu does it.
__device__ __forceinline__ void start_product(float (&sum)[SUMS], const u32 (&a)[4], u64 b) {
    asm volatile("{\n.reg .pred add;\nsetp.eq.u32 add, 0, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n{{ tile_rows }}k16.f32.bf16.bf16 "
                 "{ {{ sums }} }, {{ a_and_b }}, add, 1, 1, 0;\n}"
                 : {{ sum_operands }}
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

__device__ __forceinline__ void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until all groups of products but the last one are done with what they read.
__device__ __forceinline__ void await_products_but_one() { asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory"); }

// Waits until the sums are there.
__device__ __forceinline__ void await_products(float (&sum)[SUMS]) {
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    // No read of a sum may move up before the wait.
#pragma unroll
    for (u32 i = 0; i < SUMS; i++) asm volatile("" : "+f"(sum[i])::"memory");
}
#endif
