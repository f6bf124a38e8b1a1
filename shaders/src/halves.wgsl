// Numbers of 16 bits in f32, by integers: an adapter may lack their types.

fn bits_of_bf16(half: u32) -> u32 {
    return half << 16u;
}

fn bits_of_f16(half: u32) -> u32 {
    let sign = (half & 0x8000u) << 16u;
    let exponent = (half >> 10u) & 31u;
    let fraction = half & 0x3ffu;
    if exponent > 0u {
        return sign | (select(exponent + 112u, 255u, exponent == 31u) << 23u) | (fraction << 13u);
    }
    if fraction == 0u {
        return sign;
    }
    // fraction * 2^-24, its leading bit moved out.
    let leading = firstLeadingBit(fraction);
    return sign | ((leading + 103u) << 23u) | ((fraction << (23u - leading)) & 0x7fffffu);
}
