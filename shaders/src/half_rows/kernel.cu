// Rows of a matrix in 16 bits, in f32: those that are PICKED, or else all from one on. A thread widens an element of the result.
//
// Grid: in x and y together at least ceil(elements / THREADS).
struct Info { u32 elements, columns, first, unused; };

constexpr u32 THREADS = {{ threads }};

#define PICKED {{ picked }}

extern "C" __global__ void __launch_bounds__(THREADS)
half_rows(const unsigned short* __restrict__ matrix, float* __restrict__ wide,
#if PICKED
          const u32* __restrict__ rows,
#endif
          const __grid_constant__ Info info) {
    const u32 at = (blockIdx.y * gridDim.x + blockIdx.x) * THREADS + threadIdx.x;
    if (at >= info.elements) return;
#if PICKED
    const u32 row = rows[at / info.columns];
#else
    const u32 row = info.first + at / info.columns;
#endif
    wide[at] = from_{{ dtype }}(matrix[(size_t)row * info.columns + at % info.columns]);
}
