// Compares the products with a low-rank matrix to those in f64 of operands rounded to bf16.
//
// Compile with -DKERNEL="\"file\"", the kernel's text without shaders/src/ptx.cu, the macro of its entry point, LOW_RANK_NARROW or
// LOW_RANK_OUTER, and -DBF16 where the wide operand is in bf16.
#include "ptx.h"

#include KERNEL
#include "compare.h"
#include "random.h"

struct Case {
    size_t rows, wide, rank;
    // How many elements the wide operand begins after an aligned address.
    size_t shift = 0;
};

static double rounded(float value) { return device::from_bf16(device::to_bf16(value)); }

static std::vector<float> make(size_t count) {
    std::vector<float> values(count);
    for (float& value : values) value = uniform();
    return values;
}

// Compares a result, whose element (row, column) is a sum of products of depth factors.
template <class Left, class Right, class Got>
static double compare_product(size_t rows, size_t columns, size_t depth, float scaling, Left left, Right right, Got got) {
    const auto terms = [&](size_t row, size_t column, auto add) {
        for (size_t k = 0; k < depth; k++) add(rounded(left(row, k)) * rounded(right(k, column)) * scaling);
    };
    return compare("the result", rows, columns, terms, got);
}

// Launched as shaders/src/low_rank/mod.rs does it.
static double run(const Case& c) {
    const auto& [rows, wide, rank, shift] = c;
    char name[100];
    snprintf(name, sizeof name, "rows %zu, wide %zu, rank %zu, + %zu", rows, wide, rank, shift);
    device::test_case = name;
    const float scaling = uniform();
    const Info info = { (u32)rows, (u32)wide, (u32)rank, scaling };
    const u32 grid_y = u32((rank + WIDTH - 1) / WIDTH);
    const std::vector<float> big = make(rows * wide);
    std::vector<Input> as_given(big.size());
    for (size_t i = 0; i < big.size(); i++) device::set(as_given[i], big[i]);
    const device::Buffer<Input> wide_operand(as_given, shift);
#if defined LOW_RANK_NARROW
    const std::vector<float> factor = make(wide * rank);
    const device::Buffer<float> f(factor);
    device::Buffer<bf16> low(rows * rank);
#ifndef BF16
    device::Buffer<bf16> x16(rows * wide, shift);
#endif
    device::launch(u32((rows + TILE - 1) / TILE), grid_y, THREADS,
                   [&] {
                       low_rank_narrow(wide_operand.data, f.data, low.data,
#ifndef BF16
                                       x16.data,
#endif
                                       info);
                   });
    low.check_surroundings("low");
#ifndef BF16
    x16.check_surroundings("x rounded");
    for (size_t i = 0; i < big.size(); i++)
        if (x16.data[i] != device::to_bf16(big[i])) device::fail("x[%zu] is not rounded right", i);
#endif
    return compare_product(
        rows, rank, wide, scaling, [&](size_t row, size_t k) { return big[row * wide + k]; },
        [&](size_t k, size_t column) { return factor[TRANSPOSED ? k * rank + column : column * wide + k]; },
        [&](size_t row, size_t column) { return low.data[row * rank + column]; });
#else
    const std::vector<float> narrow = make(rows * rank);
    std::vector<bf16> rounded_narrow;
    for (float value : narrow) rounded_narrow.push_back(device::to_bf16(value));
    const device::Buffer<bf16> n(rounded_narrow);
    device::Buffer<float> result(wide * rank);
    device::launch(u32((wide + TILE - 1) / TILE), grid_y, THREADS,
                   [&] { low_rank_outer(n.data, wide_operand.data, result.data, info); });
    result.check_surroundings("the result");
    return compare_product(
        rank, wide, rows, scaling, [&](size_t of, size_t k) { return narrow[k * rank + of]; },
        [&](size_t k, size_t column) { return big[k * wide + column]; },
        [&](size_t of, size_t column) { return result.data[TRANSPOSED ? column * rank + of : of * wide + column]; });
#endif
}

int main() {
    std::vector<Case> cases;
    const size_t sizes[][2] = { { 1, 1 },   { 1, 32 },  { 3, 5 },    { 16, 64 },  { 31, 33 },   { 32, 256 }, { 33, 260 },
                                { 65, 36 }, { 128, 8 }, { 129, 132 }, { 257, 4 }, { 300, 300 }, { 7, 1000 }, { 1000, 7 } };
    for (const auto& [rows, wide] : sizes)
        for (size_t rank : { size_t(1), WIDTH - noise() % 7, size_t(WIDTH), WIDTH + 1 + noise() % 90 })
            cases.push_back({ rows, wide, rank });
    for (size_t shift = 1; shift < 4; shift++) cases.push_back({ 40, 48, WIDTH, shift });
    double worst = 0;
    for (const Case& c : cases) worst = std::max(worst, run(c));
    printf("%zu products, the largest error %.1e of the sum of absolute values\n", cases.size(), worst);
}
