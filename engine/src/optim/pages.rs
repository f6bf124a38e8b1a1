//! Optimizer state in pages, one for each parameter: on the device up to a budget, beyond it in host memory.
//!
//! Pages are moved explicitly and not by a driver, so it works alike on every backend. Which page goes is [`Residency`]'s
//! rule; the optimizer visits parameters back and forth, so that what was used last is what is needed next.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use burn::tensor::backend::Backend;
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{DType, Shape, TensorMetadata};
use bytesize::ByteSize;
use halfbyte_memory::Residency;

use super::state::{HostMoments, Layout};
use crate::Result;
use crate::ops::{DynamicTables, Moments, Ops};

/// What was moved between a device and its host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Pages.
    pub pages: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Where optimizer state was held and how often it was moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PagingReport {
    /// Bytes that each device may hold; `None` for no limit.
    pub budget: Option<u64>,
    /// Pages, one for each parameter.
    pub pages: usize,
    /// Bytes of all of them.
    pub bytes: u64,
    /// The most that was on the device at a time; of several, the sum.
    pub peak_device_bytes: u64,
    /// From the device to the host.
    pub spilled: Traffic,
    /// From the host to the device.
    pub fetched: Traffic,
}

impl std::iter::Sum for PagingReport {
    fn sum<I: Iterator<Item = Self>>(reports: I) -> Self {
        let moved = |a: Traffic, b: Traffic| Traffic { pages: a.pages + b.pages, bytes: a.bytes + b.bytes };
        reports.fold(Self::default(), |sum, one| Self {
            budget: one.budget,
            pages: sum.pages + one.pages,
            bytes: sum.bytes + one.bytes,
            peak_device_bytes: sum.peak_device_bytes + one.peak_device_bytes,
            spilled: moved(sum.spilled, one.spilled),
            fetched: moved(sum.fetched, one.fetched),
        })
    }
}

impl std::fmt::Display for PagingReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let size = |bytes| ByteSize::b(bytes).display().iec();
        let Self { pages, bytes, peak_device_bytes, spilled, fetched, .. } = *self;
        write!(
            f,
            "optimizer state: {} in {pages} pages, at most {} on the device; ",
            size(bytes),
            size(peak_device_bytes)
        )?;
        write!(f, "{} pages ({}) spilled to host memory, ", spilled.pages, size(spilled.bytes))?;
        write!(f, "{} ({}) fetched back", fetched.pages, size(fetched.bytes))
    }
}

enum Place<B: Backend> {
    /// Zeros, that nothing was allocated for.
    Unused,
    Device(Box<Moments<B>>),
    Host(Box<HostMoments>),
}

struct Page<B: Backend> {
    layout: Layout,
    place: Place<B>,
}

/// The pages of an optimizer.
pub(super) struct Pages<B: Backend> {
    pages: BTreeMap<String, Page<B>>,
    tables: OnceLock<DynamicTables<B>>,
    device: B::Device,
    residency: Residency<String>,
    report: PagingReport,
}

impl<B: Ops> Pages<B> {
    /// Pages of zeros.
    pub(super) fn new(layouts: BTreeMap<String, Layout>, budget: Option<u64>, device: B::Device) -> Self {
        let pages = layouts.into_iter().map(|(path, layout)| (path, Page { layout, place: Place::Unused }));
        let mut this = Self {
            pages: pages.collect(),
            tables: OnceLock::new(),
            device,
            residency: Residency::new(budget),
            report: PagingReport { budget, ..PagingReport::default() },
        };
        this.report.pages = this.pages.len();
        this.report.bytes = this.pages.values().map(|page| page.layout.bytes()).sum();
        this
    }

    pub(super) fn report(&self) -> PagingReport {
        self.report
    }

    pub(super) fn device(&self) -> &B::Device {
        &self.device
    }

    /// Whether a parameter's page is one of these.
    pub(super) fn contains(&self, path: &str) -> bool {
        self.pages.contains_key(path)
    }

    /// Each parameter and the layout of its moments.
    pub(super) fn layouts(&self) -> impl Iterator<Item = (&String, Layout)> {
        self.pages.iter().map(|(path, page)| (path, page.layout))
    }

