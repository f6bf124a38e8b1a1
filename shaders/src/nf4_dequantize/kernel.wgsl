// Decodes a whole NF4 weight into f32: one invocation takes one word of eight codes.
//
// Every buffer is declared read_write: buffers may share one allocation, in which a dispatch cannot mix read-only and
// writable bindings.
@group(0) @binding(0) var<storage, read_write> codes: array<u32>;
@group(0) @binding(1) var<storage, read_write> absmax: array<u32>;
@group(0) @binding(2) var<storage, read_write> header: array<u32>;
@group(0) @binding(3) var<storage, read_write> dense: array<f32>;

const NF4 = array<f32, 16>({{ nf4_table }});
const MAP: u32 = 4u;
const NESTED: u32 = 260u;

fn scale(block: u32) -> f32 {
    if header[2] == 0u {
        return bitcast<f32>(absmax[block]);
    }
    let code = (absmax[block / 4u] >> (8u * (block % 4u))) & 0xffu;
    return bitcast<f32>(header[MAP + code]) * bitcast<f32>(header[NESTED + block / 256u]) + bitcast<f32>(header[3]);
}

@compute @workgroup_size({{ threads }}, 1, 1)
fn nf4_dequantize(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    var table = NF4;
    let count = header[0];
    let word = id.y * groups.x * {{ threads }}u + id.x;
    let first = word * 8u;
    if first >= count {
        return;
    }
    // A block holds at least 32 elements, so the eight of one word never straddle two.
    let absmax_of_block = scale(first >> header[1]);
    let packed = codes[word];
    for (var i = 0u; i < min(8u, count - first); i++) {
        // Within each byte the first element is the high nibble.
        let shift = 8u * (i / 2u) + 4u * (1u - i % 2u);
        dense[first + i] = table[(packed >> shift) & 15u] * absmax_of_block;
    }
}
