
// A tile of {{ a }} · {{ b }}ᵀ: four rows of this invocation's, each in its four columns.
fn product_{{ a }}_{{ b }}(row: u32, column: u32) -> array<vec4<f32>, 4> {
    var sums: array<vec4<f32>, 4>;
    for (var start = 0u; start < HEAD_DIM; start += DEPTH) {
        workgroupBarrier();
        let group = lane / 4u;
        let deep = lane % 4u * 4u;
        if group < PITCH {
            var loaded: array<vec4<f32>, 4>;
            for (var i = 0u; i < 4u; i++) {
                if group < ROW_GROUPS {
                    loaded[i] = fetch_{{ a }}(row + 4u * group + i, start + deep);
                } else {
                    loaded[i] = fetch_{{ b }}(column + 4u * (group - ROW_GROUPS) + i, start + deep);
                }
            }
            for (var k = 0u; k < 4u; k++) {
                let at = (deep + k) * PITCH + group;
                operands[at] = vec4<f32>(loaded[0][k], loaded[1][k], loaded[2][k], loaded[3][k]);
            }
        }
        workgroupBarrier();
        for (var k = 0u; k < DEPTH; k++) {
            let a = operands[k * PITCH + row_group()];
            let b = operands[k * PITCH + ROW_GROUPS + column_group()];
            for (var i = 0u; i < 4u; i++) {
                sums[i] += a[i] * b;
            }
        }
    }
    return sums;
}
