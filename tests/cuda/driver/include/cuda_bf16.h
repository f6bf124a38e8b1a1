// bf16 on the host, as far as CubeCL's kernels use it.
#pragma once

#include "sixteen_bits.h"

struct Bfloat16Format {
    static unsigned short bits(float value) { return device::to_bf16(value); }
    static float value(unsigned short bits) { return device::from_bf16(bits); }
};
typedef Sixteen<Bfloat16Format> __nv_bfloat16;
typedef Pair<__nv_bfloat16> __nv_bfloat162;

static inline __nv_bfloat16 __float2bfloat16(float value) { return __nv_bfloat16(value); }
static inline float __bfloat162float(__nv_bfloat16 value) { return value; }
static inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 low, __nv_bfloat16 high) { return { low, high }; }
