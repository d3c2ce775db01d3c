//! `skein run batch.toml`: many requests from a file of JSON Lines in OpenAI's batch format, each answered
//! exactly once, whatever is killed on the way.
//!
//! The output file is the only state: every answer is on disk before the next request of its place is sent,
//! so the same command goes on where a crash, of the agent or of this command, broke it off. Must never
//! reorder what is in the file, nor answer a `custom_id` twice.

use std::collections::BTreeSet;
use std::fs::{File, TryLockError};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::client::Client;
use crate::limits::{BATCH_LINE_BYTES_MAX, BATCH_PATIENCE, BATCH_RETRY_MAX, BATCH_RETRY_MIN};

/// A batch, with its paths resolved.
pub(crate) struct Batch {
    /// Used where a request names no model.
    pub(crate) model: String,
    pub(crate) input: PathBuf,
    pub(crate) output: PathBuf,
    /// Requests under way at once.
    pub(crate) at_once: usize,
}

/// A line of the input.
#[derive(Deserialize)]
struct Request {
    custom_id: String,
    #[serde(default = "post")]
    method: String,
    url: String,
    body: Value,
}

fn post() -> String {
    "POST".into()
}

const URLS: [&str; 2] = ["/v1/chat/completions", "/v1/completions"];

/// Answers what is not answered yet; returns how many answers the output holds, and how many of them are refusals.
///
/// # Errors
/// When the input is wrong, the output cannot be written, or the agent stays away.
pub(crate) fn run(client: &Client, batch: &Batch) -> Result<(u64, u64)> {
    let wanted = check_input(&batch.input)?;
    let (output, done) = open_output(&batch.output)?;
    if let Some(stranger) = done.ids.iter().find(|id| !wanted.contains(*id)) {
        bail!(
            "{} answers `{stranger}`, which {} does not ask\nhint: is it another batch's output? Move it away",
            batch.output.display(),
            batch.input.display()
        );
    }
    let bar = progress(wanted.len() as u64, done.ids.len() as u64)?;
    let left = wanted.len() - done.ids.len();
    let writer = Mutex::new(Writer { output, refused: done.refused });
    let (sender, requests) = sync_channel::<Request>(batch.at_once);
    let requests = Mutex::new(requests);
    let failure = Mutex::new(None);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..batch.at_once.clamp(1, left.max(1)) {
            scope.spawn(|| {
                loop {
                    let Ok(request) = guard(&requests).recv() else { break };
                    if stop.load(Ordering::Relaxed) {
                        continue;
                    }
                    let answered = answer(client, batch, request, &stop);
                    let written = answered.and_then(|line| guard(&writer).append(&line));
                    match written {
                        Ok(()) => bar.inc(1),
                        Err(error) => {
                            stop.store(true, Ordering::Relaxed);
                            guard(&failure).get_or_insert(error);
                        }
                    }
                }
            });
        }
        // Here, so that the whole input is never in memory.
        let fed = feed(&batch.input, &done.ids, &sender, &stop);
        drop(sender);
        if let Err(error) = fed {
            guard(&failure).get_or_insert(error);
        }
    });
    bar.finish_and_clear();
    if let Some(error) = failure.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
        return Err(
            error.context("the batch is not complete\nhint: the same command goes on where it stopped")
        );
    }
    let refused = guard(&writer).refused;
    Ok((wanted.len() as u64, refused))
}

