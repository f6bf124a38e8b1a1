// Dropout: each invocation takes eight elements, whose random bits are the halves of the words of one block of Philox4x32-10.
@group(0) @binding(0) var<storage, read_write> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;
// How many elements, the key, and the bits below which one is dropped; what others are multiplied by.
@group(0) @binding(2) var<uniform> info: array<vec4<u32>, 2>;

// The upper half of a product.
fn high(a: u32, b: u32) -> u32 {
    let a0 = a & 0xffffu;
    let a1 = a >> 16u;
    let b0 = b & 0xffffu;
    let b1 = b >> 16u;
    let low = a1 * b0;
    let other = a0 * b1;
    let carried = ((a0 * b0) >> 16u) + (low & 0xffffu) + (other & 0xffffu);
    return a1 * b1 + (low >> 16u) + (other >> 16u) + (carried >> 16u);
}

fn philox(block: u32, first_key: vec2<u32>) -> vec4<u32> {
    var counter = vec4<u32>(block, 0u, 0u, 0u);
    var key = first_key;
    for (var round = 0; round < 10; round++) {
        let first = counter.x;
        let second = counter.z;
        counter = vec4<u32>(
            high(0xcd9e8d57u, second) ^ counter.y ^ key.x,
            0xcd9e8d57u * second,
            high(0xd2511f53u, first) ^ counter.w ^ key.y,
            0xd2511f53u * first,
        );
        key += vec2<u32>(0x9e3779b9u, 0xbb67ae85u);
    }
    return counter;
}

@compute @workgroup_size({{ threads }}, 1, 1)
fn dropout(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let block = (group.y * groups.x + group.x) * {{ threads }}u + lane;
    var words = philox(block, info[0].yz);
    let kept = bitcast<f32>(info[1].x);
    // Eight invocations take 64 elements, neighbours of them at a time.
    let first = 64u * (block / 8u) + block % 8u;
    for (var i = 0u; i < 8u; i++) {
        let at = first + 8u * i;
        if (at < info[0].x) {
            let bits = (words[i / 2u] >> (16u * (i % 2u))) & 0xffffu;
            y[at] = select(x[at] * kept, 0.0, bits < info[0].w);
        }
    }
}
