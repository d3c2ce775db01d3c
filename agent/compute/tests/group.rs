//! Owns the promise that agents which hold some layers each train and judge as one agent with all of them does.
//! Must never start a process or need a GPU.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::wildcard_enum_match_arm,
    reason = "a broken assumption should stop the test"
)]

#[expect(dead_code, reason = "other tests use the rest")]
mod pipes;
#[expect(dead_code, reason = "other tests use the rest")]
mod place;

use std::collections::VecDeque;
use std::fs;
use std::path::Path;

use pipes::{Worker, add_model, text};
use skein_compute::checkpoint::{Checkpoint, Delta};
use skein_compute::data::{Dataset, Part, Tokens};
use skein_compute::drawn::Drawn;
use skein_compute::protocol::{GroupPurpose, GroupTask, InnerTask, Judge, ModelTask, PhaseTask, Reply, Task};
use skein_compute::trainee::{Method, Trainee};

const CONTEXT: u32 = 8;
const STEPS: u32 = 5;
const BATCH: u32 = 5;
const LORA: Method = Method::Lora { rank: 3, alpha: 6.0 };

/// Relative L2 distance allowed between the checkpoints of a group and of one agent, and between the changes alone.
const TOLERANCE: f64 = 1e-4;

/// A model of four layers, a text, and a first checkpoint by `worker`.
fn begin(worker: &mut Worker, place: &Path, method: Method, tied: bool) -> ModelTask {
    place::write_data(&place.join("text"), &"the geese fly south, honk! ".repeat(60));
    let drawn = Drawn::new(place::config(4, 16, CONTEXT), tied, 4);
    let model = ModelTask { method, ..add_model(place, &drawn) };
    let init = Task::Init { model: model.clone(), seed: 4, out: text(place, "0"), evaluate: None };
    let (reply, _) = worker.ask(init);
    assert!(matches!(reply, Reply::Initialised { held_out_micronats: None, .. }), "{reply:?}");
    model
}

fn inner(round: u32) -> InnerTask {
    InnerTask {
        inner_steps: STEPS,
        batch: BATCH,
        learning_rate_millionths: 5_000,
        warmup_steps: 2,
        round,
        rounds: 10,
        first: u64::from(round * STEPS * BATCH),
        seed: 3,
        delta_bits: 32,
    }
}

/// The layers `start..end` of a group's first round, in micro-batches of two sequences, the last one of one.
fn opening(place: &Path, model: &ModelTask, start: u32, end: u32) -> GroupTask {
    GroupTask {
        group: 7,
        model: model.clone(),
        state: text(place, "0"),
        data: text(place, "text"),
        context: CONTEXT,
        start,
        end,
        sequences: 2,
        recompute: false,
        purpose: GroupPurpose::Train(inner(0)),
    }
}

/// The members of a group, in the order of their layers.
struct Members(Vec<Worker>);

impl Members {
    fn start() -> Self {
        Self((0..3).map(|_| Worker::start()).collect())
    }

    /// Opens a group over layers 0, 1 and 2, and 3: micro-batches.
    fn open(&mut self, task: &GroupTask) -> u32 {
        let mut micros = Vec::new();
        for (worker, (start, end)) in self.0.iter_mut().zip([(0, 1), (1, 3), (3, 4)]) {
            let (reply, _) = worker.ask(Task::GroupOpen(GroupTask { start, end, ..task.clone() }));
            let Reply::GroupOpened { micros: count } = reply else { panic!("{reply:?}") };
            micros.push(count);
        }
        assert!(micros.iter().all(|count| *count == micros[0]), "{micros:?}");
        micros[0]
    }

    fn pass(&mut self, member: usize, task: Task, squares: &mut [Option<f64>]) -> Vec<u8> {
        let (reply, _) = self.0[member].ask(task);
        let Reply::GroupRows { rows, squares: own } = reply else { panic!("{reply:?}") };
        assert!(squares[member].is_none(), "only with the last micro-batch");
        squares[member] = own;
        rows
    }

    /// Takes a micro-batch forward; what the last member says.
    fn forward(&mut self, micro: u32, squares: &mut [Option<f64>]) -> Vec<u8> {
        (0..self.0.len()).fold(Vec::new(), |rows, member| {
            self.pass(member, Task::GroupForward { group: 7, micro, rows }, squares)
        })
    }

