shared_sums[lane] = sums[row];
        workgroupBarrier();
        for (var half = THREADS / 2u; half > 0u; half /= 2u) {
            if lane < half {
                shared_sums[lane] += shared_sums[lane + half];
            }
            workgroupBarrier();
        }
        var total = shared_sums[0];
