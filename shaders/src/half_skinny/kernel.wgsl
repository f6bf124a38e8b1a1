// y = x · Wᵀ for a few rows of x and a weight in 16 bits, bound by reading W: every eight elements are read once, by one invocation,
// for all rows.
// A workgroup makes four output features; the grid is as many workgroups as that takes, in x and y.
@group(0) @binding(0) var<storage, read_write> weight: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read_write> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
// Rows, output features, input features: a multiple of eight.
@group(0) @binding(3) var<uniform> info: vec4<u32>;

const ROWS: u32 = {{ rows }}u;
const THREADS: u32 = {{ threads }}u;

// Sums on their way between invocations; a component is one of the four features.
var<workgroup> shared_sums: array<vec4<f32>, {{ threads }}>;

fn low(word: u32) -> f32 {
    return bitcast<f32>(bits_of_{{ dtype }}(word & 0xffffu));
}

fn high(word: u32) -> f32 {
    return bitcast<f32>(bits_of_{{ dtype }}(word >> 16u));
}

fn four(words: vec2<u32>) -> vec4<f32> {
    return vec4<f32>(low(words.x), high(words.x), low(words.y), high(words.y));
}

@compute @workgroup_size({{ threads }}, 1, 1)
fn half_skinny(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    {{ subgroup_inputs }}
) {
    let rows = info.x;
    let eights = info.z / 8u;
    let first = (group.y * groups.x + group.x) * 4u;
    if first >= info.y {
        return;
    }
    // The last workgroup may have less than four features; it computes the last one again and does not store it.
    var begin: array<u32, 4>;
    for (var f = 0u; f < 4u; f++) {
        begin[f] = min(first + f, info.y - 1u) * eights;
    }
    var sums: array<vec4<f32>, {{ rows }}>;
    for (var eight = lane; eight < eights; eight += THREADS) {
        var left: array<vec4<f32>, 4>;
        var right: array<vec4<f32>, 4>;
        for (var f = 0u; f < 4u; f++) {
            let words = weight[begin[f] + eight];
            left[f] = four(words.xy);
            right[f] = four(words.zw);
        }
        for (var row = 0u; row < ROWS; row++) {
            // Rows beyond the last are read again, which costs less than a branch.
            let at = (min(row, rows - 1u) * eights + eight) * 2u;
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
    for (var row = 0u; row < ROWS; row++) {
        {{ reduce }}
        if lane == 0u && row < rows {
            for (var f = 0u; f < min(4u, info.y - first); f++) {
                y[row * info.y + first + f] = total[f];
            }
        }
        workgroupBarrier();
    }
}
