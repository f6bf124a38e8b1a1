// Decodes elements of an NF4 weight: one invocation takes one word of eight codes.
@group(0) @binding(3) var<storage, read_write> dense: array<{{ element }}>;
// The first element, how many, and the word of the weight at which `codes` begins.
@group(0) @binding(4) var<uniform> range: vec4<u32>;

@compute @workgroup_size({{ threads }}, 1, 1)
fn nf4_dequantize(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    load_levels(lane);
    workgroupBarrier();
    let word = range.x / 8u + (group.y * groups.x + group.x) * {{ threads }}u + lane;
    let begin = max(word * 8u, range.x);
    let end = min(word * 8u + 8u, range.x + range.y);
    if begin >= end {
        return;
    }
    let scale = word_scale(word);
    let packed = codes[word - range.z];
    var values = array<vec4<f32>, 2>(first_half(packed) * scale, second_half(packed) * scale);
    for (var at = begin; at < end; at++) {
        dense[at - range.x] = {{ element }}(values[at % 8u / 4u][at % 4u]);
    }
}
