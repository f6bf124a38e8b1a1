
// The gradient of the queries: a workgroup takes 64 of one head through the keys that they see, whose weights it computes again. With
// p the weights, dp = dy · vᵀ and delta = sum(dy ∘ y), the gradient of the scores is p ∘ (dp - delta) (Dao, arXiv:2307.08691, algorithm
// 2). The grid is heads by blocks of queries.

// First the logarithms of the sums of exponentials, then delta, each [tokens, heads].
@group(0) @binding(4) var<storage, read_write> sums: array<f32>;

@compute @workgroup_size(128, 1, 1)
fn attention_d_queries(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    lane = index;
    head = group.x;
    kv_head = head / (info.heads / info.kv_heads);
    let row = (info.first_block + group.y) * ROWS;
    if lane == 0u {
        range = vec2<u32>(bounds[row].x, bounds[min(row + ROWS, info.tokens) - 1u].y + 1u);
    }
    let limits = workgroupUniformLoad(&range);
    let first = row + 4u * row_group();
    var seen: array<vec2<u32>, 4>;
    var lse: vec4<f32>;
    var delta: vec4<f32>;
    for (var i = 0u; i < 4u; i++) {
        seen[i] = vec2<u32>(1u, 0u);
        if first + i < info.tokens {
            let at = (first + i) * info.heads + head;
            seen[i] = bounds[first + i];
            lse[i] = sums[at];
            delta[i] = sums[info.tokens * info.heads + at];
        }
    }
    var d_q: array<vec4<f32>, {{ registers }}>;
    for (var key = limits.x; key < limits.y; key += COLUMNS) {
        let scores = product_q_k(row, key);
        var d_scores = product_grad_v(row, key);
        let keys = key + 4u * column_group() + vec4<u32>(0u, 1u, 2u, 3u);
        for (var i = 0u; i < 4u; i++) {
            let visible = (keys >= vec4<u32>(seen[i].x)) & (keys <= vec4<u32>(seen[i].y));
            let score = bounded(scores[i]);
            let weights = select(vec4<f32>(), exp(score - lse[i]), visible);
            d_scores[i] = weights * (d_scores[i] - delta[i]) * slope(score) * info.scale;
        }
        put(d_scores);
        accumulate_k(key, &d_q);
    }
    for (var i = 0u; i < 4u; i++) {
        for (var part = 0u; part < PARTS; part++) {
            store_d_q(first + i, part * COLUMNS + 4u * column_group(), d_q[part * 4u + i]);
        }
    }
}