    fn backward(&mut self, micro: u32, gradient: Vec<u8>, squares: &mut [Option<f64>]) {
        let first = (0..self.0.len() - 1).rev().fold(gradient, |rows, member| {
            self.pass(member, Task::GroupBackward { group: 7, micro, rows }, squares)
        });
        assert!(first.is_empty(), "nothing comes before the first stage");
    }

    /// One step with two micro-batches under way; its loss.
    fn step(&mut self, micros: u32) -> Option<i64> {
        let mut squares = vec![None; self.0.len()];
        let mut waiting = VecDeque::new();
        for micro in 0..micros {
            waiting.push_back((micro, self.forward(micro, &mut squares)));
            if waiting.len() == 2 {
                let (micro, gradient) = waiting.pop_front().unwrap();
                self.backward(micro, gradient, &mut squares);
            }
        }
        for (micro, gradient) in waiting {
            self.backward(micro, gradient, &mut squares);
        }
        let squares = squares.into_iter().map(|own| own.unwrap()).sum();
        let mut losses = Vec::new();
        for worker in &mut self.0 {
            let (reply, _) = worker.ask(Task::GroupStep { group: 7, squares });
            let Reply::GroupStepped { loss_micronats } = reply else { panic!("{reply:?}") };
            losses.push(loss_micronats);
        }
        assert_eq!(losses[..2], [None, None], "only the last member knows");
        losses[2]
    }

    /// Ends the group with a file for each member, whose names begin so; loss and tokens of the last.
    fn close(&mut self, place: &Path, name: &str) -> (Vec<String>, i64, u64) {
        let outs: Vec<String> =
            (0..self.0.len()).map(|member| text(place, &format!("{name}.{member}"))).collect();
        let mut last = (0, 0);
        for (worker, out) in self.0.iter_mut().zip(&outs) {
            let (reply, _) = worker.ask(Task::GroupClose { group: 7, out: Some(out.clone()) });
            let Reply::GroupClosed { digest: Some(digest), loss_micronats, tokens } = reply else {
                panic!("{reply:?}")
            };
            assert_eq!(digest, *blake3::hash(&fs::read(out).unwrap()).as_bytes());
            assert_eq!(last.0, 0, "only the last member knows the loss");
            last = (loss_micronats, tokens);
        }
        (outs, last.0, last.1)
    }
}

/// One agent's inner phase of a round: its losses step by step, and what it says at the end.
fn train_alone(
    worker: &mut Worker,
    place: &Path,
    model: &ModelTask,
    round: u32,
    state: &str,
) -> (Vec<Option<i64>>, i64, u64) {
    let phase = PhaseTask {
        model: model.clone(),
        state: state.to_owned(),
        data: text(place, "text"),
        context: CONTEXT,
        at_once: BATCH,
        recompute: false,
        inner: inner(round),
    };
    let id = worker.send(Task::Train { phase, out: text(place, "alone") });
    let mut losses = Vec::new();
    loop {
        let reply = worker.reply();
        assert_eq!(reply.id, id);
        match reply.body {
            Reply::Progress { loss_micronats, .. } => losses.push(loss_micronats),
            Reply::Trained { loss_micronats, tokens, .. } => return (losses, loss_micronats, tokens),
            other => panic!("{other:?}"),
        }
    }
}

fn merge(worker: &mut Worker, place: &Path, model: &ModelTask, state: &str, parts: Vec<String>, out: &str) {
    let (reply, _) = worker.ask(Task::Merge {
        model: model.clone(),
        state: state.to_owned(),
        deltas: vec![parts],
        outer_rate_millionths: 700_000,
        momentum_millionths: 400_000,
        out: text(place, out),
        evaluate: None,
    });
    let Reply::Merged { tokens: 0, held_out_micronats: 0, refused, .. } = reply else { panic!("{reply:?}") };
    assert!(refused.is_empty(), "{refused:?}");
}

fn distance(found: &[Vec<f32>], wanted: &[Vec<f32>]) -> f64 {
    let pairs = || found.iter().flatten().zip(wanted.iter().flatten());
    let apart: f64 = pairs().map(|(one, other)| f64::from(one - other).powi(2)).sum();
    let size: f64 = pairs().map(|(_, other)| f64::from(*other).powi(2)).sum();
    (apart / size).sqrt()
}

