// The branch is as many more inner elements as its rank, which take their places in the same sums.
    for (var k = lane; k < info.rank; k += THREADS) {
        var factors: vec4<f32>;
        for (var f = 0u; f < 4u; f++) {
            factors[f] = b[min(first + f, info.out - 1u) * info.rank + k] * info.scaling;
        }
        for (var row = 0u; row < ROWS; row++) {
            sums[row] += low[min(row, info.rows - 1u) * info.rank + k] * factors;
        }
    }
