// CUDA on the host, for the test of kernels without a GPU: as much of the language as they use, and a scheduler that is
// as unkind as the rules of CUDA allow.
//
// The threads of a block are fibers on one thread of the host. Warps run in random order, each a random way, and shared
// memory is NaN when a block begins, so a missing barrier gives wrong results sooner or later. For x86-64 Linux only.
//
// Compile with -ffp-contract=off, or the compiler fuses what the kernels keep apart, and with -fsanitize=alignment
// -fsanitize-undefined-trap-on-error, or no one minds a vector at an address where a GPU can't load it.
#pragma once

#include <algorithm>
#include <csignal>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <numeric>
#include <random>
#include <vector>

#include "memory.h"

typedef unsigned int u32;
typedef unsigned short bf16;

// Keywords.
#define __global__
#define __device__ static
#define __forceinline__ inline
#define __constant__ static const
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
// In a section of its own, whose bounds the linker knows.
#define __shared__ static __attribute__((section("shared_memory")))
extern char __start_shared_memory[] __attribute__((weak)), __stop_shared_memory[] __attribute__((weak));

// Types.
struct __align__(8) uint2 { u32 x, y; };
struct __align__(16) uint4 { u32 x, y, z, w; };
struct __align__(8) float2 { float x, y; };
struct __align__(16) float4 { float x, y, z, w; };
struct uint3 { u32 x, y, z; };
static inline float2 make_float2(float x, float y) { return { x, y }; }
static inline float4 make_float4(float x, float y, float z, float w) { return { x, y, z, w }; }
static inline uint2 make_uint2(u32 x, u32 y) { return { x, y }; }
static inline uint4 make_uint4(u32 x, u32 y, u32 z, u32 w) { return { x, y, z, w }; }

