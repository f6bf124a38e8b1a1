
@group(0) @binding({{ binding }}) var<storage, read_write> {{ name }}: array<f32>;

// Four elements of a head in a row.
fn store_{{ name }}(row: u32, column: u32, values: vec4<f32>) {
    let at = (row * {{ heads }} + {{ head }}) * HEAD_DIM + column;
    for (var i = 0u; i < 4u; i++) {
        if row < {{ rows }} && column + i < HEAD_DIM {
            {{ name }}[at + i] = values[i];
        }
    }
}
