// f16 on the host, as far as CubeCL's kernels use it.
#pragma once

#include "sixteen_bits.h"

struct HalfFormat {
    static unsigned short bits(float value) { return (unsigned short)device::f16_bits(value); }
    static float value(unsigned short bits) { return device::from_f16(bits); }
};
typedef Sixteen<HalfFormat> __half;
typedef Pair<__half> __half2;
typedef __half half;

static inline __half __float2half_rn(float value) { return __half(value); }
static inline float __half2float(__half value) { return value; }
static inline __half2 __halves2half2(__half low, __half high) { return { low, high }; }
