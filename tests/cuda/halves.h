// Elements of matrices in 16 bits, for -DBF16 or -DF16.
#pragma once

#include "ptx.h"
#include "random.h"

// The bits of an element: usual ones, zeros, and some below the smallest normal f16.
static u32 element_bits() {
    const float sizes[] = { 1, 1, 1, 0, 1e-6f }, value = uniform() * sizes[noise() % 5];
#ifdef BF16
    return device::to_bf16(value);
#else
    return device::f16_bits(value);
#endif
}

// What they say.
static double widened(u32 bits) {
#ifdef BF16
    return device::from_bf16((bf16)bits);
#else
    return device::from_f16(bits);
#endif
}
