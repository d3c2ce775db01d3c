//! Real agents: the built binary as processes on loopback, with their data in a temporary directory.
//!
//! Owns starting, asking, signalling and ending them. No process and no file survives a test, however it
//! ends. Must never sleep for luck: it waits for conditions, each with a deadline.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use skein_ledger::log::{self, Log};
use skein_proto::ids::{NetworkId, NodeId};
use tempfile::TempDir;

use crate::command::{run, skein};
use crate::http::{self, Answer};

/// Agents measure their devices and use both cores: tests of one file take turns.
static TURN: Mutex<()> = Mutex::new(());

/// For what takes a moment on a machine that is busy with other things.
pub const SOON: Duration = Duration::from_secs(30);
/// For what takes a lease's time to live or more.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// A text to train on.
pub const TEXT: &[u8] = include_bytes!("../../agent/demo/shakespeare.txt");

/// Asks again and again until there is an answer.
///
/// # Errors
/// When asking fails, or there is none in time.
pub fn wait_for<T>(what: &str, patience: Duration, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let started = Instant::now();
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        if started.elapsed() > patience {
            bail!("waited {} s in vain for {what}", patience.as_secs());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Agents that know each other's genesis, in one temporary directory. Only one such group at a time.
#[derive(Debug)]
pub struct Network {
    /// The agents; the first is whom the others met first.
    pub agents: Vec<Agent>,
    /// Everything is below this.
    pub folder: TempDir,
    genesis: PathBuf,
    _turn: MutexGuard<'static, ()>,
}

impl Network {
    /// An empty network whose epochs last `epoch_ms`.
    ///
    /// # Errors
    /// When the temporary directory cannot be written.
    pub fn empty(epoch_ms: u64) -> Result<Self> {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = TempDir::with_prefix("skein-test-")?;
        let genesis = folder.path().join("genesis.toml");
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
        let text =
            format!("name = \"test\"\npolicy = \"io\"\nstarted_at_ms = {now}\nepoch_ms = {epoch_ms}\n");
        fs::write(&genesis, text)?;
        Ok(Self { agents: Vec::new(), folder, genesis, _turn: turn })
    }

    /// A network of so many agents that have met and obey one coordinator.
    ///
    /// # Errors
    /// When they do not meet.
    pub fn of(count: usize, epoch_ms: u64) -> Result<Self> {
        let mut network = Self::empty(epoch_ms)?;
        for _ in 0..count {
            network.join(&[])?;
        }
        network.met(count)?;
        Ok(network)
    }

    /// The genesis file.
    pub fn genesis(&self) -> &Path {
        &self.genesis
    }

    /// Starts one more agent with these arguments, and nobody to meet unless they name somebody.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(&mut self, arguments: &[&str]) -> Result<&mut Agent> {
        let data_dir = self.folder.path().join(format!("agent-{}", self.agents.len() + 1));
        let agent = Agent::start(data_dir, &self.genesis, arguments)?;
        self.agents.push(agent);
        self.agents.last_mut().context("an agent was just added")
    }

    /// Starts one more agent, which meets the first.
    ///
    /// # Errors
    /// When it does not start.
    pub fn join(&mut self, more: &[&str]) -> Result<&mut Agent> {
        let bootstrap = self.agents.first().map(|first| format!("{}@{}", first.node, first.listen));
        let mut arguments: Vec<&str> = more.to_vec();
        if let Some(bootstrap) = &bootstrap {
            arguments.extend(["--bootstrap", bootstrap]);
        }
        self.start(&arguments)
    }

    /// Waits until so many agents, all that live, have each other's offers and obey one coordinator.
    ///
    /// # Errors
    /// When they do not in time.
    pub fn met(&mut self, count: usize) -> Result<()> {
        wait_for("the agents to meet", SOON, || {
            let mut coordinators = Vec::new();
            for agent in self.agents.iter_mut().filter(|agent| agent.process.is_some()) {
                let status = agent.status()?;
                let peers = status["peers"]
                    .as_array()
                    .map_or(0, |peers| peers.iter().filter(|peer| peer["device"].is_string()).count());
                if peers + 1 != count || status["visible"] != true {
                    return Ok(None);
                }
                coordinators.push(status["coordinator"].clone());
            }
            let agreed =
                coordinators.len() == count && coordinators.windows(2).all(|pair| pair[0] == pair[1]);
            Ok(agreed.then_some(()))
        })
    }

    /// The test came to its end: nobody ever panicked, and nobody's story needs to be told.
    ///
    /// # Errors
    /// With the story of an agent that panicked.
    pub fn finish(mut self) -> Result<()> {
        for agent in &mut self.agents {
            agent.never_panicked()?;
            agent.told = true;
        }
        Ok(())
    }

    /// The place of the coordinator among the agents, as the first that lives sees it.
    ///
    /// # Errors
    /// When there is none.
    pub fn coordinator(&self) -> Result<usize> {
        let living = self.agents.iter().find(|agent| agent.process.is_some()).context("nobody lives")?;
        let coordinator = living.status()?["coordinator"].as_str().context("no coordinator")?.to_owned();
        self.place(&coordinator)
    }

    /// The place of the agent with this id.
    ///
    /// # Errors
    /// When it is not one of these.
    pub fn place(&self, node: &str) -> Result<usize> {
        self.agents
            .iter()
            .position(|agent| agent.node == node)
            .with_context(|| format!("{node} is a stranger"))
    }
}

/// One agent, alive or killed.
#[derive(Debug)]
pub struct Agent {
    /// Its data directory.
    pub data_dir: PathBuf,
    /// Its node id.
    pub node: String,
    /// Where others reach it.
    pub listen: SocketAddr,
    /// Where its local API answers.
    pub api: SocketAddr,
    /// What commands it.
    pub token: String,
    /// Its process; none once it ended.
    pub process: Option<Child>,
    genesis: PathBuf,
    arguments: Vec<String>,
    story: PathBuf,
    told: bool,
}

impl Agent {
    /// Starts an agent and waits until its API is there.
    ///
    /// # Errors
    /// When it ends instead; the error is what it said.
    pub fn start(data_dir: PathBuf, genesis: &Path, arguments: &[&str]) -> Result<Self> {
        let story = data_dir.with_extension("story");
        let mut agent = Self {
            data_dir,
            node: String::new(),
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            api: SocketAddr::from(([127, 0, 0, 1], 0)),
            token: String::new(),
            process: None,
            genesis: genesis.to_owned(),
            arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(),
            story,
            told: false,
        };
        agent.restart()?;
        Ok(agent)
    }

    /// Starts it (again) over its data.
    ///
    /// # Errors
    /// As [`Agent::start`].
    pub fn restart(&mut self) -> Result<()> {
        let running_file = self.data_dir.join("agent.json");
        // A killed agent leaves this file, which must not be taken for the new one's.
        let _ = fs::remove_file(&running_file);
        fs::create_dir_all(&self.data_dir)?;
        let policy = self.data_dir.join("policy.toml");
        if !policy.exists() {
            // Whether there is room on the disk of whoever runs the tests is not what they are about.
            fs::write(&policy, "disk_free_min = \"off\"\n")?;
        }
        let mut command = skein(&["up", "--headless", "--device", "cpu", "--threads", "1"])?;
        if !self.arguments.iter().any(|argument| argument == "--listen") {
            command.args(["--listen", &self.listen.to_string()]);
        }
        if !self.arguments.iter().any(|argument| argument == "--api") {
            command.args(["--api", "127.0.0.1:0"]);
        }
        command
            .arg("--data-dir")
            .arg(&self.data_dir)
            .arg("--network")
            .arg(&self.genesis)
            .args(&self.arguments);
        // In a group of its own, so that a worker that is stopped or stuck can be ended with it.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let said = File::options().create(true).append(true).open(&self.story)?;
        let mut process = command.stdout(Stdio::null()).stderr(said).spawn()?;
        let running = wait_for("the agent to start", SOON, || {
            if let Some(status) = process.try_wait()? {
                bail!("the agent ended at once ({status}): {}", self.story());
            }
            let running = fs::read(&running_file).ok();
            Ok(running.and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok()))
        });
        self.process = Some(process);
        let running = running?;
        let text = |key: &str| running[key].as_str().with_context(|| format!("no {key} in {running}"));
        self.node = text("node")?.to_owned();
        self.listen = text("listen")?.parse()?;
        self.api = text("api")?.parse()?;
        self.token = text("token")?.to_owned();
        Ok(())
    }

    /// `--data-dir` for a command about this agent.
    pub fn dir(&self) -> String {
        self.data_dir.display().to_string()
    }

    /// What it wrote to stderr so far.
    pub fn story(&self) -> String {
        fs::read_to_string(&self.story).unwrap_or_default()
    }

    /// Its process id.
    ///
    /// # Errors
    /// When it ended.
    pub fn pid(&self) -> Result<u32> {
        self.process.as_ref().map(Child::id).context("the agent has ended")
    }

    /// What it says of itself.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn status(&self) -> Result<Value> {
        self.get("/api/status")
    }

    /// GET, as JSON.
    ///
    /// # Errors
    /// When the answer is no success.
    pub fn get(&self, path: &str) -> Result<Value> {
        let answer = http::send(self.api, &http::request("GET", path, self.api, &[], &[]))?;
        ensure!(answer.status == 200, "{path}: {answer:?}");
        answer.json()
    }

    /// POST with the token, whatever the answer.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn post(&self, path: &str, body: &[u8]) -> Result<Answer> {
        let bearer = format!("Bearer {}", self.token);
        let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
        http::send(self.api, &http::request("POST", path, self.api, &headers, body))
    }

    /// POST with the token, as JSON.
    ///
    /// # Errors
    /// When the answer is no success.
    pub fn order(&self, path: &str, body: &Value) -> Result<Value> {
        let answer = self.post(path, body.to_string().as_bytes())?;
        ensure!(answer.status == 200, "{path}: {}", String::from_utf8_lossy(&answer.body));
        answer.json()
    }

    /// Gives it a blob; returns the digest.
    ///
    /// # Errors
    /// When it does not take it.
    pub fn put(&self, content: &[u8]) -> Result<String> {
        let answer = self.post("/api/blobs", content)?;
        ensure!(answer.status == 200, "{answer:?}");
        Ok(answer.json()?["digest"].as_str().context("no digest")?.to_owned())
    }

    /// The blob's bytes; none if it is not held there.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn blob(&self, digest: &str) -> Result<Option<Vec<u8>>> {
        let path = format!("/api/blobs/{digest}");
        let answer = http::send(self.api, &http::request("GET", &path, self.api, &[], &[]))?;
        Ok((answer.status == 200).then_some(answer.body))
    }

    /// Submits a job; returns its id.
    ///
    /// # Errors
    /// When it is refused.
    pub fn submit(&self, name: &str, work: Value) -> Result<String> {
        let answer = self.order("/api/jobs", &json!({ "name": name, "nonce": 1, "work": work }))?;
        Ok(answer["id"].as_str().context("no id")?.to_owned())
    }

    /// How the job stands; null if it is not known here.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn job(&self, id: &str) -> Result<Value> {
        let jobs = self.get("/api/jobs")?;
        let found = jobs.as_array().and_then(|jobs| jobs.iter().find(|job| job["id"] == id));
        Ok(found.cloned().unwrap_or(Value::Null))
    }

    /// Waits until the job stands as wanted; a job that failed meanwhile ends the wait.
    ///
    /// # Errors
    /// When it fails or takes too long.
    pub fn job_until(
        &self,
        id: &str,
        what: &str,
        patience: Duration,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let mut last = Value::Null;
        let waited = wait_for(what, patience, || {
            last = self.job(id)?;
            if wanted(&last) {
                return Ok(Some(last.clone()));
            }
            ensure!(last["phase"] != "failed" && last["phase"] != "cancelled", "the job ended: {last}");
            Ok(None)
        });
        waited.with_context(|| format!("the job stood at {last}"))
    }

    /// Waits until the job is done.
    ///
    /// # Errors
    /// When it fails or takes too long.
    pub fn job_done(&self, id: &str) -> Result<Value> {
        self.job_until(id, "the job's end", PATIENCE, |job| job["phase"] == "done")
    }

    /// Its log as it is on disk: every entry and signature checked.
    ///
    /// # Errors
    /// When it is damaged.
    pub fn log(&self) -> Result<Log> {
        let folder = self.data_dir.join("log");
        let bytes = fs::read(folder.join("entries"))?;
        let checkpoint = fs::read_to_string(folder.join("checkpoint"))?;
        let report = log::verify(&bytes, &checkpoint)?;
        let (network, node): (NetworkId, NodeId) = (report.network, report.node);
        ensure!(node.to_string() == self.node, "the log is {node}'s");
        Ok(log::replay(&bytes, Some(&checkpoint), &network, &node)?.0)
    }

    /// Kills it as a power cut would.
    ///
    /// # Errors
    /// When it ended before.
    pub fn kill(&mut self) -> Result<()> {
        let mut process = self.process.take().context("the agent has ended already")?;
        process.kill()?;
        process.wait()?;
        Ok(())
    }

    /// Waits for its process to end by itself.
    ///
    /// # Errors
    /// When it does not in time.
    pub fn ended(&mut self, patience: Duration) -> Result<ExitStatus> {
        let mut process = self.process.take().context("the agent has ended already")?;
        let ended = wait_for("the agent to end", patience, || Ok(process.try_wait()?));
        if ended.is_err() {
            self.process = Some(process);
        }
        ended
    }

    /// Fails if it ever panicked, workers included.
    ///
    /// # Errors
    /// With the story.
    pub fn never_panicked(&self) -> Result<()> {
        let story = self.story();
        ensure!(!story.contains("panicked at"), "a panic in {}: {story}", self.story.display());
        Ok(())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            // Its workers are in its group, some of them perhaps stopped.
            let group = format!("kill -KILL -{} 2>/dev/null", process.id());
            let _ = Command::new("sh").args(["-c", &group]).status();
            let _ = process.kill();
            let _ = process.wait();
        }
        if !self.told {
            let story = self.story();
            let lines: Vec<&str> = story.lines().collect();
            let last = lines[lines.len().saturating_sub(60)..].join("\n");
            eprintln!("--- the last words of agent {}:\n{last}", self.node.get(..8).unwrap_or("?"));
        }
    }
}

