// Rows of a matrix in 16 bits, in f32. An invocation widens an element of the result.
@group(0) @binding(0) var<storage, read_write> matrix: array<u32>;
@group(0) @binding(1) var<storage, read_write> wide: array<f32>;
{{ rows }}
// Elements of the result, columns, the first row.
@group(0) @binding({{ info_binding }}) var<uniform> info: vec4<u32>;

@compute @workgroup_size({{ threads }}, 1, 1)
fn half_rows(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let at = (group.y * groups.x + group.x) * {{ threads }}u + lane;
    if at >= info.x {
        return;
    }
    let row = at / info.y;
    let place = {{ row }} * info.y + at % info.y;
    let half = (matrix[place / 2u] >> (16u * (place % 2u))) & 0xffffu;
    wide[at] = bitcast<f32>(bits_of_{{ dtype }}(half));
}
