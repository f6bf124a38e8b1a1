// The product of many rows with a weight that is decoded on its way into the tile: y = x · Wᵀ, or, for the gradient of an
// input, y = x · W. A workgroup of 128 makes 64 rows of 64 columns, each invocation 8 x 4 of them in registers; the grid is
// column tiles by row tiles. The weight's input features are a multiple of eight, its output features for the gradient of four.
//
// Operands are of type Scalar, f32 or f16; sums are in f32 whatever it is.
alias Scalar = {{ scalar }};

@group(0) @binding(3) var<storage, read_write> x: array<vec4<Scalar>>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;
// Rows of x, output features, input features.
@group(0) @binding(5) var<uniform> info: vec4<u32>;

const GRADIENT: bool = {{ gradient }};
const TILE: u32 = 64u;
const DEPTH: u32 = 16u;
// Two more than a tile, so that neighbours in depth lie in different banks.
const PITCH: u32 = 66u;

// An element holds two neighbours in depth, which are read at once: of f16 in one bank.
var<workgroup> x_tile: array<vec2<Scalar>, 528>;
var<workgroup> w_tile: array<vec2<Scalar>, 528>;

// Four neighbours in depth of one row of x, zero outside.
fn load_x(row: u32, depth: u32, width: u32) -> vec4<Scalar> {
    if row < info.x && depth < width {
        return x[(row * width + depth) / 4u];
    }
    return vec4<Scalar>();
}

@compute @workgroup_size(128, 1, 1)
fn nf4_matmul(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    load_levels(lane);
    workgroupBarrier();
    let columns = select(info.y, info.z, GRADIENT);
    let width = select(info.z, info.y, GRADIENT);
    let first_row = group.y * TILE;
    let first_column = group.x * TILE;
    // The place in the weight's tile of the eight elements that this invocation decodes: eight neighbours in depth of one
    // column, or for the gradient two neighbours in depth of four columns.
    var column = lane / 2u;
    var deep = (lane % 2u) * 8u;
    if GRADIENT {
        column = (lane % 16u) * 4u;
        deep = (lane / 16u) * 2u;
    }
    var sums: array<vec4<f32>, 8>;
    for (var depth = 0u; depth < width; depth += DEPTH) {
        for (var i = 0u; i < 2u; i++) {
            let row = lane / 4u + i * 32u;
            let values = load_x(first_row + row, depth + (lane % 4u) * 4u, width);
            let at = (lane % 4u) * 2u * PITCH + row;
            x_tile[at] = values.xy;
            x_tile[at + PITCH] = values.zw;
        }
        var left = vec4<f32>();
        var right = vec4<f32>();
        if first_column + column < columns && depth + deep < width {
            if GRADIENT {
                // Half a word in each of two rows, whose number is even.
                let element = (depth + deep) * columns + first_column + column;
                let below = element + columns;
                let shift = 4u * (element % 8u);
                left = first_half(codes[element / 8u] >> shift) * word_scale(element / 8u);
                right = first_half(codes[below / 8u] >> shift) * word_scale(below / 8u);
            } else {
                let word = ((first_column + column) * width + depth + deep) / 8u;
                let packed = codes[word];
                let scale = word_scale(word);
                left = first_half(packed) * scale;
                right = second_half(packed) * scale;
            }
        }
        let at = deep / 2u * PITCH + column;
        for (var j = 0u; j < 4u; j++) {
            if GRADIENT {
                w_tile[at + j] = vec2<Scalar>(vec2(left[j], right[j]));
            } else {
                let half = select(left, right, j >= 2u);
                w_tile[at + j * PITCH] = vec2<Scalar>(select(half.xy, half.zw, j % 2u == 1u));
            }
        }
        workgroupBarrier();
        for (var k = 0u; k < DEPTH / 2u; k++) {
            // Columns sixteen apart: neighbouring invocations read, and later write, neighbouring words.
            let at = k * PITCH + lane % 16u;
            let w = mat4x2<f32>(
                vec2<f32>(w_tile[at]),
                vec2<f32>(w_tile[at + 16u]),
                vec2<f32>(w_tile[at + 32u]),
                vec2<f32>(w_tile[at + 48u]),
            );
            for (var i = 0u; i < 8u; i++) {
                sums[i] += vec2<f32>(x_tile[k * PITCH + (lane / 16u) * 8u + i]) * w;
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
