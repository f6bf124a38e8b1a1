// As much of the CUDA driver as Halfbyte and CubeCL call, for a GPU that is the host: memory is the host's, a stream does at once what it is
// given, and a module is a library of a kernel that ran through libnvrtc.cpp.
//
// What a real driver would refuse is refused here: sizes, alignments and launches beyond what the device's attributes say.
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <dlfcn.h>
#include <map>
#include <mutex>

#include "../tile_copies.h"

#define EXPORT extern "C" __attribute__((visibility("default"))) int

namespace {

enum Result { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_IMAGE = 200, NOT_FOUND = 500 };

// The limits of the architectures differ in nothing else that Halfbyte asks for.
int architecture() {
    const char* asked = getenv("HALFBYTE_EMULATED_ARCHITECTURE");
    return asked ? atoi(asked) : 90;
}

// As much as an H200 has, by which CubeCL sizes its pages; the host has less, and gives it as it is written.
constexpr size_t MEMORY = size_t(143771) << 20, ALIGNMENT = 512;
constexpr u32 LARGEST_BLOCK[] = { 1024, 1024, 64 }, LARGEST_GRID[] = { 0x7fffffff, 65535, 65535 };

u32 largest_shared() { return architecture() >= 90 ? 232448 : architecture() == 80 ? 166912 : 101376; }

// Allocations, each of which ends where a page begins that can't be accessed.
struct Allocation { char* base; size_t mapped, bytes; };
std::map<char*, Allocation> allocations;
size_t allocated;
std::mutex memory, launches;

// Says what a real driver does not.
int refuse(const char* format, ...) {
    va_list values;
    va_start(values, format);
    fprintf(stderr, "emulated driver: ");
    vfprintf(stderr, format, values);
    fprintf(stderr, "\n");
    va_end(values);
    return INVALID_VALUE;
}

int allocate(void** pointer, size_t asked) {
    const std::lock_guard lock(memory);
    const size_t bytes = (asked + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    if (bytes > MEMORY - allocated) return OUT_OF_MEMORY;
    const size_t inner = (bytes + device::PAGE - 1) / device::PAGE * device::PAGE, mapped = inner + 2 * device::PAGE;
    char* const base = (char*)mmap(nullptr, mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED || mprotect(base + device::PAGE, inner, PROT_READ | PROT_WRITE)) return OUT_OF_MEMORY;
    char* const data = base + device::PAGE + inner - bytes;
    // What nobody has written is no number, as far as the host can afford: pages for large tensors are larger than its memory.
    memset(data, 0xff, std::min(bytes, size_t(64) << 20));
    allocations[data] = { base, mapped, bytes };
    allocated += bytes;
    *pointer = data;
    return SUCCESS;
}

int release(void* pointer) {
    const std::lock_guard lock(memory);
    const auto found = allocations.find((char*)pointer);
    if (found == allocations.end()) return refuse("memory is freed that is not there");
    allocated -= found->second.bytes;
    munmap(found->second.base, found->second.mapped);
    allocations.erase(found);
    return SUCCESS;
}

// Whether so many bytes there belong to one allocation.
bool holds(const void* address, size_t bytes) {
    const std::lock_guard lock(memory);
    auto found = allocations.upper_bound((char*)address);
    if (found == allocations.begin()) return false;
    --found;
    return (char*)address + bytes <= found->first + found->second.bytes;
}

struct Kernel {
    std::string name;
    void (*run)(void**, const u32*, const u32*, u32);
    u32 largest, shared = 48 * 1024;
};

// cuMemcpy2D's description.
struct Copy2D {
    size_t from_x, from_y; u32 from_kind; const void* from_host; void* from_device; void* from_array; size_t from_pitch;
    size_t to_x, to_y; u32 to_kind; void* to_host; void* to_device; void* to_array; size_t to_pitch;
    size_t width, height;
};
enum Kind { HOST = 1, DEVICE = 2 };

}  // namespace

EXPORT cuInit(u32) { return SUCCESS; }
EXPORT cuDriverGetVersion(int* version) { return *version = 12090, SUCCESS; }
EXPORT cuDeviceGetCount(int* count) { return *count = 1, SUCCESS; }
EXPORT cuDeviceGet(int* device, int index) { return index ? 101 : (*device = 0, SUCCESS); }
EXPORT cuDeviceGetName(char* name, int length, int) { return snprintf(name, length, "emulated sm_%d", architecture()), SUCCESS; }
EXPORT cuDeviceTotalMem_v2(size_t* bytes, int) { return *bytes = MEMORY, SUCCESS; }
EXPORT cuDevicePrimaryCtxRetain(void** context, int) { return *context = (void*)1, SUCCESS; }
EXPORT cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
EXPORT cuDeviceGetDefaultMemPool(void** pool, int) { return *pool = (void*)1, SUCCESS; }
EXPORT cuMemPoolSetAttribute(void*, int, void*) { return SUCCESS; }
EXPORT cuCtxSetCurrent(void*) { return SUCCESS; }
EXPORT cuCtxGetCurrent(void** context) { return *context = (void*)1, SUCCESS; }
EXPORT cuCtxSynchronize() { return SUCCESS; }
EXPORT cuGetErrorName(int code, const char** name) { return *name = code == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : "an error", SUCCESS; }
EXPORT cuGetErrorString(int code, const char** text) { return cuGetErrorName(code, text); }

EXPORT cuDeviceGetAttribute(int* value, int attribute, int) {
    switch (attribute) {
        case 1: *value = 1024; break;  // threads of a block
        case 2: case 3: case 4: *value = LARGEST_BLOCK[attribute - 2]; break;
        case 5: case 6: case 7: *value = LARGEST_GRID[attribute - 5]; break;
        case 10: *value = 32; break;  // threads of a warp
        case 16: *value = 8; break;  // multiprocessors: as many as make small shapes take every way
        case 75: *value = architecture() / 10; break;
        case 76: *value = architecture() % 10; break;
        case 97: *value = largest_shared(); break;
        default: *value = 0;
    }
    return SUCCESS;
}

// A pool gives memory of no bytes, and only what asks for memory outside of one is refused it.
EXPORT cuMemAlloc_v2(void** pointer, size_t bytes) { return bytes ? allocate(pointer, bytes) : refuse("an allocation of nothing"); }
EXPORT cuMemAllocAsync(void** pointer, size_t bytes, void*) { return allocate(pointer, bytes); }
EXPORT cuMemFree_v2(void* pointer) { return release(pointer); }
EXPORT cuMemFreeAsync(void* pointer, void*) { return release(pointer); }
EXPORT cuMemAllocHost_v2(void** pointer, size_t bytes) { return *pointer = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096), SUCCESS; }
EXPORT cuMemHostAlloc(void** pointer, size_t bytes, u32) { return cuMemAllocHost_v2(pointer, bytes); }
EXPORT cuMemFreeHost(void* pointer) { return free(pointer), SUCCESS; }

