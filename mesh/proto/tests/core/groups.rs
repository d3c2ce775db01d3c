//! Training a model that no agent could hold alone: who forms groups, and what becomes of one that loses a member. Must
//! never need an office.

use std::collections::BTreeSet;

use skein_proto::group::Group;
use skein_proto::ids::{Digest, Millis, NodeId, WorkerId};
use skein_proto::job::{Method, Part, Shard, TrainSpec};
use skein_proto::limits::ATTEMPTS_MAX;
use skein_proto::links::Links;
use skein_proto::message::JobStatus;
use skein_proto::placement::Hand;
use skein_proto::plan::{Next, Outcome, Slot, Task, TrainPlan};
use skein_proto::signed::Signed;

use crate::fixture;

/// Agents with so many bytes each.
fn hands(memory: &[u64]) -> Vec<Hand> {
    (1..)
        .zip(memory)
        .map(|(number, &memory_bytes)| Hand { memory_bytes, ..fixture::hand(NodeId([number; 32])) })
        .collect()
}

struct Run {
    plan: TrainPlan,
    status: JobStatus,
    now: Millis,
}

impl Run {
    fn new(spec: TrainSpec) -> Self {
        let job = Signed::new(fixture::job(), &fixture::network(), &fixture::key(3));
        let plan = TrainPlan::new(spec, fixture::id(3), None);
        Self { plan, status: JobStatus::new(&job), now: Millis(1) }
    }

    fn tasks(&mut self, hands: &[Hand]) -> Vec<Task> {
        self.now.0 += 1;
        self.plan.tasks(self.now, hands, &Links::default(), &mut self.status)
    }

    fn completes(&mut self, task: &Task, output: &[u8], loss: Option<i64>) -> Next {
        let outcome = Outcome {
            output: Digest::of(output),
            more: &[],
            measure: loss,
            tokens: 10,
            took_ms: 500,
            draw: 0,
        };
        self.plan.completed(task.slot, task.pinned.unwrap(), outcome, &mut self.status)
    }

    /// The first weights are made, and judged by groups if nobody can alone.
    fn begun(spec: TrainSpec, hands: &[Hand]) -> Self {
        let mut run = Self::new(spec);
        let init = run.tasks(hands);
        assert_eq!(run.completes(&init[0], b"state 0", None), Next::Plan);
        run.judged(hands, 2_000);
        assert_eq!(run.status.start_loss_micronats, Some(2_000));
        run
    }

    /// All groups measure their parts; the last members tell.
    fn judged(&mut self, hands: &[Hand], loss: i64) -> Next {
        let tasks = self.tasks(hands);
        let mut next = Next::Wait;
        for task in &tasks {
            assert_eq!(next, Next::Wait);
            let Shard::Judge { group, part, .. } = &task.shard else { panic!("{task:?}") };
            assert!(part.index < part.of);
            next = self.completes(task, b"judgement", group.is_last().then_some(loss));
        }
        next
    }
}

fn groups(tasks: &[Task]) -> Vec<&Group> {
    tasks.iter().map(|task| task.shard.group().unwrap()).collect()
}

/// Somewhat less than one agent needs.
fn little(spec: &TrainSpec) -> u64 {
    spec.memory_bytes() * 3 / 4
}

#[test]
fn who_cannot_hold_the_model_trains_it_with_others_beside_those_who_can() {
    let spec = fixture::train();
    let (much, some) = (spec.memory_bytes(), little(&spec));
    let hands = hands(&[some, much, some, some, some, some]);
    let mut run = Run::new(spec.clone());
    let init = run.tasks(&hands);
    assert_eq!(init[0].pinned, Some(hands[1].worker), "who can judge begins");
    run.completes(&init[0], b"state 0", Some(1));
    let tasks = run.tasks(&hands);
    let slots: Vec<Slot> = tasks.iter().map(|task| task.slot).collect();
    let slot = |slice, stage| Slot::Train { slice, stage };
    assert_eq!(slots, [slot(0, 0), slot(1, 0), slot(1, 1), slot(2, 0), slot(2, 1)]);
    let workers: BTreeSet<WorkerId> = tasks.iter().filter_map(|task| task.pinned).collect();
    assert_eq!((workers.len(), tasks[0].pinned), (5, Some(hands[1].worker)), "one is left over");
    assert_eq!(tasks[0].shard.group(), None);
    for pair in tasks[1..].chunks(2) {
        let [first, last] = pair else { panic!("two each") };
        let groups = groups(pair);
        assert_eq!((groups[0].number, &groups[0].members), (groups[1].number, &groups[1].members));
        for (task, group) in pair.iter().zip(groups) {
            task.shard.validate().unwrap();
            assert_eq!(task.pinned, Some(group.members[usize::from(group.stage)].worker_id()));
            let needed = spec.stage_bytes(&group.layers(), group.in_flight());
            assert!(needed <= some, "{needed} of {some}");
        }
        let slice = |task: &Task| {
            let Shard::Train { first, steps, index, of, .. } = &task.shard else { panic!("{task:?}") };
            (*first, *steps, *index, *of)
        };
        assert_eq!(slice(first), slice(last), "both work on the same sequences");
        assert!(first.shard.units().0 > 0 && last.shard.units().0 > 0);
    }
    // Each is paid for its layers.
    let units = |tasks: &[Task]| tasks.iter().map(|task| task.shard.units().0).sum::<u64>();
    let (alone, together) = (units(&tasks[..1]), units(&tasks[1..3]));
    assert!(together.abs_diff(alone) * 50 < alone, "{alone} and {together}");
}

