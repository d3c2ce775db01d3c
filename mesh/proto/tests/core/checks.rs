//! Slices that are trained again by somebody else: who is found honest, who is not, and who is not heard. Must never need an
//! office.

use skein_proto::ids::{Digest, Millis, NodeId};
use skein_proto::job::{Shard, TrainSpec};
use skein_proto::limits::{CHECK_DISTANCE_MAX, CHECKS_TRUSTED};
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
    round: u8,
    draw: u64,
}

impl Run {
    /// The first weights are made; every slice whose draw is below the chance is checked.
    fn new(hands: u8, chance: u32, rounds: u32) -> Self {
        let spec = TrainSpec { check_millionths: chance, rounds, ..fixture::train() };
        let job = Signed::new(fixture::job(), &fixture::network(), &fixture::key(3));
        let hands = (1..=hands).map(|number| fixture::hand(NodeId([number; 32]))).collect();
        let plan = TrainPlan::new(spec, fixture::id(3), None);
        let mut run = Self { plan, status: JobStatus::new(&job), hands, now: Millis(1), round: 0, draw: 0 };
        let init = run.tasks();
        run.completes(&init[0], b"state 0", &[], Some(9));
        run
    }

    fn tasks(&mut self) -> Vec<Task> {
        self.now.0 += 1;
        self.plan.tasks(self.now, &self.hands, &Links::default(), &mut self.status)
    }

    fn completes(&mut self, task: &Task, output: &[u8], more: &[Digest], measure: Option<i64>) -> Next {
        let output = Digest::of(output);
        let outcome = Outcome { output, more, measure, tokens: 1, took_ms: 500, draw: self.draw };
        self.plan.completed(task.slot, task.pinned.unwrap(), outcome, &mut self.status)
    }

    /// A round of slices, up to the outer step; the tasks beside it.
    fn round(&mut self) -> (Vec<Task>, Vec<Task>) {
        self.round += 1;
        for (at, task) in (0..).zip(self.tasks()) {
            assert!(matches!(task.slot, Slot::Train { .. }), "{task:?}");
            let began = [Digest::of(&[self.round, at, 1])];
            self.completes(&task, &[self.round, at, 0], &began, Some(7));
        }
        self.tasks().into_iter().partition(|task| matches!(task.slot, Slot::Merge(_)))
    }

    fn merged(&mut self, merges: &[Task]) -> Next {
        let mut next = Next::Wait;
        for task in merges {
            next = self.completes(task, &[self.round], &[], Some(6));
        }
        next
    }

    /// The maker shows what it began with; the check that follows.
    fn shows(&mut self, show: &Task) -> Task {
        let Shard::Show { began, .. } = show.shard else { panic!("{show:?}") };
        let outcome = Outcome { output: began, more: &[], measure: None, tokens: 0, took_ms: 1, draw: 0 };
        let next = self.plan.completed(show.slot, show.pinned.unwrap(), outcome, &mut self.status);
        let Next::Also(check) = next else { panic!("{next:?}") };
        *check
    }

    fn tells(&mut self, check: &Task, distance: i64) -> Next {
        self.completes(check, b"verdict", &[], Some(distance))
    }
}

#[test]
fn a_slice_is_trained_again_by_another_from_what_its_agent_began_with() {
    let mut run = Run::new(3, 1_000_000, 3);
    let (merges, shows) = run.round();
    assert_eq!((merges.len(), shows.len()), (3, 3), "beside the outer step");
    let check = run.shows(&shows[1]);
    let maker = shows[1].pinned.unwrap();
    let Shard::Check { state, round: 0, first: 400, steps: 50, began, delta, .. } = check.shard else {
        panic!("{check:?}")
    };
    let of = |last| Digest::of(&[1, 1, last]);
    assert_eq!((state, began, delta), (Digest::of(b"state 0"), of(1), of(0)));
    assert!(
        check.pinned.is_some_and(|checker| checker.node != maker.node)
            && check.avoid_nodes.contains(&maker.node)
    );
    assert_eq!(run.tells(&check, CHECK_DISTANCE_MAX), Next::Wait);
    assert_eq!((run.status.confirmed, run.status.rejected, run.status.refused.len()), (1, 0, 0));
}

