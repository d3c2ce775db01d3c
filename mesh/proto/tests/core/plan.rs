//! Training plans step by step: rounds, merges, losses, disagreement. Must never need an office.

use skein_proto::ids::{Digest, Millis, NodeId};
use skein_proto::job::{Part, Shard, TrainSpec};
use skein_proto::limits::ATTEMPTS_MAX;
use skein_proto::links::Links;
use skein_proto::message::JobStatus;
use skein_proto::placement::Hand;
use skein_proto::plan::{Next, Outcome, Slot, Task, TrainPlan};
use skein_proto::signed::Signed;

use crate::fixture;

struct Run {
    plan: TrainPlan,
    status: JobStatus,
    hands: Vec<Hand>,
    now: Millis,
}

impl Run {
    /// The first weights are made.
    fn new(hands: u8) -> Self {
        Self::of(hands, fixture::train())
    }

    fn of(hands: u8, spec: TrainSpec) -> Self {
        let job = Signed::new(fixture::job(), &fixture::network(), &fixture::key(3));
        let hands = (1..=hands).map(|number| fixture::hand(NodeId([number; 32]))).collect();
        let plan = TrainPlan::new(spec, fixture::id(3), None);
        let mut run = Self { plan, status: JobStatus::new(&job), hands, now: Millis(1) };
        let tasks = run.tasks();
        assert_eq!(tasks.iter().map(|task| task.slot).collect::<Vec<_>>(), vec![Slot::Init]);
        assert_eq!(run.completed(Slot::Init, 1, b"state 0"), Next::Plan);
        run
    }

    fn tasks(&mut self) -> Vec<Task> {
        self.now.0 += 1;
        self.plan.tasks(self.now, &self.hands, &Links::default(), &mut self.status)
    }

    fn completed(&mut self, slot: Slot, agent: u8, output: &[u8]) -> Next {
        let agent = fixture::first(NodeId([agent; 32]));
        let outcome = Outcome {
            output: Digest::of(output),
            more: &[],
            measure: Some(7),
            tokens: 1,
            took_ms: 500,
            draw: 0,
        };
        self.plan.completed(slot, agent, outcome, &mut self.status)
    }

    /// An agent merges, and refuses these.
    fn refuses(&mut self, agent: u8, refused: &[Digest]) -> Next {
        let outcome = Outcome {
            output: Digest::of(b"state 1"),
            more: refused,
            measure: None,
            tokens: 0,
            took_ms: 1,
            draw: 0,
        };
        self.plan.completed(merge(agent), fixture::first(NodeId([agent; 32])), outcome, &mut self.status)
    }

    fn lost(&mut self, slot: Slot, reason: Option<&str>) -> Next {
        let node = if let Slot::Merge(node) = slot { node } else { NodeId([1; 32]) };
        self.plan.lost(slot, reason.map(|reason| (fixture::first(node), reason)), &mut self.status)
    }

    /// All slices of a round, up to the tasks of its outer step.
    fn train(&mut self) -> Vec<Task> {
        let tasks = self.tasks();
        assert_eq!(tasks.len(), self.hands.len());
        for (place, task) in tasks.iter().enumerate() {
            let next = self.completed(task.slot, 1, format!("delta {place}").as_bytes());
            assert_eq!(next, if place + 1 == tasks.len() { Next::Plan } else { Next::Wait });
        }
        self.tasks()
    }
}

#[test]
fn whose_work_most_refuse_gets_no_more_of_it() {
    let mut run = Run::new(3);
    for (place, task) in run.tasks().iter().enumerate() {
        let maker = u8::try_from(place).unwrap() + 1;
        run.completed(task.slot, maker, format!("delta {maker}").as_bytes());
    }
    assert_eq!(run.tasks().len(), 3);
    let nonsense = [Digest::of(b"delta 2"), Digest::of(b"of another round")];
    run.refuses(1, &nonsense);
    // A liar accuses somebody honest, and is alone with that.
    run.refuses(2, &[Digest::of(b"delta 3")]);
    assert_eq!(run.status.refused, []);
    assert_eq!(run.refuses(3, &nonsense), Next::Plan);
    assert_eq!(run.status.refused, [NodeId([2; 32])]);
    let tasks = run.tasks();
    assert_eq!(tasks.len(), 2, "the work is cut for those who are left");
    assert!(tasks.iter().all(|task| task.avoid_nodes.contains(&NodeId([2; 32]))));
    run.hands.retain(|hand| hand.worker.node == NodeId([2; 32]));
    assert_eq!(run.tasks().len(), 1, "better than nobody");
}

