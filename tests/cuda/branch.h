// Random low-rank branches beside a weight, for the tests of the kernels that add one.
#pragma once

#include "ptx.h"
#include "random.h"

static double rounded(float value) { return device::from_bf16(device::to_bf16(value)); }

// Two matrices in the order in which they are multiplied: low[rows, rank], and b[columns, rank], or for the gradient b[rank, columns].
struct Beside {
    size_t columns, rank;
    float scaling;
    std::vector<bf16> low;
    std::vector<float> b;

    Beside(size_t rows, size_t columns, size_t rank) : columns(columns), rank(rank), scaling(uniform()) {
        for (size_t i = 0; i < rows * rank; i++) low.push_back(device::to_bf16(uniform()));
        for (size_t i = 0; i < columns * rank; i++) b.push_back(uniform());
    }

    // Calls `add` with all that an element of their product is the sum of.
    template <class Add>
    void terms(bool gradient, size_t row, size_t column, Add add) const {
        for (size_t k = 0; k < rank; k++) {
            const float other = b[gradient ? k * columns + column : column * rank + k];
            add(device::from_bf16(low[row * rank + k]) * rounded(other * scaling));
        }
    }
};
