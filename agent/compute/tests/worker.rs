//! Owns the promises of the worker over its pipes. Must never start a process or need a GPU.

#![expect(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a broken assumption should stop the test"
)]

mod pipes;
#[expect(dead_code, reason = "other tests use the rest")]
mod place;

use std::fs;
use std::io::Write;
use std::path::Path;

use pipes::{Worker, add_model, text};
use skein_compute::checkpoint::Checkpoint;
use skein_compute::data::Part;
use skein_compute::drawn::Drawn;
use skein_compute::protocol::{
    FrameError, InnerTask, Judge, ModelTask, PhaseTask, Reply, Response, StageTask, Task,
};
use skein_compute::trained::Trained;
use skein_compute::trainee::{Method, Trainee};
use skein_compute::worker::WorkerError;
use skein_engine::step::{Chunk, Input, Output, Sampling, Want};

/// A model of that many layers and that context, a text, and the task's name for both.
fn prepare(place: &Path, layers: u32, context: u32) -> ModelTask {
    place::write_data(&place.join("text"), &"honk! ".repeat(100));
    add_model(place, &Drawn::new(place::config(layers, 16, context), false, 4))
}

fn judge(place: &Path, context: u32) -> Option<Judge> {
    Some(Judge { data: text(place, "text"), context, part: Part::WHOLE })
}

fn phase(place: &Path, model: &ModelTask, index: u64, steps: u32) -> PhaseTask {
    PhaseTask {
        model: model.clone(),
        state: text(place, "0"),
        data: text(place, "text"),
        context: 12,
        at_once: 2,
        recompute: index == 1,
        inner: InnerTask {
            inner_steps: steps,
            batch: 2,
            learning_rate_millionths: 10_000,
            warmup_steps: 4,
            delta_bits: 4,
            round: 0,
            rounds: 10,
            first: index * 1_000,
            seed: 3,
        },
    }
}

fn train(place: &Path, phase: PhaseTask, out: &str) -> Task {
    Task::Train { phase, out: text(place, out) }
}

#[test]
fn a_job_from_init_to_greedy_decoding_over_two_stages() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path();
    let model = prepare(place, 2, 12);
    let mut worker = Worker::start();
    let (described, _) = worker.ask(Task::Describe);
    assert!(matches!(described, Reply::Described { device, .. } if device == "cpu"));

    let evaluate = judge(place, 12);
    let init =
        Task::Init { model: model.clone(), seed: 4, out: text(place, "0"), evaluate: evaluate.clone() };
    let (reply, _) = worker.ask(init);
    let Reply::Initialised { digest, held_out_micronats: Some(held_out_micronats) } = reply else {
        panic!("{reply:?}")
    };
    assert!((4_500_000..6_500_000).contains(&held_out_micronats), "it guesses: {held_out_micronats}");
    assert_eq!(digest, *blake3::hash(&fs::read(place.join("0")).unwrap()).as_bytes());

    for index in 0..2 {
        let (reply, progress) =
            worker.ask(train(place, phase(place, &model, index, 80), &format!("delta{index}")));
        assert_eq!(progress, 80);
        let Reply::Trained { tokens, loss_micronats, digest, .. } = reply else { panic!("{reply:?}") };
        assert_eq!(tokens, 80 * 2 * 12);
        assert!((100_000..6_000_000).contains(&loss_micronats), "{loss_micronats}");
        let file = fs::read(place.join(format!("delta{index}"))).unwrap();
        assert_eq!(digest, *blake3::hash(&file).as_bytes());
    }
    let (reply, _) = worker.ask(Task::Merge {
        model: model.clone(),
        state: text(place, "0"),
        deltas: vec![vec![text(place, "delta0")], vec![text(place, "delta1")]],
        outer_rate_millionths: 700_000,
        momentum_millionths: 400_000,
        out: text(place, "1"),
        evaluate,
    });
    let Reply::Merged { round: 1, held_out_micronats: merged, .. } = reply else { panic!("{reply:?}") };
    assert!(merged < 1_000_000, "{merged}");

    let trainee = Trainee::new(place::config(2, 16, 12), false, Method::Full).unwrap();
    let checkpoint = Checkpoint::read(&place.join("1"), trainee.tensors()).unwrap();
    let manifest = add_model(place, &Trained::new(&trainee, checkpoint)).manifest;
    for (stage, start) in [(10, 0), (11, 1)] {
        let pieces = place.to_str().unwrap().to_owned();
        let (context, cache_bytes) = (12, 1 << 20);
        let task = StageTask {
            stage,
            manifest: manifest.clone(),
            pieces,
            start,
            end: start + 1,
            context,
            cache_bytes,
        };
        let (Reply::StageOpened { resident_bytes }, _) = worker.ask(Task::StageOpen(task)) else { panic!() };
        assert!(resident_bytes > 0);
    }
    let sampling = Sampling { temperature: 0.0, top_p: 1.0, seed: 0, top_logprobs: 0 };
    let (mut said, mut fresh) = (b"honk".to_vec(), 0);
    while said.len() < 12 {
        let input = Input::Tokens(said[fresh..].iter().map(|byte| u32::from(*byte)).collect());
        let want = Want::Picks { from: (said.len() - fresh - 1) as u32, sampling };
        let chunk = Chunk { session: 5, position: fresh as u32, input, want };
        fresh = said.len();
        let task = Task::StageStep { stage: 10, chunk: chunk.clone() };
        let (Reply::Stepped { output: Output::Rows(rows), .. }, _) = worker.ask(task) else { panic!() };
        let task = Task::StageStep { stage: 11, chunk: Chunk { input: Input::Rows(rows), ..chunk } };
        let (Reply::Stepped { output: Output::Picks(picks), .. }, _) = worker.ask(task) else { panic!() };
        said.push(picks[0].token as u8);
    }
    assert_eq!(String::from_utf8_lossy(&said), "honk! honk! ");
    let close = |stage| Task::SessionClose { stage, session: 5, length: 11 };
    assert_eq!(worker.ask(close(10)).0, Reply::SessionClosed { spans: Vec::new() });
    let (Reply::SessionClosed { spans }, _) = worker.ask(close(11)) else { panic!() };
    let spans: Vec<(u32, u8)> = spans.iter().map(|span| (span.first, span.count)).collect();
    assert_eq!(spans, [(3, 8)], "the states that gave the eight tokens");
    assert_eq!(worker.ask(Task::StageClose { stage: 10 }).0, Reply::Closed { existed: true });
    assert_eq!(worker.ask(Task::StageClose { stage: 10 }).0, Reply::Closed { existed: false });
    worker.end().unwrap();
}

