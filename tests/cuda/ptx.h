// The twins of the functions of shaders/src/ptx.cu on the host.
#pragma once

#include <cmath>

#include "device.h"

#define LAUNCHED_SHARED(name, bytes)              \
    __shared__ __align__(1024) char name[bytes]; \
    device::check_launched(bytes)

namespace device {

static void check_aligned(const void* address, size_t bytes, const char* instruction) {
    if ((uintptr_t)address % bytes) fail("%s at an address that is no multiple of %zu", instruction, bytes);
}

// Shared memory of the kernel, for an instruction that takes so many bytes there.
static void check_shared(const void* address, const char* instruction, size_t bytes = 16) {
    check_aligned(address, bytes, instruction);
    const char* first = (const char*)address;
    const bool inside = first >= __start_shared_memory && first + bytes <= __stop_shared_memory;
    if (!inside) fail("%s outside of shared memory", instruction);
}

static float from_bf16(u32 bits) { return __uint_as_float(bits << 16); }

// Rounds to nearest even, as cvt.rn does.
static bf16 to_bf16(float value) {
    const u32 bits = __float_as_uint(value);
    if (std::isnan(value)) return 0x7fff;
    return (bf16)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// A result, whichever of both types it has, and what rounding to that type makes it wrong by at most, relative to itself.
static double value(float result) { return result; }
static double value(bf16 result) { return from_bf16(result); }
static double rounding(float) { return 0; }
static double rounding(bf16) { return 1.001 / 256; }

// Makes an element of either type of a value.
static void set(float& to, float value) { to = value; }
static void set(bf16& to, float value) { to = to_bf16(value); }

static float element(u32 pair, u32 upper) { return from_bf16(upper ? pair >> 16 : pair & 0xffff); }

template <u32 WORDS>
static inline void load_codes(u32 (&packed)[WORDS], const u32* from) {
    check_aligned(from, sizeof packed, "ld.global");
    memcpy(packed, from, sizeof packed);
}

static inline u32 place_in_shared(const void* what) { return (u32)((const char*)what - __start_shared_memory); }

template <u32 BYTE, u32 CLOSER>
static inline u32 load_by_byte(u32 table, u32 within, u32 word) {
    // The instruction takes all but the lowest byte of `within` for the address's upper bytes.
    if (within > 255) fail("a place in a line is more than a byte");
    const char* from = __start_shared_memory + table + (((word >> 8 * BYTE & 255) << 8 | within) >> CLOSER);
    check_shared(from, "ld.shared", 4);
    u32 found;
    memcpy(&found, from, 4);
    return found;
}

template <class T>
static inline T* kept(T* pointer) { return pointer; }

static inline float power_of_two(float x) { return exp2f(x); }
static inline u32 pack_bf16(float low, float high) { return to_bf16(high) << 16 | to_bf16(low); }

static inline u32 f16_bits(float value) {
    const _Float16 rounded = (_Float16)value;
    unsigned short bits;
    memcpy(&bits, &rounded, 2);
    return bits;
}

static inline float from_f16(u32 bits) {
    const unsigned short half = (unsigned short)bits;
    _Float16 value;
    memcpy(&value, &half, sizeof value);
    return value;
}

static inline u32 pack_f16(float low, float high) { return f16_bits(high) << 16 | f16_bits(low); }

static inline void start_copy(void* to, const void* from, size_t bytes, bool inside) {
    check_shared(to, "cp.async", bytes);
    check_aligned(from, bytes, "cp.async");
    // Nothing may be read there until the copy is waited for.
    memset(to, 0xff, bytes);
    running->open_group.push_back({ to, inside ? from : nullptr, bytes });
}

static inline void copy_async(void* to, const void* from, bool inside) { start_copy(to, from, 16, inside); }
static inline void copy_word_async(void* to, const void* from, bool inside) { start_copy(to, from, 4, inside); }

static inline void commit_copies() {
    running->groups.push_back(std::move(running->open_group));
    running->open_group.clear();
}

static void note_unfenced(const Copy& arrived) {
    auto& unfenced = running->unfenced;
    const auto same = [&](const Copy& copy) { return copy.to == arrived.to; };
    if (std::none_of(unfenced.begin(), unfenced.end(), same)) unfenced.push_back(arrived);
}

template <u32 LAST>
static inline void await_copies_but() {
    auto& groups = running->groups;
    for (; groups.size() > LAST; groups.pop_front())
        for (const Copy& copy : groups.front()) {
            note_unfenced(copy);
            if (copy.from) memcpy(copy.to, copy.from, copy.bytes);
            else memset(copy.to, 0, copy.bytes);
        }
}

static inline void await_copies_but_one() { await_copies_but<1>(); }

// PTX ISA, ldmatrix: lanes 8 i to 8 i + 7 give the rows of matrix i. Of each matrix lane l gets the elements 2 (l % 4)
// and 2 (l % 4) + 1 of row l / 4; of its transpose, with .trans.
static inline void load_matrices(u32 (&to)[4], const bf16* row) {
    check_shared(row, "ldmatrix");
    const u32 lane = threadIdx.x % 32, column = lane % 4 * 2;
    const bf16* const* rows = exchange("ldmatrix", row);
    for (u32 i = 0; i < 4; i++) to[i] = rows[8 * i + lane / 4][column + 1] << 16 | rows[8 * i + lane / 4][column];
}

static inline void load_matrices_transposed(u32 (&to)[4], const bf16* row) {
    check_shared(row, "ldmatrix");
    const u32 lane = threadIdx.x % 32, column = lane % 4 * 2;
    const bf16* const* rows = exchange("ldmatrix.trans", row);
    for (u32 i = 0; i < 4; i++) to[i] = rows[8 * i + column + 1][lane / 4] << 16 | rows[8 * i + column][lane / 4];
}

// PTX ISA, mma.m16n8k16 for .bf16. With group g = lane / 4 and pair p = lane % 4, each register holding two elements:
// a[i] has row g + 8 (i % 2), columns 2 p + 8 (i / 2) and the next; b[i] has rows 2 p + 8 i and the next, column g;
// sum[i] is row g + 8 (i / 2), column 2 p + i % 2.
static inline void multiply_add(float (&sum)[4], const u32 (&a)[4], u32 b_low, u32 b_high) {
    struct Fragments { u32 a[4], b[2]; };
    const Fragments* lanes = exchange("mma", Fragments { { a[0], a[1], a[2], a[3] }, { b_low, b_high } });
    const u32 lane = threadIdx.x % 32;
    for (u32 i = 0; i < 4; i++) {
        const u32 row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        double total = sum[i];
        for (u32 k = 0; k < 16; k++) {
            const u32 pair = k % 8 / 2, upper_rows = row / 8, upper_k = k / 8;
            const u32 left = lanes[row % 8 * 4 + pair].a[upper_k * 2 + upper_rows];
            const u32 right = lanes[column * 4 + pair].b[upper_k];
            total += (double)element(left, k % 2) * element(right, k % 2);
        }
        sum[i] = (float)total;
    }
}

}  // namespace device

using device::load_codes, device::place_in_shared, device::load_by_byte, device::kept, device::power_of_two, device::pack_bf16, device::pack_f16, device::from_f16;
using device::multiply_add;
using device::copy_async, device::copy_word_async, device::commit_copies, device::await_copies_but, device::await_copies_but_one;
using device::load_matrices, device::load_matrices_transposed;
