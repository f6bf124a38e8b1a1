// Compares the kernel for dropout with what the CPU drops.
//
// Compile with -DKERNEL="\"file\"", the kernel's text without shaders/src/ptx.cu, and KEY, THRESHOLD and KEPT, and the FACTORS that are
// expected of them.
#include "ptx.h"

#include KERNEL
#include "random.h"

int main() {
    const std::vector<float> factors = { FACTORS };
    const size_t count = factors.size();
    for (size_t shift = 0; shift < 4; shift++) {
        std::vector<Result> values(count), expected(count);
        for (size_t i = 0; i < count; i++) {
            device::set(values[i], uniform());
            device::set(expected[i], (float)device::value(values[i]) * factors[i]);
        }
        const device::Buffer<Result> x(values, shift);
        device::Buffer<Result> y(count, shift);
        const Info info = { (u32)count, { KEY }, THRESHOLD, KEPT, 0, {} };
        // More blocks than there is work for, in both dimensions.
        device::launch(2, 2, 256, [&] { dropout(x.data, y.data, info); });
        y.check_surroundings("y");
        for (size_t i = 0; i < count; i++)
            if (device::value(y.data[i]) != device::value(expected[i]))
                device::fail("y[%zu] is %g, not %g", i, device::value(y.data[i]), device::value(expected[i]));
    }
    // A block of a tensor of more elements than 32 bits count.
    const std::vector<Result> ones(2048, Result());
    const device::Buffer<Result> x(ones);
    device::Buffer<Result> y(ones.size());
    device::launch(1, 1, 256, [&] { dropout(x.data, y.data, { 3, { KEY }, THRESHOLD, KEPT, 1, {} }); });
    for (size_t i = 0; i < ones.size(); i++)
        if (device::value(y.data[i]) != 0) device::fail("y[%zu] of many is %g", i, device::value(y.data[i]));
    printf("%zu elements, all as on the CPU\n", count);
}