#[test]
fn whose_work_nobody_can_fetch_gets_no_more_and_the_round_is_repeated() {
    let mut run = Run::new(3);
    for _ in 0..2 * ATTEMPTS_MAX {
        for task in run.tasks() {
            let maker = task.pinned.unwrap().node.0[0];
            run.completed(task.slot, maker, format!("delta {maker}").as_bytes());
        }
        let merges = run.tasks();
        for task in &merges {
            let Shard::Merge { deltas, .. } = &task.shard else { panic!("{task:?}") };
            if let Some(delta) = deltas.iter().flatten().find(|delta| **delta == Digest::of(b"delta 2")) {
                run.plan.missed(task.slot, *delta, &mut run.status);
                run.lost(task.slot, Some("nobody has it"));
            } else {
                run.completed(task.slot, task.pinned.unwrap().node.0[0], b"state 1");
            }
        }
        if run.status.round == 1 {
            break;
        }
    }
    assert_eq!((run.status.round, run.status.refused.as_slice()), (1, &[NodeId([2; 32])][..]));
}

#[test]
fn who_fails_again_and_again_is_asked_more_and_more_rarely() {
    let mut run = Run::of(3, TrainSpec { rounds: 18, ..fixture::train() });
    let mut asked = Vec::new();
    for round in 0..18 {
        let mut slices = run.tasks();
        // The second agent fails whatever it gets; another takes its slice.
        let of_second = |task: &&Task| task.pinned == Some(fixture::first(NodeId([2; 32])));
        if let Some(task) = slices.iter().find(of_second).cloned() {
            asked.push(round);
            let failure = Some((fixture::first(NodeId([2; 32])), "out of memory"));
            assert_eq!(run.plan.lost(task.slot, failure, &mut run.status), Next::Retry);
        }
        for (task, maker) in slices.drain(..).zip([1, 3, 1]) {
            run.completed(task.slot, maker, format!("delta {maker} {:?}", task.slot).as_bytes());
        }
        let merges = run.tasks();
        assert_eq!(merges.len(), 3, "it may still merge");
        for task in &merges {
            run.completed(task.slot, task.pinned.unwrap().node.0[0], format!("state {round}").as_bytes());
        }
    }
    assert_eq!(asked, [0, 1, 3, 7, 15]);
}

#[test]
fn who_is_gone_withholds_nothing() {
    let mut run = Run::new(3);
    let merges = run.train();
    run.plan.vanished(NodeId([1; 32]));
    for task in &merges {
        run.plan.missed(task.slot, Digest::of(b"delta 1"), &mut run.status);
        run.lost(task.slot, Some("nobody has it"));
    }
    assert_eq!(run.status.refused, []);
    assert_eq!(run.tasks().len(), 3, "the round is repeated");
}

fn slice(slice: u16) -> Slot {
    Slot::Train { slice, stage: 0 }
}

fn merge(number: u8) -> Slot {
    Slot::Merge(NodeId([number; 32]))
}

