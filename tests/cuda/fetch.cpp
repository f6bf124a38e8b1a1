// The kernel that copies from host memory copies every piece of 16 bytes once, however many there are for its threads.
//
// Compile with -DKERNEL="\"file\"", the kernel's text.
#include "ptx.h"

#include KERNEL
#include "random.h"

int main() {
    size_t copied = 0;
    for (const size_t pieces : { 1, 2, 255, 256, 257, 4095, 4096, 4097, 9001 }) {
        std::vector<u32> values(4 * pieces);
        for (u32& value : values) value = (u32)noise();
        const device::Buffer<u32> from(values);
        device::Buffer<u32> to(values.size());
        for (const u32 blocks : { 1, 3, 16 }) {
            std::fill(to.data, to.data + values.size(), 0);
            device::launch(blocks, 1, THREADS, [&] { fetch((uint4*)to.data, { (const uint4*)from.data, pieces }); });
            if (!std::equal(values.begin(), values.end(), to.data)) device::fail("%zu pieces, %u blocks", pieces, blocks);
            to.check_surroundings("to");
            copied++;
        }
    }
    printf("%zu copies\n", copied);
}
