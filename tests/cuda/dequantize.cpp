// Compares the dequantizing kernel bit for bit to what each element was made of.
//
// Compile with -DKERNEL="\"file\"", the kernel's text, and -DF32, -DF16 or -DBF16, what it decodes into.
#include "device.h"

#include "ptx.h"
#include KERNEL
#include "weight.h"

#if defined(F32)
typedef float Element;
static u32 bits(float value) { return __float_as_uint(value); }
static u32 rounded(float value) { return __float_as_uint(value); }
#elif defined(F16)
typedef unsigned short Element;
static u32 bits(Element value) { return value; }
static u32 rounded(float value) { return device::f16_bits(value); }
#elif defined(BF16)
typedef unsigned short Element;
static u32 bits(Element value) { return value; }
static u32 rounded(float value) { return device::to_bf16(value); }
#endif
static_assert(sizeof(Element) == WIDTH, "the kernel decodes into something else");

// Of shaders/src/nf4_dequantize/mod.rs.
constexpr u32 THREADS = 256;

// `count` elements from `first` on of a weight of `all`. Launched as shaders/src/nf4_dequantize/mod.rs does it, but for a grid
// of as many rows as the case has.
static void compare(size_t all, size_t first, size_t count, u32 log2_block, bool nested, u32 rows) {
    char name[160];
    snprintf(name, sizeof name, "%zu elements from %zu of %zu, block %u, %s scales, a grid of %u rows", count, first, all,
             1u << log2_block, nested ? "double" : "plain", rows);
    device::test_case = name;
    const Quantized w = make_weight(all, log2_block, nested);
    const size_t begin = first / 8 / 64 * 64, end = ceil_divide(first + count, 8), words = end - first / 8;
    const device::Buffer<u32> codes(std::vector<u32>(w.codes.begin() + begin, w.codes.begin() + end));
    const device::Buffer<u32> absmax(w.absmax), header(w.header);
    device::Buffer<Element> dense(count);
    const Range range = { (u32)first, (u32)count, (u32)begin, 0 };
    device::launch((u32)ceil_divide(ceil_divide(words, THREADS), rows), rows, THREADS, [&] {
        nf4_dequantize(codes.data, absmax.data, header.data, dense.data, range);
    });
    dense.check_surroundings("dense");
    for (size_t i = 0; i < count; i++)
        if (bits(dense.data[i]) != rounded(w.dense[first + i]))
            device::fail("element %zu is %#x, not %#x", i, bits(dense.data[i]), rounded(w.dense[first + i]));
}

// Past the end of the largest weight, where the number of an element needs more than 32 bits, a block does nothing.
static void check_surplus_of_the_largest() {
    device::test_case = "the last block for 2^32 - 1 elements";
    const device::Buffer<u32> header(std::vector<u32> { 0xffffffff, 6, 0, 0 }), nothing(0);
    device::Buffer<Element> dense(0);
    device::launch(1, 1, THREADS, [&] {
        // 2^21 blocks have work; a grid of 33 rows, as grid() of shaders/src/source.rs makes it, has 31 more.
        gridDim = { 63551, 33, 1 };
        blockIdx = { 63550, 32, 0 };
        nf4_dequantize(nothing.data, nothing.data, header.data, dense.data, { 0, 0xffffffff, 0, 0 });
    });
}

int main() {
    std::vector<size_t> counts(70);
    std::iota(counts.begin(), counts.end(), 1);
    // Around whole blocks of threads, which take 2048 elements each, and to more than 256 scales.
    counts.insert(counts.end(), { 2047, 2048, 2049, 4095, 4097, 8191, 8193, 12289, 20001, 36865, 70003 });
    size_t cases = 0;
    for (u32 log2_block = 5; log2_block <= 12; log2_block++)
        for (size_t count : counts)
            for (bool nested : { false, true })
                // In three rows there are blocks without work, unless their number is a multiple of 3.
                for (u32 rows : { 1, 3 }) {
                    compare(count, 0, count, log2_block, nested, rows);
                    cases++;
                    if (count < 1000) continue;
                    for (size_t first : { 1, 8, 509, 520 })
                        for (size_t last : { first + 1, first + 17, count }) {
                            compare(count, first, last - first, log2_block, nested, rows);
                            cases++;
                        }
                }
    check_surplus_of_the_largest();
    printf("%zu decodes, the same bits\n", cases);
}