#[test]
fn a_phase_is_shown_checked_by_another_worker_and_forgotten() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path();
    let model = prepare(place, 2, 12);
    let (mut maker, mut checker) = (Worker::start(), Worker::start());
    maker.ask(Task::Init { model: model.clone(), seed: 4, out: text(place, "0"), evaluate: None });
    let trained = |worker: &mut Worker, index: u64, out: &str| {
        let (reply, _) = worker.ask(train(place, phase(place, &model, index, 10), out));
        let Reply::Trained { began, digest, .. } = reply else { panic!("{reply:?}") };
        (began, digest)
    };
    let show = |began, name: &str| Task::Show { model: model.clone(), began, out: text(place, name) };
    let check = |index: u64, began: &str, delta: &str| {
        let theirs = ModelTask { job: [2; 32], ..model.clone() };
        let phase = phase(place, &theirs, index, 10);
        Task::Check { phase, began: text(place, began), delta: text(place, delta) }
    };
    let began: Vec<[u8; 32]> =
        (0..3).map(|index| trained(&mut maker, index, &format!("made{index}")).0).collect();
    assert!(maker.fails(show(began[0], "began0")).contains("are gone"), "the last two alone are kept");
    for (index, began) in began.iter().enumerate().skip(1) {
        let name = format!("began{index}");
        assert_eq!(maker.ask(show(*began, &name)).0, Reply::Shown { digest: *began });
        assert_eq!(*began, *blake3::hash(&fs::read(place.join(name)).unwrap()).as_bytes());
    }

    // The checker has a job of its own, which goes on as if nothing had been asked.
    trained(&mut checker, 0, "own0");
    for (index, began, made, steps, honest) in [
        (1, "began1", "made1", 10, true),
        (2, "began2", "made2", 10, true),
        (2, "began2", "made1", 20, false),
    ] {
        let (reply, progress) = checker.ask(check(index, began, made));
        let Reply::Checked { distance_millionths } = reply else { panic!("{reply:?}") };
        assert_eq!(progress, steps);
        assert_eq!(distance_millionths == 0, honest, "{distance_millionths}");
    }
    let same = |task| match task {
        Task::Check { phase, began, delta } => {
            Task::Check { phase: PhaseTask { model: model.clone(), ..phase }, began, delta }
        }
        other => other,
    };
    assert_eq!(checker.ask(same(check(1, "began1", "made1"))).0, Reply::Checked { distance_millionths: 0 });
    assert_eq!(trained(&mut checker, 1, "own1"), trained(&mut maker_again(place, &model), 1, "again1"));
    let other = ModelTask { job: [3; 32], ..model.clone() };
    maker.ask(train(place, phase(place, &other, 0, 1), "other"));
    assert!(maker.fails(show(began[2], "began2")).contains("are gone"));
    assert!(
        maker
            .fails(Task::Show { out: String::new(), model: model.clone(), began: began[2] })
            .contains("path")
    );
    maker.end().unwrap();
    checker.end().unwrap();
}

