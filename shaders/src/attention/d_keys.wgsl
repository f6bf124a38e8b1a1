
// The gradients of keys and values: a workgroup takes 32 of one key head through the queries that see them, of all heads that share the
// key head, so that each result is written once. See d_queries.wgsl for the formulas. The grid is key heads by blocks of keys.

// First the logarithms of the sums of exponentials, then delta, each [tokens, heads].
@group(0) @binding(4) var<storage, read_write> sums: array<f32>;

// The first query whose own key is `key` or later.
fn first_query(key: u32) -> u32 {
    var low = 0u;
    var high = info.tokens;
    while low < high {
        let middle = (low + high) / 2u;
        if bounds[middle].y < key {
            low = middle + 1u;
        } else {
            high = middle;
        }
    }
    return low;
}

// One after the last query that sees `key` or one before.
fn end_of_queries(key: u32) -> u32 {
    var low = 0u;
    var high = info.tokens;
    while low < high {
        let middle = (low + high) / 2u;
        if bounds[middle].x <= key {
            low = middle + 1u;
        } else {
            high = middle;
        }
    }
    return low;
}

@compute @workgroup_size(128, 1, 1)
fn attention_d_keys(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    lane = index;
    kv_head = group.x;
    let row = (info.first_block + group.y) * ROWS;
    if lane == 0u {
        range = vec2<u32>(first_query(row), end_of_queries(row + ROWS - 1u));
    }
    let limits = workgroupUniformLoad(&range);
    let first = row + 4u * row_group();
    let shared_by = info.heads / info.kv_heads;
    var d_k: array<vec4<f32>, {{ registers }}>;
    var d_v: array<vec4<f32>, {{ registers }}>;
    for (var member = 0u; member < shared_by; member++) {
        head = kv_head * shared_by + member;
        for (var query = limits.x; query < limits.y; query += COLUMNS) {
            var weights = product_k_q(row, query);
            var scores: array<vec4<f32>, 4>;
            let queries = query + 4u * column_group();
            var begin = vec4<u32>(1u);
            var own = vec4<u32>(0u);
            var lse: vec4<f32>;
            var delta: vec4<f32>;
            for (var c = 0u; c < 4u; c++) {
                if queries + c < info.tokens {
                    let at = (queries + c) * info.heads + head;
                    begin[c] = bounds[queries + c].x;
                    own[c] = bounds[queries + c].y;
                    lse[c] = sums[at];
                    delta[c] = sums[info.tokens * info.heads + at];
                }
            }
            for (var i = 0u; i < 4u; i++) {
                let key = vec4<u32>(first + i);
                scores[i] = bounded(weights[i]);
                weights[i] = select(vec4<f32>(), exp(scores[i] - lse), (key >= begin) & (key <= own));
            }
            put(weights);
            accumulate_grad(query, &d_v);
            var d_scores = product_v_grad(row, query);
            for (var i = 0u; i < 4u; i++) {
                d_scores[i] = weights[i] * (d_scores[i] - delta) * slope(scores[i]) * info.scale;
            }
            put(d_scores);
            accumulate_q(query, &d_k);
        }
    }
    for (var i = 0u; i < 4u; i++) {
        for (var part = 0u; part < PARTS; part++) {
            store_d_k(first + i, part * COLUMNS + 4u * column_group(), d_k[part * 4u + i]);
            store_d_v(first + i, part * COLUMNS + 4u * column_group(), d_v[part * 4u + i]);
        }
    }
}