fn close_to(found: Option<i64>, wanted: Option<i64>) -> bool {
    match (found, wanted) {
        (Some(found), Some(wanted)) => (found - wanted).abs() <= 20 + wanted / 10_000,
        (None, None) => true,
        (Some(_), None) | (None, Some(_)) => false,
    }
}

/// Two rounds by three agents and by one on the file `text`; the losses step by step.
fn trains_alike(
    place: &Path,
    model: &ModelTask,
    mut alone: Worker,
    tied: bool,
    recompute: bool,
) -> Vec<Option<i64>> {
    let trainee = Trainee::new(place::config(4, 16, CONTEXT), tied, model.method).unwrap();
    let specs = trainee.tensors();
    let mut members = Members::start();
    let mut all = Vec::new();
    for round in 0..2 {
        let (before, after) = (format!("{round}"), format!("{}", round + 1));
        let states = [&before, &format!("{before}.alone")].map(|name| text(place, name));
        if round == 0 {
            fs::copy(&states[0], &states[1]).unwrap();
        }
        let opening = opening(place, model, 0, 0);
        let purpose = GroupPurpose::Train(inner(round));
        let micros = members.open(&GroupTask { state: states[0].clone(), recompute, purpose, ..opening });
        assert_eq!(micros, 3);
        let losses: Vec<Option<i64>> = (0..STEPS).map(|_| members.step(micros)).collect();
        let (parts, loss, tokens) = members.close(place, "part");
        // Members keep what their optimisers know, though one of them merges in between.
        merge(&mut members.0[1], place, model, &states[0], parts.clone(), &after);

        let (wanted, mean, trained_on) = train_alone(&mut alone, place, model, round, &states[1]);
        let whole = text(place, "alone");
        merge(&mut alone, place, model, &states[1], vec![whole.clone()], &format!("{after}.alone"));
        assert!(
            losses.iter().zip(&wanted).all(|(one, other)| close_to(*one, *other)),
            "{losses:?} {wanted:?}"
        );
        assert!(close_to(Some(loss), Some(mean)), "{loss} {mean}");
        assert_eq!((tokens, trained_on), (u64::from(STEPS * BATCH * CONTEXT), tokens));

        let read = |name: String| Checkpoint::read(&place.join(name), specs).unwrap();
        let (found, wanted) = (read(after.clone()), read(format!("{after}.alone")));
        assert_eq!((found.round, wanted.round), (round + 1, round + 1));
        let states = distance(&found.weights, &wanted.weights);
        let stages = [(0, 1), (1, 3), (3, 4)].map(|(start, end)| trainee.stage(start..end).unwrap());
        let change = parts
            .iter()
            .zip(&stages)
            .flat_map(|(part, stage)| Delta::read(Path::new(part), stage.tensors()).unwrap().values);
        let changes =
            distance(&change.collect::<Vec<_>>(), &Delta::read(Path::new(&whole), specs).unwrap().values);
        println!("{:?}, round {round}: checkpoints {states:.1e} apart, changes {changes:.1e}", model.method);
        assert!(states < TOLERANCE && changes < TOLERANCE, "{states:e} {changes:e}");
        all.extend(losses);
    }
    all
}

#[test]
fn three_agents_train_as_one_does() {
    for (method, tied, recompute) in
        [(Method::Full, false, false), (Method::Full, false, true), (LORA, true, true)]
    {
        let directory = tempfile::tempdir().unwrap();
        let mut alone = Worker::start();
        let model = begin(&mut alone, directory.path(), method, tied);
        trains_alike(directory.path(), &model, alone, tied, recompute);
    }
}

#[test]
fn what_counts_nothing_teaches_nothing() {
    for recompute in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path();
        let mut alone = Worker::start();
        let model = begin(&mut alone, place, Method::Full, false);
        // Few tokens count, so that in some steps none does, and in others none of some micro-batches.
        let tokens = |count: u32| Tokens {
            ids: (0..count).map(|at| at * 7 % 256).collect(),
            counts: (0..count).map(|at| at % 100 < 4).collect(),
        };
        fs::write(place.join("text"), Dataset::new(tokens(1_500), tokens(100)).encode().unwrap()).unwrap();
        let losses = trains_alike(place, &model, alone, false, recompute);
        assert!(losses.contains(&None) && losses.iter().any(Option::is_some), "{losses:?}");
    }
}

