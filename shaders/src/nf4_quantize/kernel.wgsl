// f32, bf16 or f16 to NF4, bit for bit what engine/nf4/src/quantize.rs computes. One invocation takes one block.
//
// WGSL lets a division be off and numbers below the smallest normal one be flushed, so bits are compared and divided here, as
// integers; what is left to floats are products of numbers near one, whose rounding WGSL prescribes.
// A weight that is NaN or infinite makes the scale of its block NaN or infinite: the caller must look there.
@group(0) @binding(0) var<storage, read_write> weights: array<u32>;
@group(0) @binding(1) var<storage, read_write> codes: array<u32>;
@group(0) @binding(2) var<storage, read_write> absmax: array<u32>;
// Elements, elements of a block.
@group(0) @binding(3) var<uniform> info: vec4<u32>;

// The midpoints between neighbouring levels.
const BOUNDS = array<f32, 15>({{ bounds }});
// The bits of the smallest scale that is divided by.
const TINY: u32 = {{ tiny }}u;
const INFINITE: u32 = 0x7f800000u;
const ZERO_CODE: u32 = 7u;

// The bits in f32 of the weight at a place.
fn bits_at(at: u32) -> u32 {
    {{ bits_at }}
}

// mantissa * 2^exponent, the mantissa from 2^23 to 2^24.
struct Number {
    mantissa: u32,
    exponent: i32,
}

// A positive number from its bits.
fn number(bits: u32) -> Number {
    let fraction = bits & 0x7fffffu;
    if bits >> 23u > 0u {
        return Number(fraction | 0x800000u, i32(bits >> 23u) - 150);
    }
    let shift = 23u - firstLeadingBit(fraction);
    return Number(fraction << shift, -149 - i32(shift));
}

// floor(2^23 * dividend / divisor) and the remainder; the dividend is from one to two divisors.
fn divide(dividend: u32, divisor: u32) -> vec2<u32> {
    var quotient = 1u;
    var rest = dividend - divisor;
    for (var i = 0u; i < 23u; i++) {
        rest <<= 1u;
        quotient <<= 1u;
        if rest >= divisor {
            rest -= divisor;
            quotient |= 1u;
        }
    }
    return vec2<u32>(quotient, rest);
}

// To the nearest, the even one of two.
fn round_quotient(quotient: u32, rest: u32, divisor: u32) -> u32 {
    let up = 2u * rest > divisor || (2u * rest == divisor && (quotient & 1u) == 1u);
    return quotient + u32(up);
}

fn power_of_two(exponent: i32) -> f32 {
    return bitcast<f32>(u32(exponent + 127) << 23u);
}

// The reciprocal rounded to f32, times 2^(23 + exponent), which brings it near one.
fn reciprocal(scale: Number) -> f32 {
    if scale.mantissa == 0x800000u {
        return 1.0;
    }
    let parts = divide(0x1000000u, scale.mantissa);
    var quotient = round_quotient(parts.x, parts.y, scale.mantissa);
    // The reciprocal of a huge number has no room for all its digits.
    if scale.exponent > 102 {
        let shift = u32(scale.exponent - 102);
        let kept = parts.x >> shift;
        let lost = parts.x & ((1u << shift) - 1u);
        let half = 1u << (shift - 1u);
        let up = lost > half || (lost == half && (parts.y > 0u || (kept & 1u) == 1u));
        quotient = (kept + u32(up)) << shift;
    }
    return f32(quotient) * power_of_two(-24);
}

// The code of the weight with these bits.
fn code(bits: u32, scale: Number, inverse: f32, whole: bool) -> u32 {
    if (bits & 0x7fffffffu) == 0u {
        return ZERO_CODE;
    }
    let weight = number(bits & 0x7fffffffu);
    var down = scale.exponent - weight.exponent;
    if down > 30 {
        return ZERO_CODE;
    }
    var scaled: f32;
    if whole {
        // The weight moved near one as the scale was, times the reciprocal.
        scaled = bitcast<f32>((u32(127 - down) << 23u) | (weight.mantissa & 0x7fffffu)) * inverse;
    } else {
        var dividend = weight.mantissa;
        if dividend < scale.mantissa {
            dividend <<= 1u;
            down += 1;
        }
        let parts = divide(dividend, scale.mantissa);
        scaled = f32(round_quotient(parts.x, parts.y, scale.mantissa)) * power_of_two(-23 - down);
    }
    if bits >> 31u == 1u {
        scaled = -scaled;
    }
    var bounds = BOUNDS;
    var code = 0u;
    for (var i = 0u; i < 15u; i++) {
        code += u32(bounds[i] < scaled);
    }
    return code;
}

@compute @workgroup_size({{ threads }}, 1, 1)
fn nf4_quantize(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let block = (group.y * groups.x + group.x) * {{ threads }}u + lane;
    let first = block * info.y;
    if block >= (info.x + info.y - 1u) / info.y {
        return;
    }
    let end = first + min(info.y, info.x - first);
    // Of numbers that are not negative the bits are in the same order, and NaN comes out on top.
    var largest = 0u;
    for (var i = first; i < end; i++) {
        largest = max(largest, bits_at(i) & 0x7fffffffu);
    }
    let whole = end - first == info.y;
    absmax[block] = select(max(largest, TINY), largest, whole);
    if largest >= INFINITE {
        return;
    }
    let scale = number(max(largest, TINY));
    let inverse = reciprocal(scale);
    for (var at = first; at < end; at += 8u) {
        var packed = 0u;
        // An odd end leaves half a byte, which holds the code of zero.
        for (var i = 0u; i < min(8u, end - at + (end - at) % 2u); i++) {
            var nibble = ZERO_CODE;
            if at + i < end {
                nibble = code(bits_at(at + i), scale, inverse, whole);
            }
            packed |= nibble << (8u * (i / 2u) + 4u * (1u - i % 2u));
        }
        codes[at / 8u] = packed;
    }
}
