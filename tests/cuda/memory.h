// Memory of the device that shows any access outside of it, and how a test fails.
#pragma once

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <string>
#include <sys/mman.h>
#include <unistd.h>
#include <vector>

namespace device {

// What is being computed, for messages.
static std::string test_case;

[[noreturn]] static void fail(const char* format, ...) {
    va_list values;
    va_start(values, format);
    printf("FAILED %s: ", test_case.c_str());
    vprintf(format, values);
    printf("\n");
    fflush(stdout);
    // Not exit: this may be the stack of a fiber, on which no destructors should run.
    _exit(1);
}

constexpr size_t PAGE = 4096;

// Memory of the device. Its end touches a page that can't be accessed, and all around it is 0xff, which is NaN.
template <class T>
class Buffer {
public:
    // The first element lies `shift` elements after an aligned address, as in a view of a larger tensor.
    Buffer(size_t length, size_t shift = 0) : length(length) {
        const size_t bytes = ((shift + length) * sizeof(T) + 15) / 16 * 16, inner = (bytes + PAGE - 1) / PAGE * PAGE;
        mapped = inner + 2 * PAGE;
        base = (char*)mmap(nullptr, mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (base == MAP_FAILED || mprotect(base + PAGE, inner, PROT_READ | PROT_WRITE)) fail("no memory");
        memset(base + PAGE, 0xff, inner);
        data = (T*)(base + PAGE + inner - bytes) + shift;
    }
    Buffer(const std::vector<T>& values, size_t shift = 0) : Buffer(values.size(), shift) {
        std::copy(values.begin(), values.end(), data);
    }
    Buffer(const Buffer&) = delete;
    ~Buffer() { munmap(base, mapped); }

    // That nothing was written beside it.
    void check_surroundings(const char* name) const {
        for (const char* at = base + PAGE; at < base + mapped - PAGE; at++) {
            const bool inside = at >= (const char*)data && at < (const char*)(data + length);
            if (!inside && *at != (char)0xff) fail("wrote outside of %s", name);
        }
    }

    T* data;
    const size_t length;

private:
    char* base;
    size_t mapped;
};

}  // namespace device