#[test]
fn a_group_judges_as_one_agent_does() {
    for (method, tied) in [(Method::Full, false), (LORA, true)] {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path();
        let mut alone = Worker::start();
        let model = begin(&mut alone, place, method, tied);
        let mut members = Members::start();
        for part in [Part::WHOLE, Part { index: 1, of: 3 }, Part { index: 500, of: 501 }] {
            // One agent judges what it merges; a delta of nothing leaves the state as it is.
            let trainee = Trainee::new(place::config(4, 16, CONTEXT), tied, method).unwrap();
            let values = trainee.tensors().iter().map(|spec| vec![0.0; spec.elements()]).collect();
            let delta = Delta { round: 0, bits: skein_compute::packing::Bits::All, values };
            delta.write(&place.join("nothing"), trainee.tensors()).unwrap();
            let (reply, _) = alone.ask(Task::Merge {
                model: model.clone(),
                state: text(place, "0"),
                deltas: vec![vec![text(place, "nothing")]],
                outer_rate_millionths: 700_000,
                momentum_millionths: 0,
                out: text(place, "1"),
                evaluate: Some(Judge { data: text(place, "text"), context: CONTEXT, part }),
            });
            let Reply::Merged { held_out_micronats, tokens: wanted, .. } = reply else { panic!("{reply:?}") };

            let opening = opening(place, &model, 0, 0);
            let purpose = GroupPurpose::Judge { part };
            let micros = members.open(&GroupTask { state: text(place, "1"), purpose, ..opening });
            assert_eq!(micros == 0, part.of == 501, "of too many parts some are empty");
            let mut none = [None; 3];
            for micro in (0..micros).rev() {
                assert!(members.forward(micro, &mut none).is_empty());
            }
            let (outs, loss, tokens) = members.close(place, "judged");
            assert_eq!((tokens, micros > 0), (wanted, wanted > 0));
            assert!((loss - held_out_micronats).abs() <= 5, "{loss} {held_out_micronats}");
            for (member, ((start, end), out)) in [(0, 1), (1, 3), (3, 4)].into_iter().zip(outs).enumerate() {
                let note: serde_json::Value = serde_json::from_slice(&fs::read(out).unwrap()).unwrap();
                let (tokens, loss) = if member == 2 { (tokens, loss) } else { (0, 0) };
                let wanted = serde_json::json!({
                    "round": 1, "start": start, "end": end, "tokens": tokens, "loss_micronats": loss
                });
                assert_eq!(note, wanted);
            }
        }
    }
}

#[test]
fn what_makes_no_group_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path();
    let mut worker = Worker::start();
    let model = begin(&mut worker, place, Method::Full, false);
    let task = opening(place, &model, 1, 2);
    let train = |change: fn(&mut InnerTask)| {
        let mut inner = inner(0);
        change(&mut inner);
        GroupPurpose::Train(inner)
    };
    let judge = GroupPurpose::Judge { part: Part::WHOLE };
    for (task, why) in [
        (GroupTask { start: 2, end: 5, ..task.clone() }, "layers 2 to 5 of a model that has 4"),
        (GroupTask { start: 2, end: 2, ..task.clone() }, "layers 2 to 2"),
        (GroupTask { start: 3, end: 1, ..task.clone() }, "layers 3 to 1"),
        (GroupTask { sequences: 0, ..task.clone() }, "sequences at once"),
        (GroupTask { sequences: 0, purpose: judge.clone(), ..task.clone() }, "sequences at once"),
        (GroupTask { sequences: u32::MAX, purpose: judge.clone(), ..task.clone() }, "frame"),
        (GroupTask { context: 0, ..task.clone() }, "tokens in a batch"),
        (GroupTask { context: 0, purpose: judge.clone(), ..task.clone() }, "a context of 0"),
        (GroupTask { context: u32::MAX, ..task.clone() }, "frame"),
        (GroupTask { context: u32::MAX, purpose: judge, ..task.clone() }, "hint: fewer sequences"),
        (GroupTask { purpose: train(|inner| inner.delta_bits = 5), ..task.clone() }, "deltas of 5 bits"),
        (GroupTask { purpose: train(|inner| inner.batch = 0), ..task.clone() }, "batch is 0"),
        (GroupTask { purpose: train(|inner| inner.inner_steps = 0), ..task.clone() }, "inner steps"),
        (
            GroupTask { purpose: train(|inner| inner.round = 1), ..task.clone() },
            "the checkpoint is of round 0",
        ),
        (GroupTask { state: text(place, "none"), ..task.clone() }, "none"),
        (GroupTask { state: text(place, "text"), ..task.clone() }, "text"),
        (GroupTask { data: text(place, "0"), ..task.clone() }, "train.tokens"),
        (GroupTask { data: String::new(), ..task.clone() }, "path"),
        (GroupTask { state: "x".repeat(5_000), ..task.clone() }, "path"),
    ] {
        let message = worker.fails(Task::GroupOpen(task));
        assert!(message.contains(why), "{why}: {message}");
    }
    let tied = place.join("tied");
    fs::create_dir(&tied).unwrap();
    let tied = add_model(&tied, &Drawn::new(place::config(4, 16, CONTEXT), true, 4));
    let message = worker.fails(Task::GroupOpen(GroupTask { model: tied, ..task.clone() }));
    assert!(message.contains("hint: train an adapter"), "{message}");
    assert!(matches!(worker.ask(Task::GroupOpen(task)).0, Reply::GroupOpened { micros: 3 }));
    worker.end().unwrap();
}

