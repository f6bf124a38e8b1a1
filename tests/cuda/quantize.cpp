// Compares the quantizing kernel bit for bit to a transcription of engine/nf4/src/quantize.rs.
//
// Compile with -DKERNEL="\"file\"", the kernel's text, and -DF32, -DBF16 or -DF16, what it takes weights in.
#include <cmath>

#include "device.h"

#include "ptx.h"
#include KERNEL
#include "random.h"

// What the bits of a weight say, and those of a weight next to a number.
#if defined(F32)
static float widened(Bits bits) { return __uint_as_float(bits); }
static Bits narrowed(float value) { return __float_as_uint(value); }
#elif defined(BF16)
static float widened(Bits bits) { return device::from_bf16(bits); }
static Bits narrowed(float value) { return device::to_bf16(value); }
#else
static float widened(Bits bits) { return device::from_f16(bits); }
static Bits narrowed(float value) {
    const float most = 65504;
    return device::f16_bits(std::isfinite(value) ? std::fmin(std::fmax(value, -most), most) : value);
}
#endif

struct Quantized {
    // Padded to whole words.
    std::vector<unsigned char> packed;
    std::vector<float> absmax;
};

// `quantize` of engine/nf4/src/quantize.rs.
static Quantized quantize(const std::vector<float>& weights, size_t block_size) {
    const float tiny = 1e-38f;
    const unsigned char zero_code = 7;
    const size_t count = weights.size();
    Quantized result { std::vector<unsigned char>((count + 7) / 8 * 4), {} };
    for (size_t start = 0; start < count; start += block_size) {
        const size_t end = std::min(count, start + block_size);
        float max = 0;
        for (size_t i = start; i < end; i++) max = std::fmax(max, std::fabs(weights[i]));
        const bool whole = end - start == block_size;
        result.absmax.push_back(whole ? max : std::fmax(max, tiny));
        const auto code = [&](float weight) {
            float scaled = whole ? weight * (1.0f / std::fmax(max, tiny)) : weight / std::fmax(max, tiny);
            scaled = std::fmin(std::fmax(scaled, -1.0f), 1.0f);
            unsigned char code = 0;
            for (u32 i = 0; i < 15; i++) code += (NF4[i] + NF4[i + 1]) / 2.0f < scaled;
            return code;
        };
        for (size_t i = start; i < end; i += 2)
            result.packed[i / 2] = code(weights[i]) << 4 | (i + 1 < end ? code(weights[i + 1]) : zero_code);
    }
    return result;
}

struct Outputs {
    device::Buffer<u32> codes;
    device::Buffer<float> absmax;
};

// Launched as shaders/src/nf4_quantize/mod.rs does it, but that the grid has two dimensions sooner.
static void launch(const std::vector<Bits>& weights, size_t shift, size_t block_size, Outputs& to) {
    const device::Buffer<Bits> input(weights, shift);
    const Info info = { (u32)weights.size(), (u32)block_size, { 0, 0 } };
    const size_t at_once = THREADS / std::min<size_t>(32, block_size / 8);
    const u32 groups = u32((to.absmax.length + at_once - 1) / at_once), rows = groups > 5 ? 4 : 1;
    device::launch((groups + rows - 1) / rows, rows, THREADS, [&] {
        nf4_quantize(input.data, to.codes.data, to.absmax.data, info);
    });
    to.codes.check_surroundings("codes");
    to.absmax.check_surroundings("absmax");
}

// In a block whose scale is 0.37: the scale itself, or a weight that lies on a bound between two codes or next to it.
static float on_a_bound() {
    const float scale = 0.37f;
    if (noise() % 17 == 0) return scale;
    const u32 level = noise() % 15;
    const float bound = (NF4[level] + NF4[level + 1]) / 2.0f * scale;
    return __uint_as_float(__float_as_uint(bound) + noise() % 5 - 2);
}

static float any_bits() {
    const float value = widened((Bits)noise());
    return std::isfinite(value) ? value : -0.0f;
}

struct Kind { const char* name; float (*make)(); };

static const Kind KINDS[] = {
    { "common", uniform },
    { "zero", [] { return 0.0f; } },
    { "tiny", [] { return uniform() * 1e-38f; } },
    { "huge", [] { return uniform() * 1e38f; } },
    { "bounds", on_a_bound },
    { "bits", any_bits },
};

static const size_t COUNTS[] = { 1,   2,   3,   7,   8,    9,    15,   31,   32,   33,   63,   64,    65,   127,  128,
                                 129, 255, 257, 511, 1000, 1024, 1025, 4095, 4096, 4097, 5001, 12289, 20000 };

static void compare(size_t count, size_t block_size, const Kind& kind, size_t shift) {
    char name[120];
    snprintf(name, sizeof name, "%zu %s weights + %zu, block %zu", count, kind.name, shift, block_size);
    device::test_case = name;
    std::vector<Bits> bits(count);
    std::vector<float> weights(count);
    for (size_t i = 0; i < count; i++) {
        bits[i] = narrowed(kind.make());
        weights[i] = widened(bits[i]);
    }
    const Quantized want = quantize(weights, block_size);
    Outputs got = { want.packed.size() / 4, want.absmax.size() };
    launch(bits, shift, block_size, got);
    const auto* packed = (const unsigned char*)got.codes.data;
    for (size_t i = 0; i < want.packed.size(); i++)
        if (packed[i] != want.packed[i]) device::fail("byte %zu is %02x, not %02x", i, packed[i], want.packed[i]);
    for (size_t i = 0; i < want.absmax.size(); i++)
        if (__float_as_uint(got.absmax.data[i]) != __float_as_uint(want.absmax[i]))
            device::fail("scale %zu is %g, not %g", i, got.absmax.data[i], want.absmax[i]);
}

// A weight that is not finite shows in the scale of its block, and in no other.
static void check_not_finite(float bad, size_t at, size_t block_size) {
    char name[120];
    snprintf(name, sizeof name, "%g at %zu, block %zu", bad, at, block_size);
    device::test_case = name;
    std::vector<Bits> weights(9001, narrowed(0.5f));
    weights[at] = narrowed(bad);
    Outputs got = { (weights.size() + 7) / 8, (weights.size() + block_size - 1) / block_size };
    launch(weights, 0, block_size, got);
    for (size_t block = 0; block < got.absmax.length; block++)
        if (std::isfinite(got.absmax.data[block]) == (block == at / block_size))
            device::fail("scale %zu is %g", block, got.absmax.data[block]);
}

int main() {
    size_t cases = 0;
    for (size_t block_size = 32; block_size <= 4096; block_size *= 2) {
        for (size_t count : COUNTS)
            for (const Kind& kind : KINDS)
                for (size_t shift = 0; shift < 2; shift++, cases++) compare(count, block_size, kind, shift);
        for (float bad : { NAN, -NAN, INFINITY, -INFINITY })
            for (size_t at : { 70, 9000 }) check_not_finite(bad, at, block_size);
    }
    printf("%zu tensors, the same bits\n", cases);
}