/// A small training job: what its file says beside name, kind, data and output.
pub struct Training {
    /// Of the shape.
    pub layers: u16,
    /// Of the shape and the sequences.
    pub context: u16,
    /// Outer steps.
    pub rounds: u32,
    /// Inner steps of an agent in each.
    pub inner_steps: u32,
    /// More lines.
    pub more: &'static str,
}

impl Training {
    /// Two layers over sequences of 32 bytes.
    pub fn of(rounds: u32, inner_steps: u32) -> Self {
        Self { layers: 2, context: 32, rounds, inner_steps, more: "" }
    }

    /// Writes the file and the text beside it; the file's path.
    ///
    /// # Errors
    /// When that cannot be.
    pub fn write(&self, folder: &Path, text: &[u8]) -> Result<String> {
        fs::create_dir_all(folder)?;
        let Self { layers, context, rounds, inner_steps, more } = self;
        fs::write(folder.join("text.txt"), text)?;
        let file = format!(
            "kind = \"train\"\nname = \"train\"\ndata = \"text.txt\"\noutput = \"result\"\nrounds = {rounds}\n\
             inner_steps = {inner_steps}\nbatch = 4\ncontext = {context}\nlearning_rate = 0.003\nseed = 1\n{more}\n\
             [shape]\nlayers = {layers}\nwidth = 32\nheads = 2\ncontext = {context}\n"
        );
        let path = folder.join("train.toml");
        fs::write(&path, file)?;
        Ok(path.display().to_string())
    }
}