#[test]
fn what_comes_at_the_wrong_time_or_in_the_wrong_shape_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path();
    let mut worker = Worker::start();
    let model = begin(&mut worker, place, Method::Full, false);
    let rows = |sequences: u32| vec![0; (4 * 16 * CONTEXT * sequences) as usize];
    let forward = |micro, rows| Task::GroupForward { group: 7, micro, rows };
    let backward = |micro, rows| Task::GroupBackward { group: 7, micro, rows };
    let step = |squares| Task::GroupStep { group: 7, squares };
    let close = |out: Option<&str>| Task::GroupClose { group: 7, out: out.map(|name| text(place, name)) };
    for task in [forward(0, rows(2)), backward(0, rows(2)), step(0.0), close(None), close(Some("delta"))] {
        assert!(worker.fails(task).contains("group 7 is not open"));
    }
    worker.ask(Task::GroupOpen(opening(place, &model, 1, 2)));
    let poison = |value: f32| {
        let mut rows = rows(2);
        rows[16..20].copy_from_slice(&value.to_le_bytes());
        rows
    };
    let other = Task::GroupForward { group: 8, micro: 0, rows: rows(2) };
    let path = Task::GroupClose { group: 7, out: Some("x".repeat(5_000)) };
    for (task, why) in [
        (other, "group 8 is not open"),
        (path, "path"),
        (forward(3, rows(2)), "no micro-batch 3, there are 3"),
        (forward(u32::MAX, rows(2)), "no micro-batch"),
        (forward(0, Vec::new()), "0 bytes of rows, wanted 1024"),
        (forward(0, rows(1)), "512 bytes of rows, wanted 1024"),
        (forward(2, rows(2)), "1024 bytes of rows, wanted 512"),
        (forward(0, vec![0; 1_023]), "1023 bytes"),
        (forward(0, poison(f32::NAN)), "rows hold NaN at element 4"),
        (forward(0, poison(f32::INFINITY)), "rows hold inf at element 4"),
        (backward(0, rows(2)), "has not gone forward"),
        (backward(9, rows(2)), "no micro-batch 9"),
        (step(0.0), "micro-batch 0 of the step is not done"),
        (close(Some("delta")), "0 of 5 steps"),
    ] {
        let message = worker.fails(task);
        assert!(message.contains(why), "{why}: {message}");
    }
    let passes = |worker: &mut Worker, task| {
        let (reply, _) = worker.ask(task);
        let Reply::GroupRows { rows, squares } = reply else { panic!("{reply:?}") };
        (rows.len(), squares)
    };
    assert_eq!(passes(&mut worker, forward(0, poison(0.5))), (1_024, None));
    assert!(worker.fails(forward(0, rows(2))).contains("went forward already"));
    assert!(worker.fails(backward(0, poison(f32::NAN))).contains("rows hold NaN"));
    assert!(worker.fails(backward(0, rows(1))).contains("wanted 1024"));
    assert_eq!(passes(&mut worker, backward(0, poison(0.5))), (1_024, None));
    assert!(worker.fails(backward(0, rows(2))).contains("is done already"));
    passes(&mut worker, forward(2, rows(1)));
    passes(&mut worker, forward(1, rows(2)));
    passes(&mut worker, backward(1, rows(2)));
    assert!(worker.fails(step(1.0)).contains("micro-batch 2 of the step is not done"));
    let (_, squares) = passes(&mut worker, backward(2, rows(1)));
    assert!(squares.unwrap() > 0.0);
    assert_eq!(worker.ask(step(squares.unwrap())).0, Reply::GroupStepped { loss_micronats: None });
    assert!(worker.fails(close(Some("delta"))).contains("1 of 5 steps"));

    // What is forgotten is gone, and so is what made room for another or became infinite.
    let forgotten = Reply::GroupClosed { digest: None, loss_micronats: 0, tokens: 0 };
    assert_eq!(worker.ask(close(None)).0, forgotten);
    assert!(worker.fails(close(None)).contains("not open"));
    let first = opening(place, &model, 0, 1);
    worker.ask(Task::GroupOpen(first.clone()));
    assert!(worker.fails(forward(0, rows(2))).contains("first stage"));
    for (micro, sequences) in [(0, 2), (1, 2), (2, 1)] {
        passes(&mut worker, forward(micro, Vec::new()));
        assert_eq!(passes(&mut worker, backward(micro, rows(sequences))).0, 0);
    }
    let message = worker.fails(step(f64::INFINITY));
    assert!(message.contains("norm is inf at step 0 of outer step 0"), "{message}");
    assert!(worker.fails(step(1.0)).contains("not open"));
    worker.ask(Task::GroupOpen(first.clone()));
    worker.ask(Task::GroupOpen(GroupTask { group: 8, ..first }));
    assert!(worker.fails(forward(0, Vec::new())).contains("group 7 is not open"));
    train_alone(&mut worker, place, &model, 0, &text(place, "0"));
    assert!(worker.fails(Task::GroupClose { group: 8, out: None }).contains("not open"));

    // A model that is judged goes one way, once.
    let purpose = GroupPurpose::Judge { part: Part::WHOLE };
    worker.ask(Task::GroupOpen(GroupTask { purpose, ..opening(place, &model, 1, 2) }));
    assert!(worker.fails(close(Some("note"))).contains("micro-batch 0 was not judged"));
    passes(&mut worker, forward(0, rows(2)));
    assert!(worker.fails(forward(0, rows(2))).contains("judged already"));
    assert!(worker.fails(backward(0, rows(2))).contains("no way back"));
    assert!(worker.fails(step(0.0)).contains("takes no step"));
    worker.end().unwrap();
}

