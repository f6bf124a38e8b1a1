let sum = subgroupAdd(sums[row]);
        if subgroup_lane == 0u {
            shared_sums[lane / subgroup_size] = sum;
        }
        workgroupBarrier();
        var total = shared_sums[0];
        for (var i = 1u; i < THREADS / subgroup_size; i++) {
            total += shared_sums[i];
        }
