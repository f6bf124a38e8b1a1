//! What a GPU refuses comes back as an error that says what it was: it must not end the program, and must not pass for a result.

use burn::tensor::{Tensor, TensorData};
use burn_cubecl::CubeBackend;
use burn_wgpu::WgpuRuntime;
use halfbyte::backends::{Wgpu, WgpuDevice};
use halfbyte::failure::{contain, listen};
use halfbyte::files::read;
use halfbyte::ops::Ops;
use halfbyte::{Error, Result};
use halfbyte_shaders::{Language, Source};

/// The backend without fusion.
type Plain = CubeBackend<WgpuRuntime, f32, i32, u32>;

const RASTERIZER: WgpuDevice = WgpuDevice::Cpu;

fn message(result: Result<Vec<f32>>) -> String {
    match result {
        Err(error @ Error::Device { .. }) => error.to_string(),
        other => panic!("not an error of the device: {other:?}"),
    }
}

// One test, since what a device's thread says is kept for the whole process.
#[test]
fn refusals_are_errors() {
    listen();

    let broken = Source::fill("broken", Language::Wgsl, 64, "fn broken( {}", &[]);
    // A wait in between must not take the refusal with it.
    for between in [|_: &WgpuDevice| (), <Plain as Ops>::finish, <Plain as Ops>::release_memory] {
        let plain = Tensor::<Plain, 1>::ones([64], &RASTERIZER);
        broken.clone().launch([1, 1, 1], &[&plain.clone().into_primitive().tensor()], &[]);
        between(&RASTERIZER);
        let found = message(pollster::block_on(read(plain)));
        assert!(found.contains("broken") && found.contains("expected"), "{found}");
        assert!(!found.to_lowercase().contains("backtrace"), "{found}");
    }

    let count = 40 << 20;
    let large = |values| Tensor::<Plain, 1>::from_data(TensorData::new(values, [count]), &RASTERIZER);
    let found = message(pollster::block_on(read(large(vec![1.0f32; count]))));
    assert!(found.contains(&format!("{}", 4 * count)), "{found}");

    // The device goes on.
    let sum = pollster::block_on(read(Tensor::<Wgpu, 1>::ones([64], &RASTERIZER).sum()));
    assert_eq!(sum.expect("a device that works"), [64.0]);

    // Under fusion a request for too much memory ends in a panic of the thread that asks.
    let ones = || Tensor::<Wgpu, 1>::from_data(TensorData::new(vec![1.0f32; count], [count]), &RASTERIZER);
    let found = message(contain("rasterizer", || pollster::block_on(read(ones().sum()))).and_then(|result| result));
    assert!(found.contains(&format!("{}", 4 * count)), "{found}");
}
