// Compares a kernel for products with an NF4 weight to the product in f64, on shapes that fit its tiles badly.
//
// Compile with -DKERNEL="\"file\"", the kernel's text without shaders/src/ptx.cu, and the macro of its entry point:
// NF4_SKINNY or NF4_MATMUL.
#include "ptx.h"

#include KERNEL
#include "compare.h"
#include "weight.h"

// Launched as shaders/src/nf4_skinny/mod.rs and shaders/src/nf4_matmul/tiled.rs do it.
#if defined NF4_SKINNY
constexpr auto ENTRY = nf4_skinny;
constexpr bool GRADIENT = false;
constexpr size_t MAX_ROWS = ROWS, COLUMNS_AT_ONCE = ROWS <= 2 ? 8 : ROWS == 4 ? 16 : 32, ROWS_AT_ONCE = ROWS;
#elif defined NF4_MATMUL
constexpr auto ENTRY = nf4_matmul;
constexpr bool GRADIENT = TRANSPOSED;
constexpr size_t MAX_ROWS = 130, COLUMNS_AT_ONCE = 64, ROWS_AT_ONCE = 128;
#endif

#ifndef BRANCH
#define BRANCH 0
#endif

struct Case {
    size_t rows, out, in;
    u32 log2_block;
    bool nested;
    // How many elements the buffers begin after an aligned address.
    size_t x_shift = 0, y_shift = 0, codes_shift = 0;
};

// A branch beside the weight: y is scaling * low[rows, rank] * b[out, rank] transposed more.
struct Branch {
    size_t rank;
    float scaling;
    std::vector<float> low, b;
};

static Branch make_branch(const Case& c) {
    Branch branch = { BRANCH ? 1 + noise() % 140 : 0, uniform() };
    for (size_t i = 0; i < c.rows * branch.rank; i++) branch.low.push_back(uniform());
    for (size_t i = 0; i < c.out * branch.rank; i++) branch.b.push_back(uniform());
    return branch;
}

static void launch(const Case& c, const Quantized& w, const Branch& branch, const std::vector<float>& x,
                   device::Buffer<float>& y) {
    const device::Buffer<u32> codes(w.codes, c.codes_shift), absmax(w.absmax), header(w.header);
    const device::Buffer<float> input(x, c.x_shift);
    const Info shape = { (u32)c.rows, (u32)c.out, (u32)c.in, 0 };
#if BRANCH
    const device::Buffer<float> low(branch.low), b(branch.b);
    const SkinnyInfo info = { shape, (u32)branch.rank, branch.scaling };
#else
    const Info info = shape;
#endif
    size_t grid_x = ceil_divide(GRADIENT ? c.in : c.out, COLUMNS_AT_ONCE), grid_y = ceil_divide(c.rows, ROWS_AT_ONCE);
    // The kernel for a few rows takes its blocks from both dimensions, and more than there is work for.
    if (ROWS_AT_ONCE < 128 && grid_x > 3) grid_x = ceil_divide(grid_x, grid_y = 3);
    device::launch((u32)grid_x, (u32)grid_y, THREADS, [&] {
#if BRANCH
        ENTRY(codes.data, absmax.data, header.data, input.data, y.data, low.data, b.data, info);
#else
        ENTRY(codes.data, absmax.data, header.data, input.data, y.data, info);
#endif
    });
}

// Runs a case; its largest error.
static double run(const Case& c) {
    char name[160];
    snprintf(name, sizeof name, "rows %zu, out %zu, in %zu, block %u, %s scales, x + %zu, y + %zu, codes + %zu", c.rows,
             c.out, c.in, 1u << c.log2_block, c.nested ? "double" : "plain", c.x_shift, c.y_shift, c.codes_shift);
    device::test_case = name;
    const size_t depth = GRADIENT ? c.out : c.in, columns = GRADIENT ? c.in : c.out;
    const Quantized w = make_weight(c.out * c.in, c.log2_block, c.nested);
    std::vector<float> x(c.rows * depth);
    for (float& value : x) value = uniform();
    device::Buffer<float> y(c.rows * columns, c.y_shift);
    const Branch branch = make_branch(c);
    launch(c, w, branch, x, y);
    y.check_surroundings("y");
    return compare(
        "y", c.rows, columns,
        [&](size_t row, size_t column, auto add) {
            for (size_t k = 0; k < depth; k++) {
                const float weight = GRADIENT ? w.dense[k * c.in + column] : w.dense[column * c.in + k];
                add((double)x[row * depth + k] * weight);
            }
            for (size_t k = 0; k < branch.rank; k++)
                add((double)branch.scaling * branch.low[row * branch.rank + k] * branch.b[column * branch.rank + k]);
        },
        [&](size_t row, size_t column) { return y.data[row * columns + column]; });
}