/// A worker that trained the first slice and nothing else.
fn maker_again(place: &Path, model: &ModelTask) -> Worker {
    let mut worker = Worker::start();
    worker.ask(train(place, phase(place, model, 0, 10), "again0"));
    worker
}

#[test]
fn failures_are_replies_and_the_worker_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path();
    let mut worker = Worker::start();
    let model = prepare(place, 1, 12);
    let whole = phase(place, &model, 0, 1);
    let missing = PhaseTask { state: text(place, "none"), ..whole.clone() };
    assert!(worker.fails(train(place, missing, "delta")).contains("none"));
    let unknown = ModelTask { manifest: text(place, "nothing"), ..model.clone() };
    assert!(worker.fails(train(place, phase(place, &unknown, 0, 1), "delta")).contains("nothing"));
    let chunk = Chunk { session: 1, position: 0, input: Input::Tokens(vec![1]), want: Want::Nothing };
    assert!(worker.fails(Task::StageStep { stage: 1, chunk }).contains("not open"));
    let long = PhaseTask { state: "x".repeat(5_000), ..whole.clone() };
    assert!(worker.fails(train(place, long, "delta")).contains("path"));
    fs::write(place.join("0"), [7; 100]).unwrap();
    assert!(worker.fails(train(place, whole, "delta")).contains("safetensors"));
    let merge = Task::Merge {
        model,
        state: text(place, "0"),
        deltas: vec![vec![text(place, "d")]; 5_000],
        outer_rate_millionths: 0,
        momentum_millionths: 0,
        out: text(place, "1"),
        evaluate: judge(place, 12),
    };
    assert!(worker.fails(merge).contains("5000 files of deltas"));
    assert!(matches!(worker.ask(Task::Describe).0, Reply::Described { .. }));
    worker.end().unwrap();
}

#[test]
fn a_cancel_stops_a_running_and_a_waiting_task() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path();
    let model = prepare(place, 1, 12);
    let mut worker = Worker::start();
    let evaluate = judge(place, 12);
    worker.ask(Task::Init { model: model.clone(), seed: 4, out: text(place, "0"), evaluate });
    let running = worker.send(train(place, phase(place, &model, 0, 100_000), "delta0"));
    let waiting = worker.send(train(place, phase(place, &model, 1, 100_000), "delta1"));
    while !matches!(worker.reply().body, Reply::Progress { done: 3, .. }) {}
    worker.send(Task::Cancel { id: waiting });
    worker.send(Task::Cancel { id: running });
    let mut last = worker.reply();
    while matches!(last.body, Reply::Progress { .. }) {
        last = worker.reply();
    }
    assert_eq!(last, Response { id: running, body: Reply::Cancelled });
    assert_eq!(worker.reply(), Response { id: waiting, body: Reply::Cancelled });
    assert!(!place.join("delta0").exists());
    // What was cut off left no trace in the optimiser: the next slice is that of a worker that never began it.
    let slice = |name: &str| train(place, phase(place, &model, 2, 4), name);
    let after = worker.ask(slice("after")).0;
    let mut fresh = Worker::start();
    assert_eq!(after, fresh.ask(slice("fresh")).0);
    assert!(matches!(after, Reply::Trained { .. }), "{after:?}");
    for worker in [worker, fresh] {
        worker.end().unwrap();
    }
}

#[test]
fn the_end_of_the_pipe_is_noticed_while_a_task_runs() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path();
    let model = prepare(place, 1, 12);
    let mut worker = Worker::start();
    let evaluate = judge(place, 12);
    worker.ask(Task::Init { model: model.clone(), seed: 4, out: text(place, "0"), evaluate });
    worker.send(train(place, phase(place, &model, 0, 100_000), "delta0"));
    worker.reply();
    let Worker { to, from, thread, gone, .. } = worker;
    drop(to);
    // In the real worker this is where the process exits.
    gone.recv().unwrap();
    assert!(!thread.is_finished());
    // Here the task ends because nobody reads its progress any more.
    drop(from);
    assert!(matches!(thread.join().unwrap(), Err(WorkerError::Frame(FrameError::Pipe(_)))));
}

#[test]
fn broken_frames_end_the_worker_with_an_error() {
    let frames: [(&[u8], &str); 3] = [
        (&[3, 0, 0, 0, 0xff, 0xff, 0xff], "no message"),
        (&[0xff; 4], "exceeds"),
        (&[9, 0, 0, 0, 1], "inside a frame"),
    ];
    for (bytes, problem) in frames {
        let mut worker = Worker::start();
        worker.to.write_all(bytes).unwrap();
        let error = worker.end().unwrap_err().to_string();
        assert!(error.contains(problem), "{error}");
    }
}
