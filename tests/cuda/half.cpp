// Compares the kernels for products with a dense weight in bf16 to the product in f64, and to that with a branch beside the weight, on
// shapes that fit their tiles badly.
//
// Compile with -DKERNEL="\"file\"", the kernel's text without shaders/src/ptx.cu, the macro of its entry point, HALF_MATMUL or
// HALF_WARPGROUP, and -DWITH_BRANCH for a kernel with a branch.
#include "warpgroup.h"

#include KERNEL
#include "branch.h"
#include "compare.h"

// HALF_MATMUL takes any shape and buffers that begin anywhere.
#ifdef HALF_MATMUL
constexpr auto ENTRY = half_matmul;
constexpr bool ANYTHING = true;
#else
constexpr auto ENTRY = half_warpgroup;
constexpr bool ANYTHING = false;
#endif

struct Case {
    size_t rows, out, in;
    // How many elements the buffers begin after an aligned address.
    size_t x_shift = 0, w_shift = 0, y_shift = 0;
#ifdef WITH_BRANCH
    size_t rank = 8 * (1 + noise() % 20);
#else
    size_t rank = 0;
#endif
};

// Runs a case; its largest error.
static double run(const Case& c) {
    char name[140];
    snprintf(name, sizeof name, "rows %zu, out %zu, in %zu, x + %zu, w + %zu, y + %zu, rank %zu", c.rows, c.out, c.in, c.x_shift,
             c.w_shift, c.y_shift, c.rank);
    device::test_case = name;
    const size_t depth = TRANSPOSED ? c.out : c.in, columns = TRANSPOSED ? c.in : c.out;
    std::vector<bf16> x(c.rows * depth), w(c.out * c.in);
    for (bf16& value : x) value = device::to_bf16(uniform());
    for (bf16& value : w) value = device::to_bf16(uniform());
    const Beside beside(c.rows, columns, c.rank);
    const device::Buffer<bf16> input(x, c.x_shift), weight(w, c.w_shift), low(beside.low);
    const device::Buffer<float> b(beside.b);
    device::Buffer<Result> y(c.rows * columns, c.y_shift);
    // Launched as shaders/src/half_matmul/mod.rs does it.
#ifdef HALF_WARPGROUP
    const BranchInfo info = { { (u32)c.rows, (u32)c.out, (u32)c.in, 0 }, (u32)c.rank, beside.scaling };
    const auto x_map = device::tile_map<TileMap>({ input.data, (u32)c.rows, (u32)depth, depth, TILE_ROWS, DEPTH });
    const auto w_map = device::tile_map<TileMap>({ weight.data, (u32)c.out, (u32)c.in, c.in, 64, 64 });
    device::left_transposed = TRANSPOSED;
#else
    const Info info = { (u32)c.rows, (u32)c.out, (u32)c.in, 0 };
#endif
    device::launch((u32)((columns + 127) / 128), (u32)((c.rows + TILE_ROWS - 1) / TILE_ROWS), THREADS, [&] {
        ENTRY(
#ifdef HALF_WARPGROUP
            x_map, w_map,
#endif
            input.data, weight.data, y.data,
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
                const bf16 other = TRANSPOSED ? w[k * c.in + column] : w[column * c.in + k];
                add((double)device::from_bf16(x[row * depth + k]) * device::from_bf16(other));
            }
            beside.terms(TRANSPOSED, row, column, add);
        },
        [&](size_t row, size_t column) { return y.data[row * columns + column]; });
}

int main() {
    std::vector<Case> cases;
    const size_t shapes[][3] = {
        { 1, 1, 1 },    { 1, 64, 64 },   { 5, 13, 8 },     { 16, 8, 13 },   { 130, 33, 36 },  { 129, 130, 132 },
        { 7, 257, 16 }, { 9, 16, 257 },  { 128, 128, 128 }, { 130, 131, 127 }, { 15, 24, 1000 }, { 15, 1000, 24 },
        { 1, 3, 1001 }, { 8, 1001, 3 },  { 12, 320, 17 },  { 11, 264, 264 }, { 3, 8, 4 },      { 3, 2, 16 },
        { 64, 136, 40 }, { 17, 31, 29 }, { 33, 96, 48 },   { 130, 257, 263 }, { 130, 264, 136 }, { 257, 32, 8 },
    };
    // Whole pieces of 16 bytes, where no others will do; more than a tile of each dimension, and depths around the steps that are
    // under way at a time.
    const auto whole = [](size_t n) { return ANYTHING ? n : (n + 7) / 8 * 8; };
    for (const auto& [rows, out, in] : shapes) cases.push_back({ rows, whole(out), whole(in) });
    for (size_t depth : { 56, 64, 72, 120, 136, 192, 248, 320, 392, 520, 584 }) {
        cases.push_back({ 260, depth, 136 });
        cases.push_back({ 131, 264, depth });
    }
    // More tiles of rows than the eight whose blocks run together.
    if (!ANYTHING) cases.push_back({ 9 * TILE_ROWS + 5, 136, 136 });
    // Features of a forward product are as many as they like.
    if (!TRANSPOSED) cases.push_back({ 70, 259, 96 });
    for (size_t shift = 1; shift < 8; shift += 3) {
        cases.push_back({ 9, 40, 64, 0, 0, shift });
        if (!ANYTHING) continue;
        cases.push_back({ 9, 40, 64, shift, 0, 0 });
        cases.push_back({ 9, 40, 64, 0, shift, 0 });
    }
    double worst = 0;
    for (const Case& c : cases) worst = std::max(worst, run(c));
    printf("%zu products, the largest error %.1e of the sum of absolute values\n", cases.size(), worst);
}