EXPORT cuMemcpyHtoDAsync_v2(void* to, const void* from, size_t bytes, void*) {
    if (!holds(to, bytes)) return refuse("a copy of %zu bytes beyond memory", bytes);
    return memcpy(to, from, bytes), SUCCESS;
}

EXPORT cuMemcpyDtoHAsync_v2(void* to, const void* from, size_t bytes, void*) {
    if (!holds(from, bytes)) return refuse("a copy of %zu bytes from beyond memory", bytes);
    return memcpy(to, from, bytes), SUCCESS;
}

EXPORT cuMemcpyDtoDAsync_v2(void* to, const void* from, size_t bytes, void*) {
    if (!holds(from, bytes) || !holds(to, bytes)) return refuse("a copy of %zu bytes beyond memory", bytes);
    return memmove(to, from, bytes), SUCCESS;
}

EXPORT cuMemcpy2DAsync_v2(const Copy2D* copy, void*) {
    const char* from = copy->from_kind == HOST ? (const char*)copy->from_host : (const char*)copy->from_device;
    char* to = copy->to_kind == HOST ? (char*)copy->to_host : (char*)copy->to_device;
    for (size_t row = 0; row < copy->height; row++) {
        const char* const source = from + (copy->from_y + row) * copy->from_pitch + copy->from_x;
        char* const target = to + (copy->to_y + row) * copy->to_pitch + copy->to_x;
        if (copy->from_kind == DEVICE && !holds(source, copy->width)) return refuse("a copy of rows from beyond memory");
        if (copy->to_kind == DEVICE && !holds(target, copy->width)) return refuse("a copy of rows beyond memory");
        memcpy(target, source, copy->width);
    }
    return SUCCESS;
}