/// Submits a training job at this agent as a customer would; returns its id.
///
/// # Errors
/// When it is refused.
pub fn train(agent: &Agent, text: &[u8], training: &Training) -> Result<String> {
    let folder = tempfile::tempdir()?;
    let file = training.write(folder.path(), text)?;
    let ran = run(&["run", &file, "--detach", "--data-dir", &agent.dir()])?;
    ensure!(ran.code == 0, "{ran:?}");
    Ok(ran.out.trim().to_owned())
}

/// Makes a model at this agent, hardly trained; the folder it is in.
///
/// # Errors
/// When training fails.
pub fn model(agent: &Agent, layers: u16, context: u16) -> Result<PathBuf> {
    let folder = agent.data_dir.join("customer");
    let training = Training { layers, context, ..Training::of(1, 1) };
    let file = training.write(&folder, &TEXT[..20_000])?;
    let ran = run(&["run", &file, "--data-dir", &agent.dir()])?;
    ensure!(ran.code == 0, "{ran:?}");
    Ok(folder.join("result"))
}

/// Adds a model to this agent as `tiny`, has it served over `stages` agents, and waits until it is; returns the job's id.
///
/// # Errors
/// When it does not come up.
pub fn serve(agent: &Agent, model: &Path, stages: u16) -> Result<String> {
    serve_file(agent, model, "tiny", stages)
}

/// Likewise for a model in any file, by any name.
///
/// # Errors
/// When it does not come up.
pub fn serve_file(agent: &Agent, file: &Path, name: &str, stages: u16) -> Result<String> {
    let file = file.display().to_string();
    let added = run(&["model", "add", &file, "--name", name, "--data-dir", &agent.dir()])?;
    ensure!(added.code == 0, "{added:?}");
    let answer = agent.order("/api/serve", &json!({ "model": name, "stages": stages }))?;
    let job = answer["id"].as_str().context("no id")?.to_owned();
    agent.job_until(&job, "the stages", PATIENCE, |job| {
        job["stages"].as_array().is_some_and(|ready| ready.len() == usize::from(stages))
    })?;
    Ok(job)
}
