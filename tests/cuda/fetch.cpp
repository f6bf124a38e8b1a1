// The kernel that copies from host memory copies every piece of 16 bytes once, to where it belongs, however many there are for its threads.
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
        for (const size_t first : { 0, 1, 300 }) {
            const size_t begin = 4 * first;
            device::Buffer<u32> to(begin + values.size());
            for (const u32 blocks : { 1, 3, 16 }) {
                std::fill(to.data, to.data + to.length, 0);
                const FetchInfo info = { (const uint4*)from.data, pieces, first };
                device::launch(blocks, 1, THREADS, [&] { fetch((uint4*)to.data, info); });
                const bool arrived = std::equal(values.begin(), values.end(), to.data + begin);
                if (!arrived || std::any_of(to.data, to.data + begin, [](u32 value) { return value; }))
                    device::fail("%zu pieces from %zu on, %u blocks", pieces, first, blocks);
                to.check_surroundings("to");
                copied++;
            }
        }
    }
    printf("%zu copies\n", copied);
}