#[test]
fn a_round_of_groups_is_merged_by_all_and_judged_by_groups() {
    let spec = fixture::train();
    let hands = hands(&[little(&spec); 4]);
    let mut run = Run::begun(spec, &hands);
    for round in 0..3 {
        let tasks = run.tasks(&hands);
        assert_eq!(tasks.len(), 4);
        for (at, task) in tasks.iter().enumerate() {
            let next = run.completes(task, &[round, u8::try_from(at).unwrap()], Some(7));
            assert_eq!(next, if at == 3 { Next::Plan } else { Next::Wait });
        }
        assert_eq!(run.status.tokens, 20 * (u64::from(round) + 1), "a group's tokens are counted once");
        let merges = run.tasks(&hands);
        assert_eq!(merges.len(), 4);
        for (at, task) in merges.iter().enumerate() {
            let Shard::Merge { deltas, part, .. } = &task.shard else { panic!("{task:?}") };
            let delta = |at| Digest::of(&[round, at]);
            assert_eq!(deltas, &[[delta(0), delta(1)], [delta(2), delta(3)]]);
            assert_eq!(*part, None::<Part>, "nobody can hold it to judge it");
            let next = run.completes(task, &[100 + round], None);
            assert_eq!(next, if at == 3 { Next::Plan } else { Next::Wait });
        }
        let next = run.judged(&hands, 1_000 - i64::from(round));
        assert_eq!(next, if round == 2 { Next::Done } else { Next::Plan });
        assert_eq!(run.status.held_out_micronats, Some(1_000 - i64::from(round)));
    }
}

#[test]
fn a_group_that_loses_a_member_is_given_up_and_another_takes_its_slice() {
    let spec = fixture::train();
    let all = hands(&[little(&spec); 4]);
    let mut run = Run::begun(spec, &all);
    let tasks = run.tasks(&all);
    let before = groups(&tasks)[0].number;
    run.completes(&tasks[0], b"half", Some(7));
    let next = run.plan.lost(tasks[1].slot, None, &mut run.status);
    assert_eq!(next, Next::Dissolve);
    assert!(tasks[1].slot.is_beside(tasks[0].slot) && !tasks[1].slot.is_beside(tasks[2].slot));
    assert_eq!(run.completes(&tasks[2], b"second, first half", Some(7)), Next::Wait);
    assert_eq!(run.completes(&tasks[3], b"second, other half", Some(7)), Next::Wait, "one slice is open");
    // Two of three are left: they take the slice that is open, from the start.
    let left: Vec<Hand> = all.iter().filter(|hand| Some(hand.worker) != tasks[1].pinned).copied().collect();
    let again = run.tasks(&left);
    assert_eq!(again.len(), 2);
    assert!(groups(&again).iter().all(|group| group.number != before), "no old message reaches it");
    let Shard::Train { first, index: 0, of: 2, .. } = again[0].shard else { panic!("{again:?}") };
    assert_eq!(first, 0);
    run.completes(&again[0], b"first half", Some(7));
    assert_eq!(run.completes(&again[1], b"other half", Some(7)), Next::Plan);
    let Shard::Merge { deltas, .. } = &run.tasks(&left)[0].shard else { panic!("no merge") };
    let halves = [Digest::of(b"first half"), Digest::of(b"other half")];
    assert_eq!((deltas.len(), deltas[0].as_slice()), (2, &halves[..]), "half of a lost group is of no use");
}

#[test]
fn a_slice_that_group_after_group_fails_ends_the_job_with_the_reason() {
    let spec = fixture::train();
    let all = hands(&[little(&spec); 2]);
    let mut run = Run::begun(spec, &all);
    for attempt in 1..=ATTEMPTS_MAX {
        let tasks = run.tasks(&all);
        let next =
            run.plan.lost(tasks[1].slot, Some((tasks[1].pinned.unwrap(), "out of memory")), &mut run.status);
        if attempt < ATTEMPTS_MAX {
            assert_eq!(next, Next::Dissolve);
        } else {
            let Next::Fail(reason) = next else { panic!("{next:?}") };
            assert!(reason.ends_with("out of memory"), "{reason}");
        }
    }
}

#[test]
fn a_head_that_is_the_embedding_is_split_only_where_it_does_not_learn() {
    let mut spec = fixture::train();
    // Large beside what a sequence takes.
    spec.size.resident = 50_000_000;
    spec.size.weights = spec.size.resident;
    spec.size.trained = spec.size.resident;
    let few = hands(&[little(&spec); 3]);
    let mut run = Run::new(spec.clone());
    assert!(run.tasks(&few).is_empty());
    let note = run.status.note.clone().unwrap();
    assert!(note.contains("cannot be split") && note.contains("\nhint: "), "{note}");
    spec.method = Method::Lora { rank: 4, alpha_millionths: 4_000_000 };
    spec.size.trained = 8_000;
    let few = hands(&[little(&spec); 3]);
    assert_eq!(Run::new(spec).tasks(&few).len(), 1, "the first weights");
}
