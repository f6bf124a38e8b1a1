// Compares the dequantizing kernel bit for bit to what each element was made of.
//
// Compile with -DKERNEL="\"file\"", the kernel's text.
#include "device.h"

#include KERNEL
#include "weight.h"

// Of shaders/src/nf4_dequantize/mod.rs.
constexpr u32 THREADS = 256;

// Launched as shaders/src/nf4_dequantize/mod.rs does it, but for a grid of as many rows as the case has.
static void compare(size_t count, u32 log2_block, bool nested, u32 rows) {
    char name[120];
    snprintf(name, sizeof name, "%zu elements, block %u, %s scales, a grid of %u rows", count, 1u << log2_block,
             nested ? "double" : "plain", rows);
    device::test_case = name;
    const Quantized w = make_weight(count, log2_block, nested);
    const device::Buffer<u32> codes(w.codes), absmax(w.absmax), header(w.header);
    device::Buffer<float> dense(count);
    device::launch((u32)ceil_divide(ceil_divide(w.codes.size(), THREADS), rows), rows, THREADS, [&] {
        nf4_dequantize(codes.data, absmax.data, header.data, dense.data);
    });
    dense.check_surroundings("dense");
    for (size_t i = 0; i < count; i++)
        if (__float_as_uint(dense.data[i]) != __float_as_uint(w.dense[i]))
            device::fail("element %zu is %.9g, not %.9g", i, dense.data[i], w.dense[i]);
}

// Past the end of the largest weight, where the number of an element needs more than 32 bits, a block does nothing.
static void check_surplus_of_the_largest() {
    device::test_case = "the last block for 2^32 - 1 elements";
    const device::Buffer<u32> header(std::vector<u32> { 0xffffffff, 6, 0, 0 }), nothing(0);
    device::Buffer<float> dense(0);
    device::launch(1, 1, THREADS, [&] {
        // 2^21 blocks have work; a grid of 33 rows, as grid() of shaders/src/source.rs makes it, has 31 more.
        gridDim = { 63551, 33, 1 };
        blockIdx = { 63550, 32, 0 };
        nf4_dequantize(nothing.data, nothing.data, header.data, dense.data);
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
                    compare(count, log2_block, nested, rows);
                    cases++;
                }
    check_surplus_of_the_largest();
    printf("%zu weights, the same bits\n", cases);
}
