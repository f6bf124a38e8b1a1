// Compares the kernel that widens rows of a matrix in 16 bits to what they hold, to the bit.
//
// Compile with -DKERNEL="\"file\"", the kernel's text, and -DBF16 or -DF16, what the matrix is in.
#include "device.h"

#include "ptx.h"
#include KERNEL
#include "halves.h"

int main() {
    size_t elements = 0;
    const size_t shapes[][3] = { { 1, 1, 1 }, { 5, 3, 9 }, { 300, 65, 40 }, { 70, 264, 70 }, { 4096, 7, 600 } };
    for (const auto& [rows, columns, count] : shapes) {
        char name[80];
        snprintf(name, sizeof name, "%zu rows of [%zu, %zu]", count, rows, columns);
        device::test_case = name;
        std::vector<unsigned short> matrix(rows * columns);
        for (unsigned short& element : matrix) element = (unsigned short)element_bits();
        const u32 first = noise() % (rows > count ? rows - count + 1 : 1);
        std::vector<u32> picked(count);
        for (size_t i = 0; i < count; i++) picked[i] = PICKED ? noise() % rows : std::min<u32>(first + i, rows - 1);
        const size_t last = PICKED ? count : std::min(count, rows - first);
        const device::Buffer<unsigned short> of(matrix);
        const device::Buffer<u32> which(picked);
        device::Buffer<float> wide(last * columns);
        const Info info = { (u32)(last * columns), (u32)columns, first, 0 };
        // Launched as shaders/src/half_rows/mod.rs does it; the grid may have more blocks than there is work for.
        size_t grid_x = (last * columns + THREADS - 1) / THREADS, grid_y = 1;
        if (grid_x > 3) grid_x = (grid_x + 2) / 3, grid_y = 3;
        device::launch((u32)grid_x, (u32)grid_y, THREADS, [&] {
#if PICKED
            half_rows(of.data, wide.data, which.data, info);
#else
            half_rows(of.data, wide.data, info);
#endif
        });
        wide.check_surroundings("wide");
        for (size_t i = 0; i < last * columns; i++, elements++) {
            const double expected = widened(matrix[picked[i / columns] * columns + i % columns]);
            if (wide.data[i] == expected) continue;
            device::fail("element %zu is %g, not %g", i, wide.data[i], expected);
        }
    }
    printf("%zu elements\n", elements);
}
