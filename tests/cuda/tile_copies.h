// The twins of those functions of shaders/src/warpgroup.cu on the host by which tiles of matrices get into shared memory.
//
// What was in a tile's place is lost when its copy is started, so products that may still read it fail, and so does a product of a
// tile for which a thread has not waited.
#pragma once

#include "ptx.h"

typedef unsigned long long u64;

namespace device {

// Where shared memory begins, for the tests: not at zero, and as far as swizzling sees.
constexpr u32 SHARED_BASE = 1024;

static inline u32 shared_address(const void* in_shared) {
    const char* address = (const char*)in_shared;
    if (address < __start_shared_memory || address >= __stop_shared_memory) fail("no address in shared memory");
    return SHARED_BASE + (u32)(address - __start_shared_memory);
}

// PTX ISA, swizzling of 128 bytes: of an address the bits 4 to 6 are permuted by bits 7 to 9.
static u32 swizzled(u32 address) { return address ^ (address >> 7 & 7) << 4; }

// That products, or the engine that copies tiles, may take the bytes.
static void check_fenced(const char* first, const char* end, const char* what) {
    const auto among_them = [=](const Copy& copy) { return copy.to < end && first < (char*)copy.to + copy.bytes; };
    for (const Fiber& fiber : fibers)
        if (std::any_of(fiber.unfenced.begin(), fiber.unfenced.end(), among_them))
            fail("%s while a thread has not fenced what it copied there", what);
}

// That the thread has waited for the tiles among them.
static void check_arrived(const char* first, const char* end) {
    for (size_t i = 0; i < arrivals.size(); i++) {
        const Arrivals& place = arrivals[i];
        if (!place.under_way && i < running->seen.size() && running->seen[i] == place.arrived) continue;
        for (const Tile& tile : place.tiles)
            if (tile.first < end && first < tile.end) fail("wgmma of a tile for which the thread has not waited");
    }
}

// What a TileMap holds here: a matrix whose rows begin `stride` elements apart, and the box of it that a copy takes.
struct TiledMatrix {
    const bf16* base;
    u32 rows, columns;
    size_t stride;
    u32 box_rows, box_columns;
};

// What cuTensorMapEncodeTiled does, with swizzling of 128 bytes and zeros outside of the matrix.
template <class Map>
static Map tile_map(const TiledMatrix& matrix) {
    static_assert(sizeof(Map) == 128 && alignof(Map) == 64, "what the driver wants of a CUtensorMap");
    if ((uintptr_t)matrix.base % 16 || matrix.stride * 2 % 16) fail("a map of rows that do not begin at multiples of 16 bytes");
    if (!matrix.rows || !matrix.columns || !matrix.box_rows) fail("a map of nothing");
    if (matrix.box_rows > 256 || matrix.box_columns * 2 != 128) fail("a map of %u x %u", matrix.box_rows, matrix.box_columns);
    Map map = {};
    memcpy(&map, &matrix, sizeof matrix);
    return map;
}

// What a barrier holds in shared memory, which no one else may write.
constexpr u64 BARRIER = 0x6261727269657221;

static inline void make_barrier(u64* barrier) {
    check_aligned(barrier, 8, "mbarrier.init");
    const char* at = (const char*)barrier;
    if (at < __start_shared_memory || at + 8 > __stop_shared_memory) fail("mbarrier.init outside of shared memory");
    for (const Arrivals& place : arrivals)
        if (place.barrier == barrier) fail("a barrier is made again");
    *barrier = BARRIER;
    Arrivals place = {};
    place.barrier = barrier, place.made = barriers_passed;
    arrivals.push_back(place);
}

// The index of a barrier.
static size_t find_arrivals(const u64* barrier) {
    const auto same = [=](const Arrivals& place) { return place.barrier == barrier; };
    const auto found = std::find_if(arrivals.begin(), arrivals.end(), same);
    if (found == arrivals.end()) fail("no barrier was made there");
    if (found->made == barriers_passed) fail("a barrier is used before the block's barrier has shown it");
    if (*barrier != BARRIER) fail("a barrier has been overwritten");
    return found - arrivals.begin();
}

static inline void expect_bytes(u64* barrier, u32 bytes) {
    Arrivals& place = arrivals[find_arrivals(barrier)];
    if (place.under_way) fail("a barrier is to expect more before what it expects has arrived");
    place.under_way = true;
    place.late = order() % 2;
    place.expected = bytes, place.started = 0;
    place.tiles.clear();
}

// Puts a box of a matrix into shared memory, in lines of 128 bytes.
static void copy_tile(u32 address, const TiledMatrix& from, u32 column, u32 row) {
    for (u32 i = 0; i < from.box_rows; i++)
        for (u32 j = 0; j < from.box_columns; j++) {
            const bool inside = row + i < from.rows && column + j < from.columns;
            const bf16 value = inside ? from.base[(row + i) * from.stride + column + j] : 0;
            memcpy(__start_shared_memory + (swizzled(address + i * 128 + j * 2) - SHARED_BASE), &value, 2);
        }
}

template <class Map>
static inline void start_tile(char* tile, const Map& map, u32 column, u32 row, u64* barrier) {
    TiledMatrix from;
    memcpy(&from, &map, sizeof from);
    const u32 address = shared_address(tile), bytes = from.box_rows * 128;
    const char* const end = tile + bytes;
    if (address % 1024) fail("a tile at an address that is no multiple of 1024");
    if (end > __stop_shared_memory) fail("a tile outside of shared memory");
    check_fenced(tile, end, "the copy of a tile");
    Arrivals& place = arrivals[find_arrivals(barrier)];
    if (!place.under_way) fail("a tile that its barrier does not expect");
    place.started += bytes;
    if (place.started > place.expected) fail("a barrier expects %u bytes and gets %u", place.expected, place.started);
    for (Arrivals& other : arrivals) {
        const auto overlaps = [=](const Tile& before) { return tile < before.end && before.first < end; };
        const auto found = std::find_if(other.tiles.begin(), other.tiles.end(), overlaps);
        if (found == other.tiles.end()) continue;
        if (other.under_way) fail("two tiles at a time for the same memory");
        other.tiles.erase(found);
    }
    memset(tile, 0xff, bytes);
    place.tiles.push_back({ tile, end, [=] { copy_tile(address, from, column, row); } });
}

// PTX ISA, mbarrier.try_wait.parity: waits while what is next to arrive is of that parity. Of the other parity it is taken for what came
// before, even if nothing did.
static inline void await_tile(u64* barrier, u32 odd) {
    if (odd > 1) fail("a parity of %u", odd);
    const size_t i = find_arrivals(barrier);
    Arrivals& place = arrivals[i];
    running->awaited = &place;
    if (place.arrived % 2 == odd && place.under_way && !place.late && place.started == place.expected) arrive(place);
    if (place.arrived % 2 == odd) pause(State::AtArrivals);
    running->seen.resize(arrivals.size());
    running->seen[i] = place.arrived;
}

}  // namespace device

using device::shared_address, device::make_barrier, device::expect_bytes, device::start_tile, device::await_tile;
