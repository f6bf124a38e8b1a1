// Products compared to those in f64.
#pragma once

#include <cmath>

#include "memory.h"
#include "ptx.h"

// The largest error that is allowed, relative to the sum of the absolute values of all that is summed up.
constexpr double TOLERANCE = 2e-6;

// The largest error of a matrix, but for what the rounding of a result to its type allows. `terms(row, column, add)` calls `add` with all
// that an element is the sum of, `got(row, column)` is what was computed.
template <class Terms, class Got>
static double compare(const char* what, size_t rows, size_t columns, Terms terms, Got got) {
    double worst = 0;
    for (size_t row = 0; row < rows; row++)
        for (size_t column = 0; column < columns; column++) {
            double sum = 0, magnitude = 0;
            terms(row, column, [&](double term) {
                sum += term;
                magnitude += std::fabs(term);
            });
            const auto result = got(row, column);
            const double found = device::value(result), off = std::fabs(found - sum);
            const double allowed = device::rounding(result) * std::fabs(sum);
            const double error = off <= allowed ? 0 : (off - allowed) / (magnitude + 1e-30);
            // Not the other way round: NaN must fail.
            if (!(error <= TOLERANCE)) device::fail("%s[%zu, %zu] is %g, not %g", what, row, column, found, sum);
            worst = std::max(worst, error);
        }
    return worst;
}
