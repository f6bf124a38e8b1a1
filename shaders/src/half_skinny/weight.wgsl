// A weight in 16 bits, for the kernel that reads one in 4 bits (`weight.wgsl`): a word is eight elements, and there are no scales.
@group(0) @binding(0) var<storage, read_write> codes: array<vec4<u32>>;

fn load_levels(local_index: u32) {}

fn word_scale(word: u32) -> f32 {
    return 1.0;
}

fn four(words: vec2<u32>) -> vec4<f32> {
    return vec4<f32>(
        bitcast<f32>(bits_of_{{ dtype }}(words.x & 0xffffu)),
        bitcast<f32>(bits_of_{{ dtype }}(words.x >> 16u)),
        bitcast<f32>(bits_of_{{ dtype }}(words.y & 0xffffu)),
        bitcast<f32>(bits_of_{{ dtype }}(words.y >> 16u)),
    );
}

fn first_half(packed: vec4<u32>) -> vec4<f32> {
    return four(packed.xy);
}

fn second_half(packed: vec4<u32>) -> vec4<f32> {
    return four(packed.zw);
}
