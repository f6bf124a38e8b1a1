
// Adds the product of the tile and the rows of {{ name }} from `first` on: four rows of this invocation's, each in four columns of
// every part of a head.
fn accumulate_{{ name }}(first: u32, sums: ptr<function, array<vec4<f32>, {{ registers }}>>) {
    for (var part = 0u; part < PARTS; part++) {
        for (var strip = 0u; strip < COLUMNS; strip += STRIP) {
            workgroupBarrier();
            for (var i = lane; i < 256u; i += 128u) {
                let row = first + strip + i / COLUMN_GROUPS;
                operands[i] = fetch_{{ name }}(row, part * COLUMNS + i % COLUMN_GROUPS * 4u);
            }
            workgroupBarrier();
            for (var k = 0u; k < STRIP; k++) {
                let a = tile[(strip + k) * ROW_GROUPS + row_group()];
                let b = operands[k * COLUMN_GROUPS + column_group()];
                for (var i = 0u; i < 4u; i++) {
                    sums[part * 4u + i] += a[i] * b;
                }
            }
        }
    }
}