static u32 any_block() { return 5 + noise() % 8; }
static bool any_kind() { return noise() % 2; }

static std::vector<Case> cases() {
    std::vector<Case> cases = { { 1, 1, 1, 5, false }, { 1, 1, 1, 5, true } };
    const auto add = [&](size_t rows, size_t out, size_t in) {
        // Each kind of scale with small blocks, which rows that are no multiple of 8 long cut anywhere.
        cases.push_back({ rows, out, in, 5, false });
        cases.push_back({ rows, out, in, 5 + u32(noise() % 3), true });
        cases.push_back({ rows, out, in, any_block(), any_kind() });
    };
    for (size_t rows = 1; rows <= std::min<size_t>(MAX_ROWS, 17); rows++) {
        add(rows, 13 + rows % 3, 41 - rows);
        add(rows, 24, 64);
    }
    if (MAX_ROWS <= 16) {
        // Few features, and inner dimensions around the numbers of elements that are staged at a time.
        const size_t depths[] = { 1,   2,    7,    8,    31,   32,   33,   63,   64,   65,  96,
                                  127, 160,  257,  513,  1000, 1023, 1024, 1056, 2048, 2080, 4096, 4128, 4133, 8224 };
        for (size_t in : depths)
            for (size_t out : { 1, 4, 5, 13, 33, 67 })
                for (size_t rows : { size_t(1), MAX_ROWS / 2 + 1, MAX_ROWS })
                    if (in * out * MAX_ROWS < 600000) add(rows, out, in);
    } else {
        const size_t shapes[][3] = {
            { 1, 64, 64 }, { 5, 13, 8 }, { 16, 8, 13 }, { 130, 33, 36 }, { 129, 130, 132 }, { 130, 72, 144 },
            { 7, 257, 16 }, { 9, 16, 257 }, { 128, 128, 128 }, { 130, 131, 127 }, { 2, 100, 100 }, { 4, 65, 200 },
            { 15, 24, 1000 }, { 15, 1000, 24 }, { 1, 3, 1001 }, { 8, 1001, 3 }, { 12, 17, 320 }, { 12, 320, 17 },
            { 1, 250, 66 }, { 1, 66, 250 }, { 11, 264, 264 }, { 3, 4, 8 }, { 3, 8, 4 }, { 3, 2, 16 }, { 3, 16, 2 },
            { 130, 300, 128 }, { 64, 136, 40 }, { 17, 31, 29 }, { 33, 96, 48 }, { 130, 1, 1 }, { 130, 257, 263 },
        };
        for (const auto& [rows, out, in] : shapes) add(rows, out, in);
    }
    // Whole blocks of 4096 and one that is short.
    cases.push_back({ 1, 3, 4096, 12, true });
    cases.push_back({ 1, 5, 1000, 12, false });
    const size_t rows = std::min<size_t>(MAX_ROWS, 9);
    for (u32 log2_block = 5; log2_block <= 12; log2_block++) cases.push_back({ rows, 43, 128, log2_block, true });
    for (size_t shift = 1; shift < 4; shift++) {
        cases.push_back({ rows, 40, 64, 5, any_kind(), shift, 0, 0 });
        cases.push_back({ rows, 40, 64, 6, any_kind(), 0, shift, 0 });
        cases.push_back({ rows, 40, 64, 7, any_kind(), 0, 0, shift });
    }
    return cases;
}

int main() {
    const std::vector<Case> all = cases();
    double worst = 0;
    for (const Case& c : all) worst = std::max(worst, run(c));
    printf("%zu products, the largest error %.1e of the sum of absolute values\n", all.size(), worst);
}
