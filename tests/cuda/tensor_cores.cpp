// Compares the kernels for products with an NF4 weight on tensor cores to the product in f64, and to that with a branch beside the
// weight.
//
// Compile with -DKERNEL="\"file\"", the kernel's text without shaders/src/ptx.cu, the macro of its entry point, NF4_MMA or NF4_WARPGROUP,
// and -DWITH_BRANCH for a kernel with a branch.
#include "warpgroup.h"

#include KERNEL
#include "branch.h"
#include "compare.h"
#include "weight.h"

// NF4_MMA takes any shape and buffers that begin anywhere.
#ifdef NF4_MMA
constexpr auto ENTRY = nf4_mma;
constexpr bool ANYTHING = true;
#else
constexpr auto ENTRY = nf4_warpgroup;
constexpr bool ANYTHING = false;
#endif

struct Case {
    size_t rows, out, in;
    u32 log2_block;
    bool nested;
    size_t rank;
    // How many elements the buffers begin after an aligned address.
    size_t y_shift = 0, x_shift = 0, codes_shift = 0;
};

// Runs a case; its largest error.
static double run(const Case& c) {
    char name[160];
    snprintf(name, sizeof name, "rows %zu, out %zu, in %zu, block %u, %s scales, rank %zu, y + %zu, x + %zu, codes + %zu",
             c.rows, c.out, c.in, 1u << c.log2_block, c.nested ? "double" : "plain", c.rank, c.y_shift, c.x_shift,
             c.codes_shift);
    device::test_case = name;
    const size_t depth = TRANSPOSED ? c.out : c.in, columns = TRANSPOSED ? c.in : c.out;
    const Quantized w = make_weight(c.out * c.in, c.log2_block, c.nested);
    std::vector<bf16> x(c.rows * depth);
    for (bf16& value : x) value = device::to_bf16(uniform());
    const Beside beside(c.rows, columns, c.rank);
    const device::Buffer<u32> codes(w.codes, c.codes_shift), absmax(w.absmax), header(w.header);
    const device::Buffer<bf16> input(x, c.x_shift), low(beside.low, c.x_shift);
    const device::Buffer<float> b(beside.b);
    device::Buffer<Result> y(c.rows * columns, c.y_shift);
    const BranchInfo info = { { (u32)c.rows, (u32)c.out, (u32)c.in, 0 }, (u32)c.rank, beside.scaling };
#ifdef NF4_WARPGROUP
    const auto map = device::tile_map<TileMap>({ input.data, (u32)c.rows, (u32)depth, depth, TILE_ROWS, DEPTH });
#endif
    // Launched as shaders/src/nf4_matmul/mod.rs does it.
    device::launch((u32)ceil_divide(columns, TILE_COLUMNS), (u32)ceil_divide(c.rows, TILE_ROWS), THREADS, [&] {
        ENTRY(
#ifdef NF4_MMA
            codes.data, absmax.data, header.data, input.data, y.data,
#else
            map, input.data, codes.data, absmax.data, header.data, y.data,
#endif
#ifdef WITH_BRANCH
            low.data, b.data,
#endif
            info);
    });
    y.check_surroundings("y");
    return compare(
        "y", c.rows, columns,
        [&](size_t row, size_t column, auto add) {
            for (size_t k = 0; k < depth; k++) {
                const float weight = w.dense[TRANSPOSED ? k * c.in + column : column * c.in + k];
                add(device::from_bf16(x[row * depth + k]) * rounded(weight));
            }
            beside.terms(TRANSPOSED, row, column, add);
        },
        [&](size_t row, size_t column) { return y.data[row * columns + column]; });
}

int main() {
    // Fewer and more than a tile of each dimension, and depths around the steps that are under way at a time.
    const size_t shapes[][3] = {
        { 1, 8, 32 },      { 3, 16, 64 },     { 7, 136, 32 },    { 9, 32, 160 },    { 129, 24, 96 },   { 257, 64, 64 },
        { 255, 128, 128 }, { 256, 256, 256 }, { 300, 8, 352 },   { 5, 328, 192 },   { 130, 264, 288 }, { 2, 512, 64 },
        { 2, 64, 512 },    { 33, 200, 224 },  { 4, 1000, 32 },   { 4, 32, 992 },
    };
    const size_t any_shapes[][3] = {
        { 1, 1, 1 },      { 5, 13, 8 },    { 16, 8, 13 },  { 130, 33, 36 },  { 129, 130, 132 }, { 7, 257, 16 },
        { 9, 16, 257 },   { 130, 131, 127 }, { 4, 65, 200 }, { 15, 24, 1000 }, { 15, 1000, 24 },  { 1, 3, 1001 },
        { 8, 1001, 3 },   { 12, 17, 320 }, { 1, 250, 66 }, { 3, 2, 16 },     { 17, 31, 29 },    { 130, 257, 263 },
    };
    std::vector<Case> cases;
#ifdef WITH_BRANCH
    const auto rank = [] { return ANYTHING ? 1 + noise() % 140 : 8 * (1 + noise() % 20); };
#else
    const auto rank = [] { return 0; };
#endif
    const auto add = [&](size_t rows, size_t out, size_t in) {
        cases.push_back({ rows, out, in, 5 + u32(noise() % 8), false, size_t(rank()) });
        cases.push_back({ rows, out, in, 5 + u32(noise() % 8), true, size_t(rank()), noise() % 3 });
    };
    // What a gradient sums over comes in whole pieces of 16 bytes; features of a forward product are as many as they like.
    for (const auto& [rows, out, in] : shapes) add(rows, TRANSPOSED ? out : out - noise() % 8, in);
    // More tiles of rows than the eight whose blocks run together.
    add(9 * TILE_ROWS + 5, TRANSPOSED ? 32 : 136, TRANSPOSED ? 160 : 32);
    // Depths that end within a step of 64 and within four steps, after more than two times four; rows that begin within a block, and
    // blocks of all lengths that a thread's four neighbouring scales are of.
    const size_t deep[][3] = { { 140, 160, 608 }, { 65, 96, 416 } };
    for (const u32 log2_block : { 5, 6, 7, 8, 12 })
        for (const bool nested : { false, true })
            for (const auto& [rows, columns, depth] : deep) {
                const size_t out = TRANSPOSED ? depth + 8 : columns - 3, in = TRANSPOSED ? columns : depth;
                cases.push_back({ rows, out, in, log2_block, nested, size_t(rank()) });
            }
    if (ANYTHING) {
        for (const auto& [rows, out, in] : any_shapes) add(rows, out, in);
        for (size_t shift = 1; shift < 4; shift++) {
            cases.push_back({ 9, 40, 64, 5, true, size_t(rank()), shift, 0, 0 });
            cases.push_back({ 9, 40, 64, 6, false, size_t(rank()), 0, shift, 0 });
            cases.push_back({ 9, 40, 64, 7, true, size_t(rank()), 0, 0, shift });
        }
    }
    double worst = 0;
    for (const Case& c : cases) worst = std::max(worst, run(c));
    printf("%zu products, the largest error %.1e of the sum of absolute values\n", cases.size(), worst);
}