EXPORT cuStreamCreate(void** stream, u32) { return *stream = (void*)1, SUCCESS; }
EXPORT cuStreamCreateWithPriority(void** stream, u32, int) { return *stream = (void*)1, SUCCESS; }
EXPORT cuStreamDestroy_v2(void*) { return SUCCESS; }
EXPORT cuStreamSynchronize(void*) { return SUCCESS; }
EXPORT cuStreamWaitEvent(void*, void*, u32) { return SUCCESS; }
EXPORT cuEventCreate(void** event, u32) { return *event = (void*)1, SUCCESS; }
EXPORT cuEventDestroy_v2(void*) { return SUCCESS; }
EXPORT cuEventRecord(void*, void*) { return SUCCESS; }
EXPORT cuEventSynchronize(void*) { return SUCCESS; }
EXPORT cuEventQuery(void*) { return SUCCESS; }

// An image is what libnvrtc.cpp gives out: the name of a library.
EXPORT cuModuleLoadData(void** module, const void* image) {
    *module = dlopen((const char*)image, RTLD_NOW | RTLD_LOCAL);
    if (!*module) fprintf(stderr, "%s\n", dlerror());
    return *module ? SUCCESS : INVALID_IMAGE;
}

EXPORT cuModuleGetFunction(void** function, void* module, const char* name) {
    const auto names = (bool (*)(const char*))dlsym(module, "halfbyte_is_called");
    const auto run = dlsym(module, "halfbyte_run");
    const auto largest = (const u32*)dlsym(module, "halfbyte_largest_block");
    if (!names || !run || !largest || !names(name)) return NOT_FOUND;
    *function = new Kernel { name, (void (*)(void**, const u32*, const u32*, u32))run, *largest };
    return SUCCESS;
}

EXPORT cuModuleUnload(void*) { return SUCCESS; }

EXPORT cuFuncSetAttribute(Kernel* kernel, int attribute, int value) {
    constexpr int MAX_DYNAMIC_SHARED = 8;
    if (attribute != MAX_DYNAMIC_SHARED || value < 0 || (u32)value > largest_shared())
        return refuse("attribute %d of a kernel is %d", attribute, value);
    kernel->shared = value;
    return SUCCESS;
}

EXPORT cuLaunchKernel(Kernel* kernel, u32 x, u32 y, u32 z, u32 threads_x, u32 threads_y, u32 threads_z, u32 shared, void*, void** arguments, void**) {
    const u32 grid[] = { x, y, z }, block[] = { threads_x, threads_y, threads_z };
    for (int i = 0; i < 3; i++)
        if (!grid[i] || grid[i] > LARGEST_GRID[i] || !block[i] || block[i] > LARGEST_BLOCK[i])
            return refuse("%s on a grid of %u x %u x %u blocks of %u x %u x %u threads", kernel->name.c_str(), x, y, z, threads_x, threads_y, threads_z);
    if ((uint64_t)threads_x * threads_y * threads_z > kernel->largest) return refuse("more threads than the kernel's %u", kernel->largest);
    if (shared > kernel->shared) return refuse("%u bytes of shared memory, where %u were asked for", shared, kernel->shared);
    const std::lock_guard lock(launches);
    kernel->run(arguments, grid, block, shared);
    return SUCCESS;
}

EXPORT cuTensorMapEncodeTiled(void* map, int type, u32 rank, void* base, const uint64_t* shape, const uint64_t* strides,
                              const u32* box, const u32* steps, int interleave, int swizzle, int, int fill) {
    constexpr int BF16 = 9, BYTES_128 = 3;
    if (type != BF16 || rank != 2 || steps[0] != 1 || steps[1] != 1 || interleave || swizzle != BYTES_128 || fill)
        return refuse("a map of another kind of matrix");
    struct alignas(64) Map { u64 words[16]; };
    if (!holds(base, shape[1] ? (shape[1] - 1) * strides[0] + shape[0] * 2 : 0)) return refuse("a map of a matrix beyond memory");
    const Map made = device::tile_map<Map>({ (const bf16*)base, (u32)shape[1], (u32)shape[0], strides[0] / 2, box[1], box[0] });
    return memcpy(map, &made, sizeof made), SUCCESS;
}
