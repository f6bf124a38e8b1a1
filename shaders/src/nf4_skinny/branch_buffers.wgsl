// [rows, rank]: the rows of x through the branch's first matrix; [out, rank]: its second one.
@group(0) @binding(5) var<storage, read_write> low: array<f32>;
@group(0) @binding(6) var<storage, read_write> b: array<f32>;
