// The product of many rows with a weight that is decoded on its way into the tile: y = x · Wᵀ, or, for the gradient of an
// input, y = x · W. A workgroup of 128 makes 64 rows of 64 columns, each invocation 8 x 4 of them in registers; the grid is
// column tiles by row tiles. The weight's input features are a multiple of eight, its output features for the gradient of four.
@group(0) @binding(3) var<storage, read_write> x: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;
// Rows of x, output features, input features.
@group(0) @binding(5) var<uniform> info: vec4<u32>;

const GRADIENT: bool = {{ gradient }};
const TILE: u32 = 64u;
const DEPTH: u32 = 16u;
// Two more than a tile, so that neighbours in depth lie in different banks.
const PITCH: u32 = 66u;

var<workgroup> x_tile: array<f32, 1056>;
var<workgroup> w_tile: array<f32, 1056>;

// Four neighbours in depth of one row of x, zero outside.
fn load_x(row: u32, depth: u32, width: u32) -> vec4<f32> {
    if row < info.x && depth < width {
        return x[(row * width + depth) / 4u];
    }
    return vec4<f32>();
}

@compute @workgroup_size(128, 1, 1)
fn nf4_matmul(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    load_levels(lane);
    workgroupBarrier();
    let columns = select(info.y, info.z, GRADIENT);
    let width = select(info.z, info.y, GRADIENT);
    let first_row = group.y * TILE;
    let first_column = group.x * TILE;
    // The place of this invocation's word in the weight's tile: eight neighbours in depth of one column, or for the gradient
    // eight columns of one depth.
    var column = lane / 2u;
    var deep = (lane % 2u) * 8u;
    if GRADIENT {
        column = (lane % 8u) * 8u;
        deep = lane / 8u;
    }
    var sums: array<vec4<f32>, 8>;
    for (var depth = 0u; depth < width; depth += DEPTH) {
        for (var i = 0u; i < 2u; i++) {
            let row = lane / 4u + i * 32u;
            let at = (lane % 4u) * 4u;
            let values = load_x(first_row + row, depth + at, width);
            for (var j = 0u; j < 4u; j++) {
                x_tile[(at + j) * PITCH + row] = values[j];
            }
        }
        var left = vec4<f32>();
        var right = vec4<f32>();
        if first_column + column < columns && depth + deep < width {
            var element = (first_column + column) * width + depth + deep;
            if GRADIENT {
                element = (depth + deep) * columns + first_column + column;
            }
            let packed = codes[element / 8u];
            let scale = word_scale(element / 8u);
            left = first_half(packed) * scale;
            right = second_half(packed) * scale;
        }
        for (var j = 0u; j < 4u; j++) {
            if GRADIENT {
                w_tile[deep * PITCH + column + j] = left[j];
                w_tile[deep * PITCH + column + 4u + j] = right[j];
            } else {
                w_tile[(deep + j) * PITCH + column] = left[j];
                w_tile[(deep + 4u + j) * PITCH + column] = right[j];
            }
        }
        workgroupBarrier();
        for (var k = 0u; k < DEPTH; k++) {
            // Columns sixteen apart: neighbouring invocations read, and later write, neighbouring words.
            let w = k * PITCH + lane % 16u;
            let weights = vec4<f32>(w_tile[w], w_tile[w + 16u], w_tile[w + 32u], w_tile[w + 48u]);
            for (var i = 0u; i < 8u; i++) {
                sums[i] += x_tile[k * PITCH + (lane / 16u) * 8u + i] * weights;
            }
        }
        workgroupBarrier();
    }
    for (var i = 0u; i < 8u; i++) {
        let row = first_row + (lane / 16u) * 8u + i;
        for (var j = 0u; j < 4u; j++) {
            let at = first_column + lane % 16u + j * 16u;
            if row < info.x && at < columns {
                y[row * columns + at] = sums[i][j];
            }
        }
    }
}
