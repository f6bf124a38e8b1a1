// A weight in NF4: its buffers, laid out as `halfbyte::ops::Nf4Primitive` says, and the decode of a word of eight codes.
//
// Every buffer is declared read_write: buffers may share one allocation, in which a dispatch cannot mix read-only and
// writable bindings.
@group(0) @binding(0) var<storage, read_write> codes: array<u32>;
@group(0) @binding(1) var<storage, read_write> absmax: array<u32>;
@group(0) @binding(2) var<storage, read_write> header: array<u32>;

const NF4 = array<f32, 16>({{ nf4_table }});
const MAP: u32 = 4u;
const NESTED: u32 = 260u;

// The levels, in memory that is fast to index: sixteen neighbouring words lie in as many banks.
var<workgroup> levels: array<f32, 16>;

// By the first sixteen invocations; a barrier must follow.
fn load_levels(local_index: u32) {
    var table = NF4;
    if local_index < 16u {
        levels[local_index] = table[local_index];
    }
}

fn block_scale(block: u32) -> f32 {
    if header[2] == 0u {
        return bitcast<f32>(absmax[block]);
    }
    let code = (absmax[block / 4u] >> (8u * (block % 4u))) & 0xffu;
    return bitcast<f32>(header[MAP + code]) * bitcast<f32>(header[NESTED + block / 256u]) + bitcast<f32>(header[3]);
}

// The scale of the eight elements of a word: a block holds at least 32, so they never straddle two.
fn word_scale(word: u32) -> f32 {
    return block_scale(word >> (header[1] - 3u));
}

// Within each byte the first element is the high nibble.
fn first_half(packed: u32) -> vec4<f32> {
    return vec4<f32>(
        levels[(packed >> 4u) & 15u],
        levels[packed & 15u],
        levels[(packed >> 12u) & 15u],
        levels[(packed >> 8u) & 15u],
    );
}

fn second_half(packed: u32) -> vec4<f32> {
    return first_half(packed >> 16u);
}