// Arithmetic.
static inline u32 max(u32 a, u32 b) { return a > b ? a : b; }
static inline u32 min(u32 a, u32 b) { return a < b ? a : b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __frcp_rn(float a) { return 1.0f / a; }

static inline float __uint_as_float(u32 bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static inline u32 __float_as_uint(float value) {
    u32 bits;
    memcpy(&bits, &value, 4);
    return bits;
}

static inline u32 __byte_perm(u32 low, u32 high, u32 selector) {
    const uint64_t bytes = (uint64_t)high << 32 | low;
    u32 result = 0;
    for (u32 i = 0; i < 4; i++) result |= (u32)(bytes >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
    return result;
}

static inline u32 __funnelshift_l(u32 low, u32 high, u32 shift) {
    return (u32)((((uint64_t)high << 32 | low) << shift % 32) >> 32);
}

static uint3 threadIdx, blockIdx, blockDim, gridDim;

namespace device {

constexpr size_t STACK = 1 << 16;
constexpr u32 WARP = 32, MAX_THREADS = 1024, MAX_MESSAGE = 32;

// Absent are the lanes that a block whose size is no multiple of a warp's leaves without a thread.
enum class State { Ready, AtBarrier, AtArrivals, Exchanging, Done, Absent };

// An asynchronous copy: where 16 bytes go, and where they come from, or null for zeros.
struct Copy { void* to; const void* from; size_t bytes; };

// An asynchronous product: where its sums are, its left operand's registers, or null and what describes it, what describes the right one,
// what was read there first, whether the sums become more by it, and whether the rows of the right operand are the inner dimension.
struct Product {
    float* sum;
    const u32* a;
    unsigned long long left, right;
    u32 columns;
    std::vector<bf16> seen;
    bool add = true, of_rows = false;
};

// A copy of a tile: the bytes that it is for, and how they get there.
struct Tile { const char *first, *end; std::function<void()> copy; };

// Where tiles arrive, some at a time.
struct Arrivals {
    unsigned long long* barrier;
    // In which stretch between the block's barriers it was made; how many times tiles have arrived.
    u32 made, arrived;
    // Late ones arrive when no thread can do anything else, so whoever does not wait reads what is no number; others arrive as soon as a
    // thread waits, which may then be far ahead of those that have not.
    bool under_way, late;
    // The bytes of those that are under way, and of those of them whose copies have been started; they, or those that arrived last.
    u32 expected, started;
    std::vector<Tile> tiles;
};

struct Fiber {
    void* stack_pointer;
    std::vector<uint64_t> stack;
    State state;
    u32 exchanges;
    const char* instruction;
    // Copies that were started since the last commit, and the groups that were committed but not waited for.
    std::vector<Copy> open_group;
    std::deque<std::vector<Copy>> groups;
    // The same of products; the copies that have arrived of which they were not told, and whether they were told of registers.
    std::vector<Product> open_products;
    std::deque<std::vector<Product>> product_groups;
    std::vector<Copy> unfenced;
    bool registers_fenced;
    // Where the fiber waits for tiles, and how many times it has seen them arrive, of each place for that.
    const Arrivals* awaited;
    std::vector<u32> seen;
};

static std::vector<Fiber> fibers;
static Fiber* running;
// Of the thread that runs, within its block.
static u32 thread;
static void* scheduler;
static std::function<void()> kernel;
static std::mt19937 order(1);
static std::deque<Arrivals> arrivals;
static u32 barriers_passed;
// How many bytes of shared memory the launch has, for arrays whose size the kernel leaves to it, and where they are, if it has asked.
static size_t launched_bytes = SIZE_MAX;
static char* launched = nullptr;

// That the launch has as many.
static void check_launched(size_t bytes) {
    if (bytes > launched_bytes) fail("takes %zu bytes of shared memory, where the launch has %zu", bytes, launched_bytes);
}

// Puts the registers that a call keeps on the stack, and goes on where the other stack was left in the same way.
extern "C" void switch_stacks(void** leave, void* enter);
asm(R"(
    .text
    .globl switch_stacks
switch_stacks:
    push %rbx
    push %rbp
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbp
    pop %rbx
    ret
)");

static void pause(State state) {
    Fiber& fiber = *running;
    fiber.state = state;
    switch_stacks(&fiber.stack_pointer, scheduler);
}

static void run_kernel() {
    kernel();
    pause(State::Done);
}

static void reset(Fiber& fiber) {
    fiber.stack.resize(STACK / 8);
    // As switch_stacks leaves it: six registers and where to return to. A call expects a stack that lies 8 bytes off a
    // multiple of 16, which it does when the return address has been popped from one.
    const uintptr_t top = (uintptr_t)(fiber.stack.data() + STACK / 8) / 16 * 16 - 16;
    void** entry = (void**)top;
    entry[0] = (void*)run_kernel;
    fiber.stack_pointer = entry - 6;
    fiber.state = State::Ready;
    fiber.exchanges = 0;
    fiber.open_group.clear();
    fiber.groups.clear();
    fiber.open_products.clear();
    fiber.product_groups.clear();
    fiber.unfenced.clear();
    fiber.registers_fenced = false;
    fiber.seen.clear();
}

// Messages between the lanes of a warp. Two tables take turns: a lane may write to the next before all have read this.
alignas(16) static char messages[MAX_THREADS / WARP][2][WARP * MAX_MESSAGE];

// What all lanes of the warp brought to this instruction, for which they wait.
template <class T>
static const T* exchange(const char* instruction, const T& mine) {
    static_assert(sizeof(T) <= MAX_MESSAGE, "the table is too small");
    T* table = (T*)messages[thread / WARP][running->exchanges++ % 2];
    table[thread % WARP] = mine;
    running->instruction = instruction;
    pause(State::Exchanging);
    return table;
}

// Runs each lane that can run to its next meeting with others; whether there was one, or the lanes met.
static bool run_warp(u32 warp, bool backwards) {
    bool progress = false;
    for (u32 i = 0; i < WARP; i++) {
        thread = warp * WARP + (backwards ? WARP - 1 - i : i);
        running = &fibers[thread];
        if (running->state != State::Ready) continue;
        threadIdx = { thread % blockDim.x, thread / blockDim.x % blockDim.y, thread / blockDim.x / blockDim.y };
        switch_stacks(&scheduler, running->stack_pointer);
        progress = true;
    }
    Fiber* lanes = &fibers[warp * WARP];
    const auto meets = [](Fiber& f) { return f.state == State::Exchanging || f.state == State::Absent; };
    if (lanes[0].state != State::Exchanging || !std::all_of(lanes, lanes + WARP, meets)) return progress;
    for (u32 i = 0; i < WARP && lanes[i].state != State::Absent; i++) {
        const char* other = lanes[i].instruction;
        if (other != lanes[0].instruction) fail("lanes diverged between %s and %s", lanes[0].instruction, other);
        lanes[i].state = State::Ready;
    }
    return true;
}

static void arrive(Arrivals& place) {
    for (const Tile& tile : place.tiles) tile.copy();
    place.under_way = false;
    place.arrived++;
    for (Fiber& fiber : fibers)
        if (fiber.state == State::AtArrivals && fiber.awaited == &place) fiber.state = State::Ready;
}

// Lets tiles arrive that threads wait for; whether there were some.
static bool let_arrive() {
    for (Arrivals& place : arrivals) {
        const auto waits = [&](Fiber& f) { return f.state == State::AtArrivals && f.awaited == &place; };
        if (!place.under_way || std::none_of(fibers.begin(), fibers.end(), waits)) continue;
        if (place.started < place.expected) fail("threads wait for %u bytes of %u", place.expected, place.started);
        arrive(place);
        return true;
    }
    return false;
}

static void run_block() {
    arrivals.clear();
    barriers_passed = 0;
    std::vector<u32> warps(fibers.size() / WARP);
    std::iota(warps.begin(), warps.end(), 0);
    for (u32 i = 0; i < fibers.size(); i++) {
        if (i < blockDim.x * blockDim.y * blockDim.z) reset(fibers[i]);
        else fibers[i].state = State::Absent;
    }
    if (__start_shared_memory) memset(__start_shared_memory, 0xff, __stop_shared_memory - __start_shared_memory);
    if (launched) memset(launched, 0xff, launched_bytes);
    for (;;) {
        bool progress = false;
        std::shuffle(warps.begin(), warps.end(), order);
        const bool backwards = order() % 2;
        for (u32 warp : warps) {
            u32 meetings = 1 + order() % 40;
            for (; meetings > 0 && run_warp(warp, backwards); meetings--) progress = true;
        }
        if (progress || let_arrive()) continue;
        const auto in = [](State state) {
            return std::count_if(fibers.begin(), fibers.end(), [=](Fiber& f) { return f.state == state; });
        };
        const size_t waiting = in(State::AtBarrier), done = in(State::Done) + in(State::Absent);
        if (done == fibers.size()) break;
        if (const size_t forever = in(State::AtArrivals)) fail("%zu threads wait for a tile that does not come", forever);
        // Threads that have returned are not waited for.
        if (waiting + done < fibers.size()) fail("diverged: %zu threads at a barrier, %zu returned", waiting, done);
        barriers_passed++;
        for (Fiber& fiber : fibers)
            if (fiber.state == State::AtBarrier) fiber.state = State::Ready;
    }
    if (std::any_of(arrivals.begin(), arrivals.end(), [](Arrivals& place) { return place.under_way; }))
        fail("the block has returned before a tile that it copies has arrived");
}

// Runs a kernel over a grid, block by block.
static void launch(uint3 grid, uint3 block, std::function<void()> body) {
    signal(SIGSEGV, [](int) { fail("accessed memory outside of all buffers"); });
    signal(SIGILL, [](int) { fail("accessed a vector at an address that is not aligned"); });
    kernel = body;
    gridDim = grid;
    blockDim = block;
    fibers.resize((block.x * block.y * block.z + WARP - 1) / WARP * WARP);
    for (u32 i = 0; i < grid.x * grid.y * grid.z; i++) {
        blockIdx = { i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y };
        run_block();
    }
}

static void launch(u32 columns, u32 rows, u32 threads, std::function<void()> body) {
    launch({ columns, rows, 1 }, { threads, 1, 1 }, std::move(body));
}

}  // namespace device

// Between threads.
static inline void __syncthreads() { device::pause(device::State::AtBarrier); }

// Between the lanes of a warp.
static inline void __syncwarp() { device::exchange("syncwarp", 0); }

static inline void check_mask(u32 mask) {
    if (mask != 0xffffffff) device::fail("only whole warps are supported");
}

template <class T>
static inline T __shfl_sync(u32 mask, T value, u32 lane) {
    check_mask(mask);
    return device::exchange("shfl", value)[lane % 32];
}

template <class T>
static inline T __shfl_xor_sync(u32 mask, T value, u32 offset) {
    check_mask(mask);
    const u32 lane = device::thread % 32 ^ offset;
    return device::exchange("shfl.xor", value)[lane];
}

static inline bool __any_sync(u32 mask, bool vote) {
    check_mask(mask);
    const bool* votes = device::exchange("vote", vote);
    return std::any_of(votes, votes + 32, [](bool yes) { return yes; });
}
