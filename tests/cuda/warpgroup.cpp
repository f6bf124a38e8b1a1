// Compares the kernel for products with an NF4 weight by groups of four warps to the product in f64, and to that with a branch
// beside the weight.
//
// Compile with -DKERNEL="\"file\"", the kernel's text without shaders/src/ptx.cu, and with -DWITH_BRANCH for the kernel with a branch.
#include "warpgroup.h"

#include KERNEL
#include "weight.h"

// The largest error that is allowed, relative to the sum of the absolute values of all that is summed up.
constexpr double TOLERANCE = 2e-6;

struct Case {
    size_t rows, out, in;
    u32 log2_block;
    bool nested;
    size_t rank;
    // How many elements y begins after an aligned address.
    size_t y_shift = 0;
};

// Two matrices in the order in which they are multiplied: low[rows, rank], and b[out, rank], or for the gradient b[rank, in].
struct Beside {
    float scaling;
    std::vector<bf16> low;
    std::vector<float> b;
};

static Beside make_beside(const Case& c, size_t columns) {
    Beside beside = { uniform(), {}, {} };
    for (size_t i = 0; i < c.rows * c.rank; i++) beside.low.push_back(device::to_bf16(uniform()));
    for (size_t i = 0; i < columns * c.rank; i++) beside.b.push_back(uniform());
    return beside;
}

static double rounded(float value) { return device::from_bf16(device::to_bf16(value)); }

// Runs a case; its largest error.
static double run(const Case& c) {
    char name[160];
    snprintf(name, sizeof name, "rows %zu, out %zu, in %zu, block %u, %s scales, rank %zu, y + %zu", c.rows, c.out, c.in,
             1u << c.log2_block, c.nested ? "double" : "plain", c.rank, c.y_shift);
    device::test_case = name;
    const size_t depth = TRANSPOSED ? c.out : c.in, columns = TRANSPOSED ? c.in : c.out;
    const Quantized w = make_weight(c.out * c.in, c.log2_block, c.nested);
    std::vector<bf16> x(c.rows * depth);
    for (bf16& value : x) value = device::to_bf16(uniform());
    const Beside beside = make_beside(c, columns);
    const device::Buffer<u32> codes(w.codes), absmax(w.absmax), header(w.header);
    const device::Buffer<bf16> input(x), low(beside.low);
    const device::Buffer<float> b(beside.b);
    device::Buffer<float> y(c.rows * columns, c.y_shift);
    const WarpgroupInfo info = { { (u32)c.rows, (u32)c.out, (u32)c.in, 0 }, (u32)c.rank, beside.scaling };
    // Launched as shaders/src/nf4_warpgroup/mod.rs does it.
    device::launch((u32)ceil_divide(columns, TILE_COLUMNS), (u32)ceil_divide(c.rows, TILE_ROWS), THREADS, [&] {
#ifdef WITH_BRANCH
        nf4_warpgroup(codes.data, absmax.data, header.data, input.data, y.data, low.data, b.data, info);
#else
        nf4_warpgroup(codes.data, absmax.data, header.data, input.data, y.data, info);
#endif
    });
    y.check_surroundings("y");

    double worst = 0;
    for (size_t row = 0; row < c.rows; row++)
        for (size_t column = 0; column < columns; column++) {
            double sum = 0, magnitude = 0;
            const auto add = [&](double product) {
                sum += product;
                magnitude += std::fabs(product);
            };
            for (size_t k = 0; k < depth; k++) {
                const float weight = w.dense[TRANSPOSED ? k * c.in + column : column * c.in + k];
                add(device::from_bf16(x[row * depth + k]) * rounded(weight));
            }
            for (size_t k = 0; k < c.rank; k++) {
                const float b = beside.b[TRANSPOSED ? k * columns + column : column * c.rank + k];
                add(device::from_bf16(beside.low[row * c.rank + k]) * rounded(b * beside.scaling));
            }
            const float got = y.data[row * columns + column];
            const double error = std::fabs(got - sum) / (magnitude + 1e-30);
            // Not the other way round: NaN must fail.
            if (!(error <= TOLERANCE)) device::fail("y[%zu, %zu] is %g, not %g", row, column, got, sum);
            worst = std::max(worst, error);
        }
    return worst;
}

int main() {
    // Fewer and more than a tile of each dimension, and depths around the steps that are under way at a time.
    const size_t shapes[][3] = {
        { 1, 8, 32 },      { 3, 16, 64 },     { 7, 136, 32 },    { 9, 32, 160 },    { 129, 24, 96 },   { 257, 64, 64 },
        { 255, 128, 128 }, { 256, 256, 256 }, { 300, 8, 352 },   { 5, 328, 192 },   { 130, 264, 288 }, { 2, 512, 64 },
        { 2, 64, 512 },    { 33, 200, 224 },  { 4, 1000, 32 },   { 4, 32, 992 },
    };
    std::vector<Case> cases;
    for (const auto& [rows, out, in] : shapes) {
        // What a gradient sums over comes in whole pieces of 16 bytes; features of a forward product are as many as they like.
        const size_t features = TRANSPOSED ? out : out - noise() % 8;
#ifdef WITH_BRANCH
        const size_t rank = 8 * (1 + noise() % 20);
#else
        const size_t rank = 0;
#endif
        cases.push_back({ rows, features, in, 5 + u32(noise() % 8), false, rank });
        cases.push_back({ rows, features, in, 5 + u32(noise() % 8), true, rank, noise() % 3 });
    }
    double worst = 0;
    for (const Case& c : cases) worst = std::max(worst, run(c));
    printf("%zu products, the largest error %.1e of the sum of absolute values\n", cases.size(), worst);
}
