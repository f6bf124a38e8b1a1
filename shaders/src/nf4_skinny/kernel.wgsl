// y = x · Wᵀ for a few rows of x, bound by reading W: every packed word is read once, by one invocation, for all rows. With
// a branch beside the weight, y = x · Wᵀ + scaling · low · Bᵀ.
// A workgroup makes four output features; the grid is as many workgroups as that takes, in x and y. Text before this reads the weight, a word of
// eight elements at a time: `weight.wgsl` one in 4 bits, `half_skinny/weight.wgsl` one in 16.
@group(0) @binding({{ x_binding }}) var<storage, read_write> x: array<vec4<f32>>;
@group(0) @binding({{ y_binding }}) var<storage, read_write> y: array<f32>;
{{ branch_buffers }}
struct Info {
    rows: u32,
    out: u32,
    // A multiple of eight.
    input: u32,
    unused: u32,
    // Of the branch.
    rank: u32,
    scaling: f32,
}
@group(0) @binding({{ info_binding }}) var<uniform> info: Info;

const ROWS: u32 = {{ rows }}u;
const THREADS: u32 = {{ threads }}u;

// Sums on their way between invocations; a component is one of the four features.
var<workgroup> shared_sums: array<vec4<f32>, {{ threads }}>;

@compute @workgroup_size({{ threads }}, 1, 1)
fn {{ entry }}(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    {{ subgroup_inputs }}
) {
    load_levels(lane);
    workgroupBarrier();
    let rows = info.rows;
    let words = info.input / 8u;
    let first = (group.y * groups.x + group.x) * 4u;
    if first >= info.out {
        return;
    }
    // The last workgroup may have less than four features; it computes the last one again and does not store it.
    var begin: array<u32, 4>;
    for (var f = 0u; f < 4u; f++) {
        begin[f] = min(first + f, info.out - 1u) * words;
    }
    var sums: array<vec4<f32>, {{ rows }}>;
    for (var word = lane; word < words; word += THREADS) {
        var left: array<vec4<f32>, 4>;
        var right: array<vec4<f32>, 4>;
        for (var f = 0u; f < 4u; f++) {
            let scale = word_scale(begin[f] + word);
            let packed = codes[begin[f] + word];
            left[f] = first_half(packed) * scale;
            right[f] = second_half(packed) * scale;
        }
        for (var row = 0u; row < ROWS; row++) {
            // Rows beyond the last are read again, which costs less than a branch.
            let at = (min(row, rows - 1u) * words + word) * 2u;
            let a = x[at];
            let b = x[at + 1u];
            sums[row] += vec4<f32>(
                dot(a, left[0]) + dot(b, right[0]),
                dot(a, left[1]) + dot(b, right[1]),
                dot(a, left[2]) + dot(b, right[2]),
                dot(a, left[3]) + dot(b, right[3]),
            );
        }
    }
    {{ branch }}
    for (var row = 0u; row < ROWS; row++) {
        {{ reduce }}
        if lane == 0u && row < rows {
            for (var f = 0u; f < min(4u, info.out - first); f++) {
                y[row * info.out + first + f] = total[f];
            }
        }
        workgroupBarrier();
    }
}
