// Instructions of Hopper's tensor cores, whose products take operands where they lie in shared memory and run beside what the threads do
// next, and of the engine that copies tiles of matrices there. For sm_90a.
//
// tests/cuda/warpgroup.h has a twin of each function between the #ifdef and its #endif for the host.
typedef unsigned long long u64;
// What describes a matrix to the engine that copies tiles of it (cuTensorMapEncodeTiled).
struct __align__(64) TileMap { u64 words[16]; };
#ifdef __CUDACC_RTC__
__device__ __forceinline__ u32 shared_address(const void* in_shared) { return (u32)__cvta_generic_to_shared(in_shared); }

// What this thread wrote or copied to shared memory is seen by products that are started after the next barrier.
__device__ __forceinline__ void fence_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// What this thread wrote to registers is seen by the products that it starts next.
__device__ __forceinline__ void fence_registers() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ __forceinline__ void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until all groups of products but the last LEFT are done.
template <u32 LEFT>
__device__ __forceinline__ void await_products_but() { asm volatile("wgmma.wait_group.sync.aligned %0;" :: "n"(LEFT) : "memory"); }

// What reads or writes these registers stays on its side of this: that of sums behind a wait, or before products that add to them.
template <u32 SUMS>
__device__ __forceinline__ void pin(float (&sum)[SUMS]) {
#pragma unroll
    for (u32 i = 0; i < SUMS; i++) asm volatile("" : "+f"(sum[i])::"memory");
}

__device__ __forceinline__ void pin(u32 (&a)[4]) {
#pragma unroll
    for (u32 i = 0; i < 4; i++) asm volatile("" : "+r"(a[i])::"memory");
}

// Waits until the sums are there.
template <u32 SUMS>
__device__ __forceinline__ void await_products(float (&sum)[SUMS]) {
    await_products_but<0>();
    pin(sum);
}

// Makes a barrier, by one thread, for copies that come after each other. The block's next barrier shows it to all.
__device__ __forceinline__ void make_barrier(u64* barrier) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;\nfence.mbarrier_init.release.cluster;" :: "r"(shared_address(barrier)) : "memory");
}

// Has a barrier expect the bytes of the copies that one thread starts next.
__device__ __forceinline__ void expect_bytes(u64* barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" :: "r"(shared_address(barrier)), "r"(bytes) : "memory");
}

// Starts the copy of a tile from a column and a row on, by one thread; zeros where the matrix has ended.
__device__ __forceinline__ void start_tile(char* tile, const TileMap& map, u32 column, u32 row, u64* barrier) {
    const u32 arriving = shared_address(barrier);
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];"
                 :: "r"(shared_address(tile)), "l"(&map), "r"(column), "r"(row), "r"(arriving) : "memory");
}

// Waits for the copies that a barrier expects, of those after each other with number 2 n + `odd`.
__device__ __forceinline__ void await_tile(u64* barrier, u32 odd) {
    asm volatile("{\n.reg .pred there;\nAGAIN:\nmbarrier.try_wait.parity.shared::cta.b64 there, [%0], %1;\n"
                 "@!there bra AGAIN;\n}" :: "r"(shared_address(barrier)), "r"(odd) : "memory");
}
#endif

// The descriptor of a tile of x: rows of 128 bytes, whose chunks of 16 are permuted within each group of eight rows, 1,024 bytes
// (PTX ISA, asynchronous warpgroup-level matrix instructions: K-major, 128-byte swizzling, which leaves the leading offset unused).
__device__ __forceinline__ u64 described(const char* tile) {
    return (u64)(shared_address(tile) >> 4) | (u64)1 << 16 | (u64)(1024 >> 4) << 32 | (u64)1 << 62;
}
