
// Attention without its scores in memory: a workgroup takes 64 queries of one head through the keys that they see, 32 at a time, and
// keeps of what it saw the largest score and the sum of the exponentials of each query (online softmax: Milakov and Gimelshein,
// arXiv:1805.02867; Dao, arXiv:2307.08691, algorithm 1). The grid is heads by blocks of queries.

// The logarithm of the sum of exponentials, for the gradients: [tokens, heads].
@group(0) @binding(5) var<storage, read_write> lse: array<f32>;

@compute @workgroup_size(128, 1, 1)
fn attention_forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
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
    for (var i = 0u; i < 4u; i++) {
        // A row that is none sees nothing.
        seen[i] = vec2<u32>(1u, 0u);
        if first + i < info.tokens {
            seen[i] = bounds[first + i];
        }
    }
    var sums: array<vec4<f32>, {{ registers }}>;
    var largest = vec4<f32>(HIDDEN);
    var total = vec4<f32>();
    for (var key = limits.x; key < limits.y; key += COLUMNS) {
        var scores = product_q_k(row, key);
        let keys = key + 4u * column_group() + vec4<u32>(0u, 1u, 2u, 3u);
        var top: vec4<f32>;
        for (var i = 0u; i < 4u; i++) {
            let visible = (keys >= vec4<u32>(seen[i].x)) & (keys <= vec4<u32>(seen[i].y));
            scores[i] = select(vec4<f32>(HIDDEN), bounded(scores[i]), visible);
            top[i] = max(max(scores[i].x, scores[i].y), max(scores[i].z, scores[i].w));
        }
        workgroupBarrier();
        operands[column_group() * ROW_GROUPS + row_group()] = top;
        workgroupBarrier();
        top = largest;
        for (var c = 0u; c < COLUMN_GROUPS; c++) {
            top = max(top, operands[c * ROW_GROUPS + row_group()]);
        }
        // What a row gathered before it saw a key is multiplied by zero when it sees the first.
        let shrunk = exp(largest - top);
        largest = top;
        total *= shrunk;
        for (var i = 0u; i < 4u; i++) {
            scores[i] = exp(scores[i] - top[i]);
            total[i] += scores[i].x + scores[i].y + scores[i].z + scores[i].w;
            for (var part = 0u; part < PARTS; part++) {
                sums[part * 4u + i] *= shrunk[i];
            }
        }
        put(scores);
        accumulate_v(key, &sums);
    }
    workgroupBarrier();
    operands[column_group() * ROW_GROUPS + row_group()] = total;
    workgroupBarrier();
    total = vec4<f32>();
    for (var c = 0u; c < COLUMN_GROUPS; c++) {
        total += operands[c * ROW_GROUPS + row_group()];
    }
    for (var i = 0u; i < 4u; i++) {
        for (var part = 0u; part < PARTS; part++) {
            store_y(first + i, part * COLUMNS + 4u * column_group(), sums[part * 4u + i] / total[i]);
        }
        if column_group() == 0u && first + i < info.tokens {
            lse[(first + i) * info.heads + head] = largest[i] + log(total[i]);
        }
    }
}
