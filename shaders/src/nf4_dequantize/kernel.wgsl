// Decodes a whole NF4 weight into f32: one invocation takes one word of eight codes.
@group(0) @binding(3) var<storage, read_write> dense: array<f32>;

@compute @workgroup_size({{ threads }}, 1, 1)
fn nf4_dequantize(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    load_levels(lane);
    workgroupBarrier();
    let count = header[0];
    let word = (group.y * groups.x + group.x) * {{ threads }}u + lane;
    let first = word * 8u;
    if first >= count {
        return;
    }
    let scale = word_scale(word);
    let packed = codes[word];
    var values = array<vec4<f32>, 2>(first_half(packed) * scale, second_half(packed) * scale);
    for (var i = 0u; i < min(8u, count - first); i++) {
        dense[first + i] = values[i / 4u][i % 4u];
    }
}