/// Every `custom_id` of the input, each line checked before anything is asked.
fn check_input(path: &Path) -> Result<BTreeSet<String>> {
    let mut ids = BTreeSet::new();
    lines(path, |number, line| {
        let request: Request = serde_json::from_str(line).with_context(|| {
            format!(
                "line {number} of {} is no request\nhint: {{\"custom_id\": …, \"method\": \"POST\", \"url\": \"{}\", \"body\": {{…}}}}",
                path.display(),
                URLS[0]
            )
        })?;
        let place = || format!("line {number} of {}", path.display());
        ensure!(
            request.method == "POST",
            "{}: method is `{}`, only POST is possible",
            place(),
            request.method
        );
        ensure!(
            URLS.contains(&request.url.as_str()),
            "{}: url is `{}`\nhint: possible are {}",
            place(),
            request.url,
            URLS.join(" and ")
        );
        ensure!(request.body.is_object(), "{}: body is no object", place());
        ensure!(
            ids.insert(request.custom_id.clone()),
            "{}: custom_id `{}` is there twice\nhint: each request needs its own",
            place(),
            request.custom_id
        );
        Ok(())
    })?;
    ensure!(!ids.is_empty(), "{} holds no requests", path.display());
    Ok(ids)
}

/// Calls `each` with the number, from 1, and the text of every line that is not empty.
fn lines(path: &Path, mut each: impl FnMut(u64, &str) -> Result<()>) -> Result<()> {
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut reader = BufReader::new(file);
    let mut line = String::new();
    for number in 1u64.. {
        line.clear();
        let mut bounded = (&mut reader).take(BATCH_LINE_BYTES_MAX);
        let read = bounded.read_line(&mut line);
        let read =
            read.with_context(|| format!("line {number} of {} cannot be read as text", path.display()))?;
        if read == 0 {
            break;
        }
        let cut = read as u64 == BATCH_LINE_BYTES_MAX && !line.ends_with('\n');
        ensure!(!cut, "line {number} of {} has more than {BATCH_LINE_BYTES_MAX} bytes", path.display());
        if !line.trim().is_empty() {
            each(number, &line)?;
        }
    }
    Ok(())
}

/// What an earlier run answered.
#[derive(Default)]
struct Done {
    ids: BTreeSet<String>,
    refused: u64,
}

/// The output, locked, with a line that a crash cut short removed, and what it holds.
fn open_output(path: &Path) -> Result<(File, Done)> {
    let cannot = || format!("cannot write {}", path.display());
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .with_context(cannot)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => bail!("another `skein run` writes {}", path.display()),
        Err(TryLockError::Error(error)) => return Err(error).with_context(cannot),
    }
    let mut done = Done::default();
    let mut whole = 0;
    let mut reader = BufReader::new(&file);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = reader.read_until(b'\n', &mut line).with_context(cannot)?;
        if read == 0 || !line.ends_with(b"\n") {
            break;
        }
        let answer: Value = serde_json::from_slice(&line).with_context(|| {
            format!("{} holds a line that is no answer\nhint: move it away to begin anew", path.display())
        })?;
        let id = answer["custom_id"].as_str().context("an answer without custom_id")?;
        done.ids.insert(id.to_owned());
        done.refused += u64::from(answer["response"]["status_code"] != 200);
        whole += read as u64;
    }
    drop(reader);
    file.set_len(whole).with_context(cannot)?;
    file.seek(SeekFrom::Start(whole)).with_context(cannot)?;
    Ok((file, done))
}

/// Hands out every request that has no answer yet.
fn feed(
    input: &Path,
    done: &BTreeSet<String>,
    sender: &std::sync::mpsc::SyncSender<Request>,
    stop: &AtomicBool,
) -> Result<()> {
    lines(input, |_, line| {
        let request: Request = serde_json::from_str(line)?;
        if !done.contains(&request.custom_id) && !stop.load(Ordering::Relaxed) {
            let _ = sender.send(request);
        }
        Ok(())
    })
}

