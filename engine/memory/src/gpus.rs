//! Memory of well-known GPUs, as their vendors state it.

/// A GPU and its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// Product name.
    pub name: &'static str,
    /// Memory in GiB.
    pub gib: u64,
}

/// GPUs by rising memory.
pub const GPUS: [Gpu; 14] = [
    Gpu { name: "RTX 4060", gib: 8 },
    Gpu { name: "RTX 3060", gib: 12 },
    Gpu { name: "T4", gib: 16 },
    Gpu { name: "RTX 4080", gib: 16 },
    Gpu { name: "RTX 3090", gib: 24 },
    Gpu { name: "RTX 4090", gib: 24 },
    Gpu { name: "L4", gib: 24 },
    Gpu { name: "RTX 5090", gib: 32 },
    Gpu { name: "A100 40GB", gib: 40 },
    Gpu { name: "L40S", gib: 48 },
    Gpu { name: "A100 80GB", gib: 80 },
    Gpu { name: "H100", gib: 80 },
    Gpu { name: "H200", gib: 141 },
    Gpu { name: "MI300X", gib: 192 },
];

/// The GPUs whose whole memory holds `peak` bytes.
pub fn fitting(peak: u64) -> impl Iterator<Item = Gpu> {
    GPUS.into_iter().filter(move |gpu| gpu.gib << 30 >= peak)
}
