// What the attention kernels share: a workgroup of 128 works on tiles of scores, 4 x 4 of them an invocation.

// Of each query: the first key that it sees, and the last, which is its own.
@group(0) @binding({{ bounds }}) var<storage, read_write> bounds: array<vec2<u32>>;
struct Info {
    // Rows of the queries, and of the keys and values.
    tokens: u32,
    keys: u32,
    heads: u32,
    kv_heads: u32,
    // Of the scores; no cap where it is zero.
    scale: f32,
    softcap: f32,
    // The block of rows of the dispatch's first workgroups: a long attention takes several dispatches.
    first_block: u32,
    unused: u32,
}
@group(0) @binding({{ info }}) var<uniform> info: Info;

const HEAD_DIM: u32 = {{ head_dim }}u;
// A tile has four rows for each of these, and four columns.
const ROW_GROUPS: u32 = {{ row_groups }}u;
const COLUMN_GROUPS: u32 = {{ column_groups }}u;
const ROWS: u32 = 4u * ROW_GROUPS;
const COLUMNS: u32 = 4u * COLUMN_GROUPS;
// Elements of a head that a product of two tiles takes at once.
const DEPTH: u32 = 16u;
const PITCH: u32 = ROW_GROUPS + COLUMN_GROUPS;
// Rows of a matrix that fit into `operands` when as many of its columns are taken as a tile has.
const STRIP: u32 = 256u / COLUMN_GROUPS;
// How often a head is as wide as a tile.
const PARTS: u32 = (HEAD_DIM + COLUMNS - 1u) / COLUMNS;
// Stands in for minus infinity, and stays finite.
const HIDDEN: f32 = -1e30;

// Parts of the operands of a product: an element holds four rows, or four columns.
var<workgroup> operands: array<vec4<f32>, 384>;
// A tile of scores or their gradients, by column: an element holds four rows.
var<workgroup> tile: array<vec4<f32>, 512>;
// From where to where a loop goes whose limits lie in memory.
var<workgroup> range: vec2<u32>;

var<private> lane: u32;
var<private> head: u32;
var<private> kv_head: u32;

fn row_group() -> u32 { return lane / COLUMN_GROUPS; }
fn column_group() -> u32 { return lane % COLUMN_GROUPS; }

// Scores after scale and cap.
fn bounded(products: vec4<f32>) -> vec4<f32> {
    let scores = products * info.scale;
    if info.softcap == 0.0 {
        return scores;
    }
    // Beyond 20, tanh is one in f32, and in some drivers no number.
    return tanh(clamp(scores / info.softcap, vec4<f32>(-20.0), vec4<f32>(20.0))) * info.softcap;
}

// The derivative of the cap where it gave these scores.
fn slope(scores: vec4<f32>) -> vec4<f32> {
    if info.softcap == 0.0 {
        return vec4<f32>(1.0);
    }
    let ratio = scores / info.softcap;
    return 1.0 - ratio * ratio;
}

// Writes four rows of four columns each where `accumulate` reads them.
fn put(values: array<vec4<f32>, 4>) {
    for (var c = 0u; c < 4u; c++) {
        let column = vec4<f32>(values[0][c], values[1][c], values[2][c], values[3][c]);
        tile[(4u * column_group() + c) * ROW_GROUPS + row_group()] = column;
    }
}
