// Random NF4 weights, for the tests of the kernels that read them. Include it after the kernel, whose levels it takes.
#pragma once

#include <cmath>

#include "device.h"
#include "random.h"

static size_t ceil_divide(size_t a, size_t b) { return (a + b - 1) / b; }

// Where an element's code lies in its word: the first element of a byte is the high nibble.
static u32 shift_of(size_t i) { return 8 * (i % 8 / 2) + 4 * (1 - i % 2); }

// A weight as engine/nf4 stores it, the scales of its blocks, and what it decodes to.
struct Quantized {
    std::vector<u32> codes, absmax, header;
    std::vector<float> scales, dense;

    u32 code(size_t i) const { return codes[i / 8] >> shift_of(i) & 15; }
};

// Scales, as they are stored and as they decode. Of double-quantized ones the header holds map and outer scales.
static std::vector<float> make_scales(Quantized& w, size_t blocks, bool nested) {
    std::vector<float> scales(blocks);
    if (!nested) {
        for (float& scale : scales) {
            scale = std::fabs(uniform()) * 0.1f + 0.01f;
            w.absmax.push_back(__float_as_uint(scale));
        }
        return scales;
    }
    const float offset = 0.05f;
    w.header[3] = __float_as_uint(offset);
    std::vector<float> map(256), outer(ceil_divide(blocks, 256));
    for (float& value : map) w.header.push_back(__float_as_uint(value = uniform()));
    for (float& value : outer) w.header.push_back(__float_as_uint(value = std::fabs(uniform()) * 0.04f));
    w.absmax.resize(ceil_divide(blocks, 4));
    for (size_t block = 0; block < blocks; block++) {
        const u32 code = noise() % 256;
        w.absmax[block / 4] |= code << 8 * (block % 4);
        scales[block] = map[code] * outer[block / 256] + offset;
    }
    return scales;
}

// `count` elements in blocks of 1 << log2_block.
static Quantized make_weight(size_t count, u32 log2_block, bool nested) {
    Quantized w;
    w.header = { (u32)count, log2_block, nested, 0 };
    w.scales = make_scales(w, ceil_divide(count, 1u << log2_block), nested);
    w.codes.resize(ceil_divide(count, 8));
    for (size_t i = 0; i < count; i++) {
        const u32 code = noise() % 16;
        w.codes[i / 8] |= code << shift_of(i);
        w.dense.push_back(NF4[code] * w.scales[i >> log2_block]);
    }
    return w;
}
