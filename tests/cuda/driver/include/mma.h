// Tensor cores' fragments (nvcuda::wmma) on the host. Which lane holds which elements is not said, so a tile's are simply dealt out.
#pragma once

#include <cstddef>
#include <type_traits>

namespace nvcuda::wmma {

struct matrix_a {};
struct matrix_b {};
struct accumulator {};
struct row_major {};
struct col_major {};
namespace precision { struct tf32 {}; }
enum layout_t { mem_row_major, mem_col_major };

// Keeps the 10 bits of a fraction that tf32 has, rounded to nearest, ties away from zero.
static inline float __float_to_tf32(float value) { return __uint_as_float((__float_as_uint(value) + 0x1000) & 0xffffe000); }

template <class T> struct Stored { typedef T type; };
template <> struct Stored<precision::tf32> { typedef float type; };

template <class Use, int m, int n, int k, class T, class Layout = void>
struct fragment {
    typedef typename Stored<T>::type element_type;
    static constexpr int rows = std::is_same_v<Use, matrix_b> ? k : m, columns = std::is_same_v<Use, matrix_a> ? k : n;
    static constexpr int num_elements = rows * columns / 32;
    element_type x[num_elements];
};

template <class Fragment, class Do>
static void each(Fragment& fragment, Do&& act) {
    for (int i = 0; i < Fragment::num_elements; i++) {
        const int place = i * 32 + (int)(device::thread % 32);
        act(fragment.x[i], place / Fragment::columns, place % Fragment::columns);
    }
}

template <class Fragment, class V>
static void fill_fragment(Fragment& fragment, const V& value) {
    for (auto& x : fragment.x) x = (typename Fragment::element_type)value;
}

template <class Fragment, class P>
static void load(Fragment& fragment, const P* from, u32 stride, bool by_rows) {
    device::exchange("wmma.load", 0);
    each(fragment, [&](auto& x, int row, int column) { x = from[by_rows ? row * stride + column : column * stride + row]; });
}

template <class Use, int m, int n, int k, class T, class Layout, class P>
static void load_matrix_sync(fragment<Use, m, n, k, T, Layout>& fragment, const P* from, u32 stride) {
    load(fragment, from, stride, std::is_same_v<Layout, row_major>);
}

template <int m, int n, int k, class T, class P>
static void load_matrix_sync(fragment<accumulator, m, n, k, T>& fragment, const P* from, u32 stride, layout_t layout) {
    load(fragment, from, stride, layout == mem_row_major);
}

template <class Fragment, class P>
static void store_matrix_sync(P* to, const Fragment& fragment, u32 stride, layout_t layout) {
    device::exchange("wmma.store", 0);
    each(fragment, [&](const auto& x, int row, int column) {
        to[layout == mem_row_major ? row * stride + column : column * stride + row] = x;
    });
}

// The element of a fragment whose lanes' parts are these.
template <class Fragment>
static double element(const Fragment* const* lanes, int row, int column) {
    const int place = row * Fragment::columns + column;
    return (double)(float)lanes[place % 32]->x[place / 32];
}

template <class D, class A, class B, class C>
static void mma_sync(D& d, const A& a, const B& b, const C& c) {
    struct Operands { const A* a; const B* b; };
    const Operands* table = device::exchange("wmma.mma", Operands { &a, &b });
    const A* left[32];
    const B* right[32];
    for (int lane = 0; lane < 32; lane++) left[lane] = table[lane].a, right[lane] = table[lane].b;
    D result = {};
    for (int i = 0; i < C::num_elements; i++) result.x[i] = c.x[i];
    each(result, [&](auto& x, int row, int column) {
        double sum = (double)(float)x;
        for (int i = 0; i < A::columns; i++) sum += element(left, row, i) * element(right, i, column);
        x = (typename D::element_type)(float)sum;
    });
    // No lane may write its part before all have read it.
    device::exchange("wmma.done", 0);
    d = result;
}

}  // namespace nvcuda::wmma