#[test]
fn rounds_of_training_and_merging_lead_to_the_end() {
    let mut run = Run::new(2);
    for round in 0..3 {
        let merges = run.train();
        assert_eq!(merges.len(), 2);
        for (place, task) in merges.iter().enumerate() {
            let Shard::Merge { deltas, round: of, part, .. } = &task.shard else { panic!("{task:?}") };
            assert_eq!(deltas, &[[Digest::of(b"delta 0")], [Digest::of(b"delta 1")]]);
            let index = u16::try_from(place).unwrap();
            assert_eq!(
                (*of, *part),
                (round, Some(Part { index, of: 2 })),
                "each measures a part of the loss"
            );
        }
        assert_eq!(run.completed(merge(1), 1, b"state"), Next::Wait);
        let next = run.completed(merge(2), 2, b"state");
        assert_eq!(next, if round == 2 { Next::Done } else { Next::Plan });
    }
    assert_eq!((run.status.round, run.status.digests_equal), (3, true));
}

#[test]
fn a_lost_slice_is_tried_again_and_the_order_of_arrival_does_not_matter() {
    let mut run = Run::new(2);
    run.tasks();
    assert_eq!(run.lost(slice(0), None), Next::Retry);
    assert_eq!(run.completed(slice(1), 2, b"delta 1"), Next::Wait);
    assert_eq!(run.completed(slice(0), 2, b"delta 0"), Next::Plan);
    let Shard::Merge { deltas, .. } = &run.tasks()[0].shard else { panic!("no merge") };
    assert_eq!(deltas, &[[Digest::of(b"delta 0")], [Digest::of(b"delta 1")]]);
}

#[test]
fn a_lost_merge_is_not_waited_for() {
    let mut run = Run::new(3);
    run.train();
    assert_eq!(run.completed(merge(1), 1, b"state"), Next::Wait);
    assert_eq!(run.lost(merge(2), None), Next::Wait);
    assert_eq!(run.lost(merge(3), Some("died")), Next::Plan);
    assert_eq!((run.status.round, run.status.state), (1, Some(Digest::of(b"state"))));
}

#[test]
fn when_all_merges_vanish_the_round_is_repeated_for_ever_and_from_the_state_before() {
    let mut run = Run::new(2);
    for _ in 0..3 * ATTEMPTS_MAX {
        run.train();
        assert_eq!(run.lost(merge(1), None), Next::Wait);
        assert_eq!(run.lost(merge(2), None), Next::Plan);
    }
    assert_eq!((run.status.round, run.status.state), (0, Some(Digest::of(b"state 0"))));
}

#[test]
fn when_all_merges_fail_too_often_the_job_fails_with_the_reason() {
    let mut run = Run::new(2);
    for attempt in 1..=ATTEMPTS_MAX {
        run.train();
        assert_eq!(run.lost(merge(1), Some("out of memory")), Next::Wait);
        let next = run.lost(merge(2), None);
        if let Next::Fail(reason) = &next {
            assert!(reason.ends_with("out of memory"));
        }
        assert_eq!(matches!(next, Next::Fail(_)), attempt == ATTEMPTS_MAX);
    }
}

#[test]
fn disagreement_is_told_for_good_and_the_majority_goes_on() {
    let mut run = Run::new(3);
    run.train();
    run.completed(merge(1), 1, b"wrong");
    run.completed(merge(2), 2, b"right");
    run.completed(merge(3), 3, b"right");
    assert_eq!(run.status.state, Some(Digest::of(b"right")));
    assert!(!run.status.digests_equal);
    run.train();
    for number in 1..4 {
        run.completed(merge(number), number, b"next");
    }
    assert!(!run.status.digests_equal, "one equal round does not undo it");
}

#[test]
fn what_belongs_to_another_step_changes_nothing() {
    let mut run = Run::new(2);
    run.tasks();
    assert_eq!(run.completed(Slot::Init, 1, b"other"), Next::Wait);
    assert_eq!(run.completed(merge(1), 1, b"other"), Next::Wait);
    assert_eq!(run.status.state, Some(Digest::of(b"state 0")));
}

/// The sequences that the slices of a round take: first and steps.
fn slices(tasks: &[Task]) -> Vec<(u64, u32)> {
    let slice = |task: &Task| {
        let Shard::Train { first, steps, .. } = &task.shard else { panic!("{task:?}") };
        (*first, *steps)
    };
    tasks.iter().map(slice).collect()
}

