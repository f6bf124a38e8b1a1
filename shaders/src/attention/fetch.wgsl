
@group(0) @binding({{ binding }}) var<storage, read_write> {{ name }}: array<{{ element }}>;

// Four elements of a head in a row; zeros outside.
fn fetch_{{ name }}(row: u32, column: u32) -> vec4<f32> {
    if row >= {{ rows }} || column >= HEAD_DIM {
        return vec4<f32>();
    }
    let at = (row * {{ heads }} + {{ head }}) * HEAD_DIM + column;
    {{ read }}
}