#[test]
fn two_must_find_another_result_where_there_is_a_third() {
    let mut run = Run::new(3, 1_000_000, 3);
    let (_, shows) = run.round();
    let first = run.shows(&shows[0]);
    let Next::Also(second) = run.tells(&first, CHECK_DISTANCE_MAX + 1) else { panic!("no second opinion") };
    let maker = shows[0].pinned.unwrap();
    assert!(second.pinned != first.pinned && second.pinned != Some(maker));
    // One liar alone harms nobody.
    run.tells(&second, 0);
    assert_eq!((run.status.confirmed, run.status.rejected), (1, 0));
    let first = run.shows(&shows[1]);
    let Next::Also(second) = run.tells(&first, 500_000) else { panic!("no second opinion") };
    run.tells(&second, 500_000);
    assert_eq!(
        (run.status.rejected, run.status.refused.as_slice()),
        (1, &[shows[1].pinned.unwrap().node][..])
    );
}

#[test]
fn of_two_agents_one_judges_the_other_and_a_lone_one_is_not_checked() {
    let mut run = Run::new(2, 1_000_000, 3);
    let (_, shows) = run.round();
    let check = run.shows(&shows[0]);
    run.tells(&check, 500_000);
    assert_eq!((run.status.rejected, run.status.refused.len()), (1, 1));
    let (_, shows) = Run::new(1, 1_000_000, 3).round();
    assert_eq!(shows, []);
}

#[test]
fn who_shows_another_beginning_or_none_at_all_is_found_out() {
    let mut run = Run::new(3, 1_000_000, 5);
    let (_, shows) = run.round();
    run.completes(&shows[0], b"something else", &[], None);
    assert_eq!(
        (run.status.rejected, run.status.refused.as_slice()),
        (1, &[shows[0].pinned.unwrap().node][..])
    );

    let mut run = Run::new(3, 1_000_000, 5);
    let (merges, shows) = run.round();
    run.plan.lost(shows[0].slot, Some((shows[0].pinned.unwrap(), "started anew")), &mut run.status);
    // Who died did not refuse to show it.
    run.plan.lost(shows[1].slot, None, &mut run.status);
    let check = run.shows(&shows[2]);
    run.plan.missed(check.slot, Digest::of(&[1, 2, 1]), &mut run.status);
    run.plan.lost(check.slot, Some((check.pinned.unwrap(), "nobody has it")), &mut run.status);
    assert_eq!(run.status.refused, [], "once may be chance");
    run.merged(&merges);
    let (_, shows) = run.round();
    run.plan.lost(shows[0].slot, Some((shows[0].pinned.unwrap(), "started anew")), &mut run.status);
    run.plan.lost(shows[1].slot, None, &mut run.status);
    assert_eq!(run.status.refused, [shows[0].pinned.unwrap().node]);
}

#[test]
fn the_honest_are_checked_less_and_less() {
    let rounds = 40;
    let mut run = Run::new(2, 500_000, rounds);
    run.draw = 400_000;
    let mut checked = 0;
    for _ in 0..rounds {
        let (merges, shows) = run.round();
        for show in shows {
            let check = run.shows(&show);
            run.tells(&check, 0);
            checked += 1;
        }
        run.merged(&merges);
    }
    // A draw of 0.4 is below a chance of 0.5 until that has fallen by a fifth: ten times, and thrice more.
    assert_eq!(checked, 2 * (CHECKS_TRUSTED + 3), "of {} slices", 2 * rounds);
    assert_eq!((run.status.confirmed, run.status.refused.len()), (checked, 0));
}

#[test]
fn the_job_ends_when_its_last_slices_are_checked() {
    let mut run = Run::new(2, 1_000_000, 1);
    let (merges, shows) = run.round();
    let checks: Vec<Task> = shows.iter().map(|show| run.shows(show)).collect();
    assert_eq!(run.merged(&merges), Next::Plan);
    assert_eq!(run.tasks(), [], "nothing is left but the checks");
    assert_eq!(run.tells(&checks[0], 0), Next::Wait);
    assert_eq!(run.tells(&checks[1], 0), Next::Done);
}