/// The output line for one request. A busy or absent agent is asked again for a while; a refusal is an answer.
fn answer(client: &Client, batch: &Batch, mut request: Request, stop: &AtomicBool) -> Result<String> {
    if request.body["model"].is_null() {
        request.body["model"] = json!(batch.model);
    }
    request.body["stream"] = json!(false);
    let started = Instant::now();
    let mut wait = BATCH_RETRY_MIN;
    let mut restarted: Option<Client> = None;
    let (status, body) = loop {
        let failed = match restarted.as_ref().unwrap_or(client).post_any(&request.url, &request.body) {
            Ok((status, body)) if status != 429 && status < 500 => break (status, body),
            Ok((status, body)) => format!("{status}: {}", body["error"]["message"]),
            Err(error) => format!("{error:#}"),
        };
        if started.elapsed() > BATCH_PATIENCE || stop.load(Ordering::Relaxed) {
            bail!("`{}` was not answered: {failed}", request.custom_id);
        }
        std::thread::sleep(wait);
        // An agent that was started again may listen elsewhere.
        restarted = client.again().ok();
        wait = (wait * 2).min(BATCH_RETRY_MAX);
    };
    let id = body["id"].as_str().unwrap_or_default();
    let line = json!({
        "id": format!("batch_req_{id}"),
        "custom_id": request.custom_id,
        "response": { "status_code": status, "request_id": id, "body": body },
        "error": null,
    });
    Ok(line.to_string())
}

struct Writer {
    output: File,
    refused: u64,
}

impl Writer {
    /// Adds a line and waits until it is on disk.
    fn append(&mut self, line: &str) -> Result<()> {
        let whole = format!("{line}\n");
        self.output
            .write_all(whole.as_bytes())
            .context("cannot write the output\nhint: is the disk full?")?;
        self.output.sync_data().context("cannot write the output\nhint: is the disk full?")?;
        self.refused += u64::from(!line.contains("\"status_code\":200"));
        Ok(())
    }
}

fn guard<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn progress(of: u64, done: u64) -> Result<ProgressBar> {
    let bar = ProgressBar::with_draw_target(Some(of), ProgressDrawTarget::stderr());
    let style = "{bar:30} {pos} of {len} answered, {per_sec}, about {eta} left";
    bar.set_style(ProgressStyle::with_template(style)?);
    // What an earlier run answered must not count for the pace of this one.
    bar.set_position(done);
    bar.reset_eta();
    bar.enable_steady_tick(Duration::from_millis(250));
    Ok(bar)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &tempfile::TempDir, name: &str, text: &str) -> PathBuf {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    #[test]
    fn wrong_input_is_named_by_line_before_anything_is_asked() {
        let folder = tempfile::tempdir().unwrap();
        let good = r#"{"custom_id":"a","method":"POST","url":"/v1/completions","body":{}}"#;
        let cases = [
            (format!("{good}\n{good}\n"), "line 2"),
            (format!("{good}\n\nnonsense\n"), "line 3"),
            (good.replace("POST", "GET"), "only POST"),
            (good.replace("/v1/completions", "/v1/embeddings"), "/v1/embeddings"),
            ("\n\n".into(), "no requests"),
        ];
        for (text, problem) in cases {
            let path = write(&folder, "in.jsonl", &text);
            let error = format!("{:#}", check_input(&path).unwrap_err());
            assert!(error.contains(problem), "{error}");
        }
        let path = write(&folder, "in.jsonl", &format!("{good}\n{}", good.replace("\"a\"", "\"b\"")));
        assert_eq!(check_input(&path).unwrap().len(), 2);
    }

    #[test]
    fn a_line_that_a_crash_cut_short_is_removed_and_the_rest_kept() {
        let folder = tempfile::tempdir().unwrap();
        let whole = "{\"custom_id\":\"a\",\"response\":{\"status_code\":200}}\n{\"custom_id\":\"b\",\"response\":{\"status_code\":400}}\n";
        let path = write(&folder, "out.jsonl", &format!("{whole}{{\"custom_id\":\"c\",\"resp"));
        let (file, done) = open_output(&path).unwrap();
        assert_eq!((done.ids.len(), done.refused), (2, 1));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), whole);
        assert!(open_output(&path).is_err(), "two writers");
        drop(file);
        assert!(open_output(&path).is_ok());
    }
}
