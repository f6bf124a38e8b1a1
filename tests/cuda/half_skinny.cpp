// Compares the kernel for products of a few rows with a weight in 16 bits to the product in f64.
//
// Compile with -DKERNEL="\"file\"", the kernel's text, and -DBF16 or -DF16, what the weight is in.
#include "device.h"

#include "ptx.h"
#include KERNEL
#include "compare.h"
#include "halves.h"

struct Case { size_t rows, out, in; };

// Runs a case; its largest error.
static double run(const Case& c) {
    char name[80];
    snprintf(name, sizeof name, "rows %zu, out %zu, in %zu", c.rows, c.out, c.in);
    device::test_case = name;
    std::vector<uint4> weight(c.out * c.in / 8);
    for (uint4& eight : weight)
        for (u32* word : { &eight.x, &eight.y, &eight.z, &eight.w }) {
            const u32 low = element_bits();
            *word = low | element_bits() << 16;
        }
    std::vector<float4> x(c.rows * c.in / 4);
    for (float4& four : x) four = { uniform(), uniform(), uniform(), uniform() };
    const device::Buffer<uint4> w(weight);
    const device::Buffer<float4> input(x);
    device::Buffer<float> y(c.rows * c.out);
    const Info info = { (u32)c.rows, (u32)c.out, (u32)c.in, 0 };
    // Launched as shaders/src/half_skinny/mod.rs does it; the grid may have more blocks than there is work for.
    size_t grid_x = (c.out + 31) / 32, grid_y = 1;
    if (grid_x > 3) grid_x = (grid_x + 2) / 3, grid_y = 3;
    device::launch((u32)grid_x, (u32)grid_y, THREADS, [&] { half_skinny(w.data, input.data, y.data, info); });
    y.check_surroundings("y");
    const auto x_at = [&](size_t i) { return (double)(&x[i / 4].x)[i % 4]; };
    const auto w_at = [&](size_t i) { return widened((&weight[i / 8].x)[i % 8 / 2] >> 16 * (i % 2) & 0xffff); };
    return compare(
        "y", c.rows, c.out,
        [&](size_t row, size_t column, auto add) {
            for (size_t k = 0; k < c.in; k++) add(x_at(row * c.in + k) * w_at(column * c.in + k));
        },
        [&](size_t row, size_t column) { return y.data[row * c.out + column]; });
}

int main() {
    std::vector<Case> cases;
    for (size_t rows = 1; rows <= ROWS; rows++) cases.push_back({ rows, 13 + rows, 64 });
    for (size_t in : { 8, 16, 248, 256, 264, 1032, 4096 })
        for (size_t out : { 1, 3, 4, 31, 33, 130 }) cases.push_back({ ROWS, out, in });
    double worst = 0;
    for (const Case& c : cases) worst = std::max(worst, run(c));
    printf("%zu products, the largest error %.1e of the sum of absolute values\n", cases.size(), worst);
}
