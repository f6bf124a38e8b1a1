// The twins of the functions of shaders/src/wgmma.cu on the host, and of those of the texts after it that start products.
//
// A product is computed when it is waited for, from what registers and shared memory hold by then, and fails if what it reads in
// shared memory has changed since it was started: what the threads do meanwhile must not matter.
#pragma once

#include <utility>

#include "tile_copies.h"

namespace device {

// Set by a test whose kernel has its left operands TRANSPOSED in shared memory: the kernel's text says that in its PTX only.
static bool left_transposed = false;

// PTX ISA, matrix descriptor of wgmma, with 128-byte swizzling: bits 0 to 13 are the start, 32 to 45 the distance of groups of eight
// lines of 128 bytes, both in units of 16 bytes; 49 to 51 are zero where the pattern begins at a multiple of 1,024 bytes; 62 and 63 are
// the kind of swizzling. Lines are rows of a K-major operand; of an M-major one, of 64 rows, they are columns.
struct Described { u32 start, stride; };

static Described parse(u64 descriptor) {
    if (descriptor >> 62 != 1 || descriptor >> 46 & 0xffff) fail("a descriptor of another layout");
    return { u32(descriptor & 0x3fff) << 4, u32(descriptor >> 32 & 0x3fff) << 4 };
}

static bf16 described_element(const Described& operand, u32 line, u32 of_line) {
    const u32 address = operand.start + line / 8 * operand.stride + line % 8 * 128 + of_line * 2;
    const char* from = __start_shared_memory + (swizzled(address) - SHARED_BASE);
    if (address < SHARED_BASE || from + 2 > __stop_shared_memory) fail("wgmma outside of shared memory");
    bf16 value;
    memcpy(&value, from, 2);
    return value;
}

// That so many lines, and so many bytes of each, may be read.
static void check_described(u64 descriptor, u32 lines, u32 bytes) {
    const auto [start, stride] = parse(descriptor);
    const char* const first = __start_shared_memory + (start - SHARED_BASE);
    const char* const end = first + (lines / 8 - 1) * stride + 7 * 128 + bytes;
    check_arrived(first, end);
    // All lanes read the same.
    if (threadIdx.x % WARP == 0) check_fenced(first, end, "wgmma");
}

// What a warp reads in shared memory, 16 elements after the other: rows of its part of the left operand, if that is there, and then those
// of the right one.
static std::vector<bf16> read_operands(const Product& of) {
    std::vector<bf16> read;
    if (!of.a) {
        const Described left = parse(of.left);
        const u32 first = threadIdx.x / WARP % 4 * 16;
        for (u32 row = first; row < first + 16; row++)
            for (u32 k = 0; k < 16; k++)
                read.push_back(left_transposed ? described_element(left, k, row) : described_element(left, row, k));
    }
    const Described right = parse(of.right);
    for (u32 row = 0; row < of.columns; row++)
        for (u32 k = 0; k < 16; k++)
            read.push_back(of.of_rows ? described_element(right, k, row) : described_element(right, row, k));
    return read;
}

static inline void fence_shared() { running->unfenced.clear(); }
static inline void fence_registers() { running->registers_fenced = true; }

static void start(Product product) {
    if (!running->registers_fenced) fail("wgmma without a fence after its registers were written");
    if (product.of_rows) check_described(product.right, 16, 128);
    else check_described(product.right, product.columns, 32);
    if (threadIdx.x % WARP == 0) product.seen = read_operands(product);
    running->open_products.push_back(std::move(product));
}

template <u32 SUMS>
static inline void start_product(float (&sum)[SUMS], const u32 (&a)[4], u64 b) {
    static_assert(2 * SUMS <= 256, "wgmma has no such shape");
    start({ sum, a, 0, b, 2 * SUMS, {} });
    // The next one's left operand is written after this.
    running->registers_fenced = false;
}

template <u32 SUMS>
static inline void start_product(float (&sum)[SUMS], u64 a, u64 b) {
    static_assert(2 * SUMS <= 256, "wgmma has no such shape");
    if (left_transposed) check_described(a, 16, 128);
    else check_described(a, 64, 32);
    start({ sum, nullptr, a, b, 2 * SUMS, {} });
}

template <u32 SUMS>
static inline void start_product(float (&sum)[SUMS], u64 a, u64 b, bool add) {
    static_assert(2 * SUMS <= 256, "wgmma has no such shape");
    check_described(a, 64, 32);
    start({ sum, nullptr, a, b, 2 * SUMS, {}, add });
}

// Of 64 elements of each row: as many as a line has.
static inline void start_product_of_rows(float (&sum)[32], const u32 (&a)[4], u64 b) {
    start({ sum, a, 0, b, 64, {}, true, true });
}

static inline void commit_products() {
    running->product_groups.push_back(std::move(running->open_products));
    running->open_products.clear();
    running->registers_fenced = false;
}

// PTX ISA, wgmma.m64nNk16: a warp's 16 rows of the left operand and of the sums lie as those of mma.m16n8k16 (ptx.h), the sums of
// each eight columns in four registers.
static void compute(const Product& mine) {
    static std::vector<bf16> operands[MAX_THREADS / WARP];
    const u32* const* table = exchange("wgmma.wait_group", mine.a);
    const u32* registers[WARP];
    std::copy(table, table + WARP, registers);
    std::vector<bf16>& read = operands[threadIdx.x / WARP];
    const u32 lane = threadIdx.x % WARP;
    if (lane == 0) {
        read = read_operands(mine);
        if (mine.seen != read) fail("shared memory changed under a product");
    }
    exchange("wgmma reads", 0);
    const bf16 *const left = read.data(), *const right = left + (mine.a ? 0 : 16 * 16);
    for (u32 i = 0; i < mine.columns / 2; i++) {
        const u32 row = lane / 4 + i % 4 / 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
        double total = mine.add ? mine.sum[i] : 0;
        for (u32 k = 0; k < 16; k++) {
            const u32* const a = registers[row % 8 * 4 + k % 8 / 2];
            const float factor = a ? element(a[k / 8 * 2 + row / 8], k % 2) : from_bf16(left[row * 16 + k]);
            total += (double)factor * from_bf16(right[column * 16 + k]);
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

template <u32 LEFT>
static inline void await_products_but() { await_product_groups(LEFT); }
template <u32 SUMS>
static inline void pin(float (&)[SUMS]) {}
static inline void pin(u32 (&)[4]) {}
template <u32 SUMS>
static inline void await_products(float (&)[SUMS]) { await_product_groups(0); }

}  // namespace device

using device::fence_shared, device::fence_registers, device::start_product, device::start_product_of_rows;
using device::commit_products, device::await_products_but, device::pin, device::await_products;