#[test]
fn every_sequence_is_given_out_once_and_slower_agents_take_fewer() {
    let mut run = Run::new(3);
    let tasks = run.tasks();
    assert_eq!(slices(&tasks), [(0, 50), (400, 50), (800, 50)], "eight sequences a step");
    assert!(tasks.iter().zip(&run.hands).all(|(task, hand)| task.pinned == Some(hand.worker)));
    for (place, (task, took_ms)) in tasks.iter().zip([1_000, 1_100, 2_000]).enumerate() {
        let output = Digest::of(format!("delta {place}").as_bytes());
        let outcome = Outcome { output, more: &[], measure: Some(7), tokens: 1, took_ms, draw: 0 };
        run.plan.completed(task.slot, run.hands[place].worker, outcome, &mut run.status);
    }
    run.tasks();
    for number in 1..=3 {
        run.completed(merge(number), number, b"state 1");
    }
    assert_eq!(run.status.samples, 1_200);
    // The second is slower by less than the noise; the third takes half the steps.
    assert_eq!(slices(&run.tasks()), [(1_200, 50), (1_600, 50), (2_000, 25)]);
}

#[test]
fn sequences_whose_pseudo_gradient_was_refused_are_named() {
    let mut run = Run::new(3);
    for (place, task) in run.tasks().iter().enumerate() {
        let maker = u8::try_from(place).unwrap() + 1;
        run.completed(task.slot, maker, format!("delta {maker}").as_bytes());
    }
    run.tasks();
    for number in 1..=3 {
        run.refuses(number, &[Digest::of(b"delta 2")]);
    }
    assert_eq!((run.status.samples, run.status.left_out.as_slice()), (1_200, &[(400, 800)][..]));
}

#[test]
fn who_has_not_the_memory_gets_no_shard_and_if_nobody_has_the_sum_is_told() {
    let mut run = Run::new(3);
    let need = fixture::train().memory_bytes();
    run.hands[1].memory_bytes = need - 1;
    assert_eq!(run.tasks().len(), 2);
    let mut run = Run::new(2);
    for hand in &mut run.hands {
        hand.memory_bytes = need / 4;
    }
    assert!(run.tasks().is_empty());
    let note = run.status.note.clone().unwrap();
    assert!(note.contains("weights, gradients and moments") && note.contains("the largest offer"), "{note}");
    run.hands[0].memory_bytes = need;
    assert_eq!((run.tasks().len(), &run.status.note), (1, &None));
}

#[test]
fn the_held_out_loss_is_the_mean_of_what_each_measured_of_the_agreed_result() {
    let mut run = Run::new(3);
    run.train();
    for (number, output, loss, tokens) in
        [(1, b"state 1", 2_000_000, 300), (2, b"state 1", 1_000_000, 100), (3, b"another", 9_000_000, 800)]
    {
        let output = Digest::of(output);
        let outcome = Outcome { output, more: &[], measure: Some(loss), tokens, took_ms: 1, draw: 0 };
        run.plan.completed(merge(number), fixture::first(NodeId([number; 32])), outcome, &mut run.status);
    }
    assert_eq!(run.status.held_out_micronats, Some(1_750_000));
}

#[test]
fn the_loss_is_measured_seldom_where_that_is_dear_and_often_enough_to_be_a_curve() {
    let every = |batch, context, rounds, inner_steps| {
        let spec = TrainSpec { batch, context, rounds, inner_steps, ..fixture::train() };
        spec.steps_between_losses()
    };
    // 8,192 tokens forward are as much as 5.33 steps of 512; fifty times that are 267.
    assert_eq!(every(4, 128, 1_000, 100), 267);
    // A short job has its twenty points, and a shorter one those of every fiftieth step.
    assert_eq!(every(4, 128, 40, 100), 200);
    assert_eq!(every(4, 128, 8, 50), 50);
    // Where a step is long the measurement is nothing.
    assert_eq!(every(256, 2_048, 1_000, 100), 50);
}
