//! Embedding and head: a row for each token.

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor, TensorData};

use super::indices;
use super::parameter::{Parameter, Shares};
use crate::ops::{ComputeDtype, Ops, Product, half_embedding, half_matmul, lasting, matmul, select_rows};

/// Rows of a part are a multiple of so many, for the products of GPUs ([`half_matmul`]).
const ALIGNMENT: usize = 64;

/// A matrix `[vocab, hidden]`: one parameter, or where the device holds none that large several of consecutive tokens, which are not
/// trained.
#[derive(Clone, Debug)]
pub struct Table<B: Backend> {
    /// Never none, and of as many rows each but the last.
    parts: Vec<Parameter<B>>,
}

impl<B: Backend> From<Parameter<B>> for Table<B> {
    fn from(whole: Parameter<B>) -> Self {
        Self { parts: vec![whole] }
    }
}

impl<B: Ops> Table<B> {
    /// Frozen values `[vocab, hidden]` in their type, in as many parts as the device needs.
    pub fn upload(data: TensorData, device: &B::Device) -> Self {
        Self::upload_within(data, B::largest_tensor(device), device)
    }

    /// [`upload`](Self::upload) in parts of at most `most` bytes, or of 64 rows where those are more.
    pub fn upload_within(data: TensorData, most: u64, device: &B::Device) -> Self {
        let frozen = |data| Parameter { value: lasting(data, device), trainable: false };
        if data.bytes.len() as u64 <= most {
            return frozen(data).into();
        }
        let ([_, columns], dtype) = (data.shape.dims(), data.dtype);
        let row = columns * dtype.size();
        let rows = (most as usize / row / ALIGNMENT * ALIGNMENT).max(ALIGNMENT);
        let part =
            |bytes: &[u8]| frozen(TensorData::from_bytes_vec(bytes.to_vec(), [bytes.len() / row, columns], dtype));
        Self { parts: data.bytes.chunks(rows * row).map(part).collect() }
    }

    /// `[vocab, hidden]`.
    pub fn dims(&self) -> [usize; 2] {
        let rows = self.parts.iter().map(|part| part.value.dims()[0]).sum();
        [rows, self.parts[0].value.dims()[1]]
    }

    /// What the values are held in.
    pub fn dtype(&self) -> DType {
        self.parts[0].value.dtype()
    }

    /// Where it is.
    pub fn device(&self) -> B::Device {
        self.parts[0].value.device()
    }

    /// Whether training changes it.
    pub fn trainable(&self) -> bool {
        self.parts.iter().any(|part| part.trainable)
    }

    /// Its parameters, nearly always one.
    pub fn parts(&self) -> &[Parameter<B>] {
        &self.parts
    }

    /// The same on a device that holds parts as large.
    pub(crate) fn on(&self, device: &B::Device) -> Self {
        Self { parts: self.parts.iter().map(|part| part.on(device)).collect() }
    }

    /// With `f(path, parameter)` in place of every part.
    pub fn map<C: Shares<B>>(&self, path: &str, f: &mut impl FnMut(&str, &Parameter<B>) -> Parameter<C>) -> Table<C> {
        Table { parts: self.parts.iter().map(|part| f(path, part)).collect() }
    }

    /// The rows of some tokens, in f32: `[tokens, hidden]`.
    pub fn rows(&self, tokens: &[u32]) -> Tensor<B, 2> {
        let (first, device) = (&self.parts[0], self.device());
        let rows_of = |part: &Parameter<B>, rows: &mut dyn Iterator<Item = i32>| {
            let (table, rows) = (part.value.clone(), indices(rows, &device));
            match table.dtype() {
                DType::F32 => select_rows(table, rows),
                _ => half_embedding(table, rows),
            }
        };
        if self.parts.len() == 1 || tokens.is_empty() {
            return rows_of(first, &mut tokens.iter().map(|token| *token as i32));
        }
        // Part by part, and then put back in the tokens' order.
        let at_once = first.value.dims()[0];
        let part_of = |i: &usize| (tokens[*i] as usize / at_once).min(self.parts.len() - 1);
        let mut order: Vec<usize> = (0..tokens.len()).collect();
        order.sort_by_key(part_of);
        let by_part = order.chunk_by(|a, b| part_of(a) == part_of(b)).map(|some| {
            let part = part_of(&some[0]);
            rows_of(&self.parts[part], &mut some.iter().map(|i| (tokens[*i] as usize - part * at_once) as i32))
        });
        let by_part = Tensor::cat(by_part.collect(), 0);
        let mut places = vec![0; order.len()];
        order.iter().enumerate().for_each(|(place, i)| places[*i] = place as i32);
        select_rows(by_part, indices(places.into_iter(), &device))
    }

    /// `x · Wᵀ` `[rows, vocab]` of f32 rows `[rows, hidden]`, rounded to `compute` where the table is held in it and the device can.
    pub fn logits(&self, x: Tensor<B, 2>, compute: ComputeDtype) -> Tensor<B, 2> {
        match self.parts.as_slice() {
            // It may be trained.
            [whole] if self.dtype() == DType::F32 => matmul(x, whole.value.clone().transpose()),
            parts => {
                let weight = parts.iter().map(|part| part.value.clone()).collect();
                half_matmul(x, weight, Product::Forward, compute)
            }
        }
    }
}
