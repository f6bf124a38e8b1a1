//! A step's micro-batches on their way through the stages of a model: while one is in a stage, the next is in the one below it.
//!
//! All of a group go up, then all come down (GPipe, arXiv:1811.06965, section 2.3): going down takes about three times as long as
//! going up, so that stages which did both at a time would wait for each other. Every parameter gets its gradients in the order of
//! the micro-batches, as on one device.

use burn::tensor::Tensor;

use super::backprop::Flight;
use super::sums::Sums;
use crate::ops::Ops;

/// Takes micro-batches up and down again; gives the sums of their losses.
///
/// At a tick every stage has at most one of them. What goes from device to device does so first, while nothing else waits on
/// either; then all devices are given their work, which they do at the same time.
pub(super) fn pipeline<'a, B: Ops>(
    mut flights: Vec<Flight<'a, B>>,
    sums: &mut Sums<B>,
) -> impl Iterator<Item = Tensor<B, 1>> + use<'a, B> {
    let stages = flights.first().map_or(0, Flight::stages);
    let highest = flights.first().map_or(0, Flight::highest_stage);
    let ticks = (flights.len() + stages).saturating_sub(1);
    for tick in 0..ticks {
        each_at(tick, stages, &mut flights, |flight, stage| flight.arrive(stage));
        // Layer by layer, so that a stage which waits for its copies to host memory holds no other up by more than a layer.
        for layer in 0..highest {
            each_at(tick, stages, &mut flights, |flight, stage| flight.up(stage, layer));
        }
        each_at(tick, stages, &mut flights, Flight::turn);
    }
    for tick in 0..ticks {
        let from_top = |stage: usize| stages - 1 - stage;
        each_at(tick, stages, &mut flights, |flight, stage| flight.arrive(from_top(stage)));
        each_at(tick, stages, &mut flights, |flight, stage| flight.down(from_top(stage), sums));
    }
    flights.into_iter().filter_map(Flight::loss_sum)
}

/// Calls `f` with every micro-batch that is in a stage at a tick: the first is in stage 0 at tick 0, and each of the others follows
/// one stage behind the one before it.
fn each_at<T>(tick: usize, stages: usize, flights: &mut [T], mut f: impl FnMut(&mut T, usize)) {
    for (i, flight) in flights.iter_mut().enumerate() {
        if let Some(stage) = tick.checked_sub(i).filter(|stage| *stage < stages) {
            f(flight, stage);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::each_at;

    #[test]
    fn every_micro_batch_is_in_every_stage_once_and_in_order() {
        for (stages, count) in [(1, 1), (1, 3), (2, 1), (2, 4), (3, 2), (4, 8)] {
            let mut visited = vec![vec![]; count];
            for tick in 0..count + stages - 1 {
                let mut busy = vec![];
                each_at(tick, stages, &mut visited, |visited, stage| {
                    visited.push(stage);
                    busy.push(stage);
                });
                busy.sort_unstable();
                busy.dedup();
                // All stages work but at the two ends.
                let expected = (tick + 1).min(stages).min(count).min(count + stages - 1 - tick);
                assert_eq!(busy.len(), expected, "{stages} stages, {count} micro-batches, tick {tick}");
            }
            assert!(visited.iter().all(|stages_of| *stages_of == (0..stages).collect::<Vec<_>>()));
        }
    }
}