#[test]
fn what_leaves_the_numbers_is_said_and_ends_the_group() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path();
    let mut worker = Worker::start();
    let model = begin(&mut worker, place, Method::Full, false);
    let trainee = Trainee::new(place::config(4, 16, CONTEXT), false, Method::Full).unwrap();
    let mut state = Checkpoint::read(&place.join("0"), trainee.tensors()).unwrap();
    // Finite, yet products of them are not; an embedding so large would be cut down by the first norm.
    state.weights.iter_mut().skip(1).flatten().for_each(|weight| *weight *= 1e30);
    state.write(&place.join("0"), trainee.tensors()).unwrap();
    let judge = GroupPurpose::Judge { part: Part::WHOLE };
    let forward = |rows: u32| {
        let rows = (0..rows * 16 * CONTEXT).flat_map(|at| (at as f32).sin().to_le_bytes()).collect();
        Task::GroupForward { group: 7, micro: 0, rows }
    };
    for (start, end, rows) in [(0, 1, 0), (1, 3, 2), (3, 4, 2)] {
        for (purpose, why) in [
            (judge.clone(), "by the checkpoint of round 0"),
            (opening(place, &model, 0, 1).purpose, "at step 0 of outer step 0"),
        ] {
            let task = GroupTask { purpose, ..opening(place, &model, start, end) };
            worker.ask(Task::GroupOpen(task));
            let message = worker.fails(forward(rows));
            assert!(message.contains(why), "{start}: {message}");
            assert!(
                worker
                    .fails(Task::GroupClose { group: 7, out: Some(text(place, "out")) })
                    .contains("not open")
            );
        }
    }
    assert!(!place.join("out").exists());
    worker.end().unwrap();
}
