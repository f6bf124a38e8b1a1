// Copies from host memory that the device reaches by its address, pinned memory, to the elements of `to` from `first` on.
//
// Grid: any. The copy waits for the bus, which a few blocks keep busy.
struct FetchInfo { const uint4* from; unsigned long long count, first; };

constexpr unsigned int THREADS = {{ threads }};

extern "C" __global__ void __launch_bounds__(THREADS)
fetch(uint4* __restrict__ to, const __grid_constant__ FetchInfo info) {
    const unsigned long long step = (unsigned long long)gridDim.x * THREADS;
#pragma unroll 4
    for (unsigned long long i = (unsigned long long)blockIdx.x * THREADS + threadIdx.x; i < info.count; i += step)
        to[info.first + i] = info.from[i];
}
