//! What the host gives to a device arrives there, whichever way it takes.

use burn::tensor::{AllocationProperty, Bytes, DType, TensorData, TensorPrimitive};
use burn::tensor::{Int, Tensor};
use halfbyte::files::read_words;
use halfbyte::ops::Ops;
use pollster::block_on;

/// Words about as many as go in one piece, in several, and in more than are under way at a time on CUDA.
const COUNTS: [usize; 8] = [1, 1000, (1 << 18) - 4, 1 << 18, (1 << 18) + 1, 1 << 22, (1 << 22) + 4, (5 << 22) + 12];

/// The bytes in memory of their own, and shared as those of a mapped file are, from an odd place on.
fn held(values: &[u32]) -> [Bytes; 2] {
    let shared: Vec<u8> = [&[0; 4], bytemuck::cast_slice::<_, u8>(values)].concat();
    let shared = bytes::Bytes::from(shared).slice(4..);
    [Bytes::from_elems(values.to_vec()), Bytes::from_shared(shared, AllocationProperty::Other)]
}

/// Bits are the same on the device, of words and of floats in 16 bits.
pub fn uploads_arrive<B: Ops>(device: &B::Device) {
    for count in COUNTS {
        let values: Vec<u32> = (0..count as u32).map(|i| i.wrapping_mul(2_654_435_761)).collect();
        for bytes in held(&values) {
            let (words, arriving) = B::start_write_words(TensorData::from_bytes(bytes, [count], DType::U32), device);
            drop(arriving);
            let found = block_on(read_words(Tensor::<B, 1, Int>::from_primitive(words))).expect("words");
            assert!(found == values, "{count} words");
        }
        for bytes in held(&values) {
            let (floats, arriving) = B::start_write(TensorData::from_bytes(bytes, [2, count], DType::BF16), device);
            drop(arriving);
            let floats = Tensor::<B, 2>::from_primitive(TensorPrimitive::Float(floats)).into_data();
            assert!(bytemuck::cast_slice::<_, u8>(&values) == &*floats.bytes, "{count} pairs of bf16");
        }
    }
}

/// To wait for what arrives, or to let go what leaves, must not take with it what the device refused before.
#[cfg(feature = "gpu")]
pub fn uploads_hide_no_refusal<R: halfbyte_shaders::SourceRuntime>(device: &R::Device) {
    use burn_cubecl::CubeBackend;
    use halfbyte_shaders::{Language, Source};
    type Plain<R> = CubeBackend<R, f32, i32, u8>;

    let broken = Source::fill("broken", Language::Cuda, 64, "__global__ void broken( {}", &[]);
    for count in COUNTS {
        let tensor = Tensor::<Plain<R>, 1>::ones([64], device);
        broken.clone().launch([1, 1, 1], &[&tensor.clone().into_primitive().tensor()], &[]);
        let data = TensorData::new(vec![7u32; count], [count]);
        let (words, arriving) = Plain::<R>::start_write_words(data, device);
        drop(arriving);
        drop(Plain::<R>::start_read(tensor.clone().into_primitive().tensor()));
        drop(words);
        let found = block_on(halfbyte::files::read(tensor)).expect_err("the kernel does not compile").to_string();
        assert!(found.contains("broken"), "{count} words: {found}");
    }
}
