// What comes before a kernel's text, and how the driver of libcuda.cpp gets at it.
#pragma once

#include <cmath>
#include <tuple>

#include "../warpgroup.h"

namespace device {

// Of a block, on Hopper.
constexpr size_t LARGEST_SHARED = 232448;

// Shared memory of the size that the launch says: its end touches a page that can't be accessed.
static char* launched_shared() {
    static Buffer<char> memory(LARGEST_SHARED);
    return launched = memory.data + LARGEST_SHARED - (launched_bytes + 15) / 16 * 16;
}

// Calls a kernel with arguments that a launch gives the addresses of.
template <class... A, size_t... I>
static void call(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
    kernel(*(std::remove_cv_t<std::remove_reference_t<A>>*)arguments[I]...);
}

template <class... A>
static void call(void (*kernel)(A...), void** arguments) {
    call(kernel, arguments, std::index_sequence_for<A...>());
}

}  // namespace device

#define ENTRY(kernel, threads, ...)                                                                                 \
    extern "C" {                                                                                                   \
    __attribute__((visibility("default"))) extern const u32 halfbyte_largest_block;                                 \
    const u32 halfbyte_largest_block = threads;                                                                     \
    __attribute__((visibility("default"))) bool halfbyte_is_called(const char* name) { return !strcmp(name, #kernel); } \
    __attribute__((visibility("default"))) void halfbyte_run(void** arguments, const u32* grid, const u32* block, u32 shared) { \
        device::test_case = #kernel;                                                                                \
        device::launched_bytes = shared;                                                                            \
        if (device::launched) device::launched_shared();                                                            \
        device::launch({ grid[0], grid[1], grid[2] }, { block[0], block[1], block[2] },                            \
                       [=] { device::call(kernel, arguments); });                                                  \
    }                                                                                                               \
    }
