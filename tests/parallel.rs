//! Ranks of one run on a CPU, and what becomes of them when a step is bad or one of them is gone.

use halfbyte::backends::Cpu;
use halfbyte::parallel::{Collective, Group};
use halfbyte::train::{Trainer, TrainerConfig};
use halfbyte::{Error, Result};
use halfbyte_tests::ranks::{self, config, ranks};
use pollster::block_on;

fn trainer(config: TrainerConfig, group: Option<Group>) -> Trainer<Cpu> {
    ranks::trainer(config, group, &Default::default())
}

#[test]
fn ranks_make_the_steps_of_one_trainer_and_hold_the_same_state() {
    ranks::ranks_make_the_steps_of_one::<Cpu>(&[2, 4], &Default::default());
}

#[test]
fn a_bad_step_is_undone_on_every_rank() {
    let errors = ranks(2, |group| {
        let mut trainer = trainer(TrainerConfig { learning_rate: 1e30, warmup_ratio: 0.0, ..config(4, 2) }, group);
        block_on(trainer.step()).expect("its own loss is good");
        let error = block_on(trainer.step()).expect_err("the loss is not finite");
        block_on(trainer.agree()).expect("the model of before, on both");
        (error.to_string(), trainer.state.global_step)
    });
    assert_eq!(errors[0], errors[1]);
    assert!(errors[0].0.contains("step 2: the loss is not finite"), "{errors:?}");
}

#[test]
fn a_rank_that_is_gone_leaves_the_others_at_the_step_before() {
    let found = ranks(3, |group| -> Result<()> {
        let group = group.expect("a group");
        let rank = group.rank();
        let mut trainer = trainer(config(3, 3), Some(group));
        block_on(trainer.step())?;
        if rank == 2 {
            return Ok(());
        }
        let error = block_on(trainer.step()).expect_err("rank 2 is gone");
        assert_eq!(trainer.state.global_step, 1);
        Err(error)
    });
    for (rank, found) in found.into_iter().enumerate() {
        match found {
            Ok(()) => assert_eq!(rank, 2),
            Err(Error::Rank { rank, .. }) => assert_eq!(rank, 2),
            Err(other) => panic!("{other}"),
        }
    }
}
