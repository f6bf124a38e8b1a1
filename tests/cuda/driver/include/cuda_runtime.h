// What CubeCL's kernels use of CUDA beside what ../../device.h has, on the host.
#pragma once

#include <cmath>

static inline uint3 make_uint3(u32 x, u32 y, u32 z) { return { x, y, z }; }
typedef uint3 dim3;

constexpr u32 warpSize = 32;

// Those of every type: C's own would take floats for integers, or for doubles.
using std::abs, std::isnan, std::isinf, std::floor, std::ceil, std::round, std::trunc, std::rint, std::fmod, std::sqrt, std::exp, std::log;
using std::log1p, std::expm1, std::pow, std::sin, std::cos, std::tan, std::tanh, std::sinh, std::cosh, std::asin, std::acos, std::atan;
using std::atan2, std::erf, std::hypot, std::fma;

// Fast functions are wrong by more than these on a GPU.
static inline float rsqrtf(float x) { return 1 / sqrtf(x); }
static inline float rsqrt(float x) { return rsqrtf(x); }
static inline float __fdividef(float a, float b) { return a / b; }
// The host's library has other functions of these names.
#define __powf powf
#define __expf expf
#define __logf logf
#define __sinf sinf
#define __cosf cosf
#define __tanf tanf
#define __tanhf tanhf
static inline float __fsqrt_rn(float x) { return sqrtf(x); }
static inline float __frsqrt_rn(float x) { return 1 / sqrtf(x); }

static inline float max(float a, float b) { return fmaxf(a, b); }
static inline float min(float a, float b) { return fminf(a, b); }
static inline int max(int a, int b) { return a > b ? a : b; }
static inline int min(int a, int b) { return a < b ? a : b; }
static inline unsigned long long max(unsigned long long a, unsigned long long b) { return a > b ? a : b; }
static inline unsigned long long min(unsigned long long a, unsigned long long b) { return a < b ? a : b; }
static inline long long max(long long a, long long b) { return a > b ? a : b; }
static inline long long min(long long a, long long b) { return a < b ? a : b; }

static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __ffsll(long long x) { return __builtin_ffsll(x); }
static inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
static inline int __clzll(long long x) { return x ? __builtin_clzll(x) : 64; }
static inline int __popc(u32 x) { return __builtin_popcount(x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static inline u32 __umulhi(u32 a, u32 b) { return (u32)((uint64_t)a * b >> 32); }
static inline int __mulhi(int a, int b) { return (int)((int64_t)a * b >> 32); }
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) { return (unsigned __int128)a * b >> 64; }

static inline void __threadfence() {}
static inline u32 __activemask() { return 0xffffffff; }

template <class T>
static inline T __shfl_up_sync(u32 mask, T value, u32 offset) {
    check_mask(mask);
    const u32 lane = device::thread % 32;
    return device::exchange("shfl.up", value)[lane < offset ? lane : lane - offset];
}

template <class T>
static inline T __shfl_down_sync(u32 mask, T value, u32 offset) {
    check_mask(mask);
    const u32 lane = device::thread % 32;
    return device::exchange("shfl.down", value)[lane + offset < 32 ? lane + offset : lane];
}

static inline u32 __ballot_sync(u32 mask, bool vote) {
    check_mask(mask);
    const bool* votes = device::exchange("ballot", vote);
    u32 result = 0;
    for (u32 lane = 0; lane < 32; lane++) result |= (u32)votes[lane] << lane;
    return result;
}

static inline bool __all_sync(u32 mask, bool vote) { return __ballot_sync(mask, vote) == 0xffffffff; }

// One block runs after the other, its threads one at a time.
template <class T>
static inline T atomicAdd(T* to, T value) {
    const T before = *to;
    *to = (T)(before + value);
    return before;
}
