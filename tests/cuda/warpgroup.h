// The twins of the functions of shaders/src/nf4_warpgroup/instructions.cu on the host.
//
// A product is computed when it is waited for, from what registers and shared memory hold by then, and fails if what it reads in
// shared memory has changed since it was started: what the threads do meanwhile must not matter.
#pragma once

#include <utility>

#include "ptx.h"

typedef unsigned long long u64;

#define LAUNCHED_SHARED(name, bytes) __shared__ __align__(1024) char name[bytes]

namespace device {

// Where shared memory begins, for the tests: not at zero, and as far as swizzling sees.
constexpr u32 SHARED_BASE = 1024;

static inline u32 shared_address(const void* in_shared) {
    const char* address = (const char*)in_shared;
    if (address < __start_shared_memory || address >= __stop_shared_memory) fail("no address in shared memory");
    return SHARED_BASE + (u32)(address - __start_shared_memory);
}

// PTX ISA, matrix descriptor of wgmma, for a K-major operand with 128-byte swizzling: bits 0 to 13 are the start, 32 to 45 the
// distance of groups of eight rows, both in units of 16 bytes; 49 to 51 are zero where the pattern begins at a multiple of 1,024
// bytes; 62 and 63 are the kind of swizzling. Of an address with bits 7 to 9 the bits 4 to 6 are permuted.
static bf16 described_element(u64 descriptor, u32 row, u32 k) {
    if (descriptor >> 62 != 1 || descriptor >> 46 & 0xffff) fail("a descriptor of another layout");
    const u32 start = (descriptor & 0x3fff) << 4, stride = (descriptor >> 32 & 0x3fff) << 4;
    u32 address = start + row / 8 * stride + row % 8 * 128 + k * 2;
    address ^= (address >> 7 & 7) << 4;
    const char* from = __start_shared_memory + (address - SHARED_BASE);
    if (address < SHARED_BASE || from + 2 > __stop_shared_memory) fail("wgmma outside of shared memory");
    bf16 value;
    memcpy(&value, from, 2);
    return value;
}

constexpr u32 MAX_COLUMNS = 256;

struct Operand { bf16 elements[MAX_COLUMNS][16]; };

static Operand read_operand(u64 descriptor, u32 columns) {
    Operand read;
    for (u32 row = 0; row < columns; row++)
        for (u32 k = 0; k < 16; k++) read.elements[row][k] = described_element(descriptor, row, k);
    return read;
}

static inline void fence_shared() { running->unfenced = false; }
static inline void fence_registers() { running->registers_fenced = true; }

template <u32 SUMS>
static inline void start_product(float (&sum)[SUMS], const u32 (&a)[4], u64 b) {
    constexpr u32 COLUMNS = 2 * SUMS;
    static_assert(COLUMNS <= MAX_COLUMNS, "wgmma has no such shape");
    if (!std::exchange(running->registers_fenced, false)) fail("wgmma without a fence after its registers were written");
    if (std::any_of(fibers.begin(), fibers.end(), [](Fiber& f) { return f.unfenced; }))
        fail("wgmma while a thread has not fenced what it copied");
    Product product = { sum, a, b, COLUMNS, {} };
    // All lanes read the same.
    if (threadIdx.x % WARP == 0) {
        const Operand read = read_operand(b, COLUMNS);
        product.seen.assign(read.elements[0], read.elements[COLUMNS]);
    }
    running->open_products.push_back(std::move(product));
}

static inline void commit_products() {
    running->product_groups.push_back(std::move(running->open_products));
    running->open_products.clear();
}

// PTX ISA, wgmma.m64nNk16: a warp's 16 rows of the left operand and of the sums lie as those of mma.m16n8k16 (ptx.h), the sums of
// each eight columns in four registers.
static void compute(const Product& mine) {
    static Operand operands[MAX_THREADS / WARP];
    struct Shown { float* sum; const u32* a; };
    const Shown* table = exchange("wgmma.wait_group", Shown { mine.sum, mine.a });
    Shown lanes[WARP];
    std::copy(table, table + WARP, lanes);
    Operand& b = operands[threadIdx.x / WARP];
    const u32 lane = threadIdx.x % WARP;
    if (lane == 0) {
        b = read_operand(mine.b, mine.columns);
        if (!std::equal(mine.seen.begin(), mine.seen.end(), b.elements[0])) fail("shared memory changed under a product");
    }
    exchange("wgmma reads", 0);
    for (u32 i = 0; i < mine.columns / 2; i++) {
        const u32 row = lane / 4 + i % 4 / 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
        double total = mine.sum[i];
        for (u32 k = 0; k < 16; k++) {
            const u32 left = lanes[row % 8 * 4 + k % 8 / 2].a[k / 8 * 2 + row / 8];
            total += (double)element(left, k % 2) * from_bf16(b.elements[column][k]);
        }
        mine.sum[i] = (float)total;
    }
    // No lane may write its registers before all have read them.
    exchange("wgmma sums", 0);
}

static void await_product_groups(size_t left) {
    auto& groups = running->product_groups;
    for (; groups.size() > left; groups.pop_front())
        for (const Product& product : groups.front()) compute(product);
}

static inline void await_products_but_one() { await_product_groups(1); }
template <u32 SUMS>
static inline void await_products(float (&)[SUMS]) { await_product_groups(0); }

}  // namespace device

using device::shared_address, device::fence_shared, device::fence_registers;
using device::start_product, device::commit_products, device::await_products_but_one, device::await_products;
