// Compares the kernel for a few rows on tensor cores to the product in f64 of what it rounds, with a branch beside the weight or without.
//
// Compile with -DKERNEL="\"file\"", the kernel's text without shaders/src/ptx.cu.
#include "ptx.h"

#include KERNEL
#include "branch.h"
#include "compare.h"
#include "weight.h"

struct Case {
    size_t rows, out, in;
    u32 log2_block;
    bool nested;
    // How many elements the buffers begin after an aligned address, x and codes at a multiple of 16 bytes.
    size_t x_shift = 0, y_shift = 0, codes_shift = 0;
};

// Runs a case; its largest error.
static double run(const Case& c) {
    char name[160];
    snprintf(name, sizeof name, "rows %zu, out %zu, in %zu, block %u, %s scales, x + %zu, y + %zu, codes + %zu", c.rows,
             c.out, c.in, 1u << c.log2_block, c.nested ? "double" : "plain", c.x_shift, c.y_shift, c.codes_shift);
    device::test_case = name;
    const Quantized w = make_weight(c.out * c.in, c.log2_block, c.nested);
    std::vector<bf16> x(c.rows * c.in);
    for (bf16& value : x) value = device::to_bf16(uniform());
    const size_t rank = BRANCH ? 1 + noise() % 140 : 0;
    const float scaling = uniform();
    std::vector<float> low(c.rows * rank), b(c.out * rank);
    for (float& value : low) value = uniform();
    for (float& value : b) value = uniform();
    const device::Buffer<u32> codes(w.codes, c.codes_shift), absmax(w.absmax), header(w.header);
    const device::Buffer<bf16> input(x, c.x_shift);
    const device::Buffer<float> low_rank(low), second(b);
    device::Buffer<float> y(c.rows * c.out, c.y_shift);
    const BranchInfo info = { { (u32)c.rows, (u32)c.out, (u32)c.in, 0 }, (u32)rank, scaling };
    // As many blocks as there is work for, and fewer.
    const u32 blocks = 1 + noise() % ceil_divide(c.out, FEATURES);
    device::launch(blocks, 1, THREADS, [&] {
#if BRANCH
        nf4_skinny_mma(codes.data, absmax.data, header.data, input.data, y.data, low_rank.data, second.data, info);
#else
        nf4_skinny_mma(codes.data, absmax.data, header.data, input.data, y.data, info);
#endif
    });
    y.check_surroundings("y");
    return compare(
        "y", c.rows, c.out,
        [&](size_t row, size_t column, auto add) {
            for (size_t k = 0; k < c.in; k++) {
                const size_t i = column * c.in + k;
                const float level = (float)rounded(NF4[w.code(i)]), scale = w.scales[i >> c.log2_block];
                // A block that is shorter than what one product sums over is scaled before it, and rounded again.
                add(device::from_bf16(x[row * c.in + k]) * (c.log2_block < 6 ? rounded(level * scale) : (double)level * scale));
            }
            for (size_t k = 0; k < rank; k++) add((double)scaling * low[row * rank + k] * b[column * rank + k]);
        },
        [&](size_t row, size_t column) { return y.data[row * c.out + column]; });
}

int main() {
    std::vector<Case> cases;
    // Spans that the warps share fewer and more of than there are warps, blocks of features that end anywhere, all kinds of scales.
    for (u32 log2_block = 5; log2_block <= 12; log2_block++)
        for (const bool nested : { false, true })
            for (const size_t in : { 256, 768, 2304, 4352 }) {
                const size_t out = 1 + noise() % 70, rows = 1 + noise() % ROWS;
                cases.push_back({ rows, out, in, log2_block, nested });
            }
    for (size_t rows = ROWS - 7; rows <= ROWS; rows++) cases.push_back({ rows, 16, 512, 6, true });
    for (const size_t out : { 1, 7, 8, 9, 15, 16, 17, 64 }) cases.push_back({ ROWS, out, 256, 6, true });
    for (size_t shift = 1; shift < 4; shift++) {
        cases.push_back({ 3, 40, 512, 5, true, 8 * shift, 0, 4 * shift });
        cases.push_back({ 3, 40, 512, 6, true, 0, shift, 0 });
    }
    double worst = 0;
    for (const Case& c : cases) worst = std::max(worst, run(c));
    printf("%zu products, the largest error %.1e of the sum of absolute values\n", cases.size(), worst);
}