    /// Bytes of the buffers that are on the device, counted from the buffers.
    pub(super) fn device_bytes(&self) -> u64 {
        let bytes = |shape: Shape, dtype: DType| (shape.num_elements() * dtype.size()) as u64;
        let float = |tensor: &FloatTensor<B>| bytes(tensor.shape(), tensor.dtype());
        let int = |tensor: &IntTensor<B>| bytes(tensor.shape(), tensor.dtype());
        let places = self.pages.values().map(|page| match &page.place {
            Place::Device(moments) => match &**moments {
                Moments::Full(both) => both.iter().map(float).sum(),
                Moments::EightBit { codes, absmax, .. } => {
                    codes.iter().map(int).sum::<u64>() + absmax.iter().map(float).sum::<u64>()
                }
            },
            Place::Unused | Place::Host(_) => 0,
        });
        places.sum()
    }

    /// Makes room for a parameter's page, where it has one here, and brings it to the device.
    pub(super) async fn bring(&mut self, path: &str) -> Result<()> {
        let Some(bytes) = self.pages.get(path).map(|page| page.layout.bytes()) else { return Ok(()) };
        if !self.residency.holds(path) {
            self.make_room(bytes).await?;
        }
        self.residency.enter(path.to_owned(), bytes);
        self.report.peak_device_bytes = self.report.peak_device_bytes.max(self.residency.bytes());
        let (device, tables) = (&self.device, &self.tables);
        let tables = || tables.get_or_init(|| DynamicTables::new(device)).clone();
        if let Some(page) = self.pages.get_mut(path) {
            page.place = match std::mem::replace(&mut page.place, Place::Unused) {
                Place::Unused => Place::Device(Box::new(page.layout.zeros(device, tables))),
                Place::Host(moments) => {
                    self.report.fetched.pages += 1;
                    self.report.fetched.bytes += bytes;
                    Place::Device(Box::new(moments.upload(device, tables)))
                }
                resident => resident,
            };
        }
        Ok(())
    }

    /// The moments of a parameter that was brought.
    pub(super) fn get(&self, path: &str) -> Option<&Moments<B>> {
        match &self.pages.get(path)?.place {
            Place::Device(moments) => Some(moments),
            _ => None,
        }
    }

    /// Adds gradients to the moments of parameters that were brought, where `next` is not 0.
    pub(super) fn advance(&mut self, gradients: Vec<(&str, FloatTensor<B>)>, next: FloatTensor<B>, betas: [f64; 2]) {
        let (mut paths, mut moving) = (Vec::new(), Vec::new());
        for (path, gradient) in gradients {
            let Some(page) = self.pages.get_mut(path) else { continue };
            match std::mem::replace(&mut page.place, Place::Unused) {
                Place::Device(moments) => {
                    paths.push(path);
                    moving.push((*moments, gradient));
                }
                elsewhere => page.place = elsewhere,
            }
        }
        for (path, moments) in paths.into_iter().zip(B::adam_advance(moving, next, betas)) {
            if let Some(page) = self.pages.get_mut(path) {
                page.place = Place::Device(Box::new(moments));
            }
        }
    }

    /// Spills pages until the budget holds.
    pub(super) async fn settle(&mut self) -> Result<()> {
        self.make_room(0).await
    }

    /// Spills pages until the budget holds with `incoming` bytes more.
    async fn make_room(&mut self, incoming: u64) -> Result<()> {
        while let Some(path) = self.residency.excess(incoming).cloned() {
            if let Some(page) = self.pages.get_mut(&path)
                && let Place::Device(moments) = &page.place
            {
                // Read from a clone that shares the buffers: a device that fails leaves the page where it is.
                let moments = HostMoments::read((**moments).clone(), &self.device).await?;
                page.place = Place::Host(Box::new(moments));
                self.report.spilled.pages += 1;
                self.report.spilled.bytes += page.layout.bytes();
            }
            self.residency.leave(&path);
        }
        Ok(())
    }

    /// The moments of a parameter, from wherever they are, on the device; the page stays where it is.
    pub(super) fn copy(&self, path: &str) -> Option<Moments<B>> {
        let tables = || self.tables.get_or_init(|| DynamicTables::new(&self.device)).clone();
        let page = self.pages.get(path)?;
        Some(match &page.place {
            Place::Unused => page.layout.zeros(&self.device, tables),
            Place::Device(moments) => (**moments).clone(),
            Place::Host(moments) => moments.clone().upload(&self.device, tables),
        })
    }

    /// Puts other moments in place of all, which are brought to the device when they are used.
    pub(super) fn replace(&mut self, moments: BTreeMap<String, HostMoments>) {
        self.residency.clear();
        for (path, moments) in moments {
            if let Some(page) = self.pages.get_mut(&path) {
                page.place = Place::Host(Box::new(moments));
            }
        }
    }
}
