//! The command line: every verb and flag, and nothing else.
//!
//! Operators script against these; a flag is never renamed or given another meaning.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use skein_mesh::PeerAddress;
use skein_proto::ids::NodeId;

use crate::limits::PAUSE_S_MAX;

/// Earn with an idle GPU, or use the GPUs of others.
///
/// `skein demo` shows everything on this machine in a few minutes; `skein up` joins a network.
#[derive(Debug, Parser)]
#[command(name = "skein", version, propagate_version = true, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// Where an agent keeps its key, log and blobs.
#[derive(Debug, Clone, Args)]
pub(crate) struct DataDir {
    /// Directory for the key, the log and all data of one agent
    #[arg(long, env = "SKEIN_DATA_DIR", value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Start the agent and stay until it is stopped
    Up(UpArgs),
    /// Stop the agent: it ends its leases, says goodbye, and exits
    Down(DataDir),
    /// Tell whether the network sees this agent, whether it works, and if not, why
    Status {
        #[command(flatten)]
        data_dir: DataDir,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Stop working, for a while or until `skein resume`: the machine is yours within a second
    Pause {
        #[command(flatten)]
        data_dir: DataDir,
        /// For how long: `30m`, `2h`, or `tomorrow` for your next midnight [default: until resumed]
        time: Option<PauseTime>,
        /// Leave the GPU alone, and go on working on the processor
        #[arg(long)]
        gpu: bool,
    },
    /// Finish what is being worked on, and take nothing new until `skein resume`
    Finish(DataDir),
    /// Change when this machine may work: `skein set user_idle "10 min"`; `skein get` lists what can be set
    Set {
        #[command(flatten)]
        data_dir: DataDir,
        /// Its name
        key: String,
        /// Its new value; `off` where there may be none
        value: String,
    },
    /// Show when this machine may work
    Get {
        #[command(flatten)]
        data_dir: DataDir,
        /// The name of one setting [default: all]
        key: Option<String>,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Change to a newer version: it is verified, proves itself, and only then replaces this one
    #[command(disable_version_flag = true)]
    Update(UpdateArgs),
    /// Show all your rigs in one table, and command them from here
    #[command(args_conflicts_with_subcommands = true)]
    Fleet {
        #[command(flatten)]
        data_dir: DataDir,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
        #[command(subcommand)]
        verb: Option<FleetVerb>,
    },
    /// Show the tray icon of an agent that runs
    Tray(DataDir),
    /// Open the dashboard of an agent that runs, with the right to give orders there
    Dashboard(DataDir),
    /// Look at all that an agent needs here, and say what to do about what is wrong
    Doctor {
        #[command(flatten)]
        data_dir: DataDir,
        /// Print one JSON array
        #[arg(long)]
        json: bool,
    },
    /// Write a text file that helps to find a fault; nothing in it is secret
    Bugreport {
        #[command(flatten)]
        data_dir: DataDir,
        /// The file [default: skein-bugreport.txt]
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Find the devices of this machine and measure the one that would work, or measure a language model on it
    Bench(BenchArgs),
    /// Add a language model, list those that were added, or remove one
    Model {
        #[command(subcommand)]
        verb: ModelVerb,
    },
    /// Talk to a language model that was added or is served in the network
    Chat(ChatArgs),
    /// Measure how well a language model predicts a text
    Eval(EvalArgs),
    /// Run answers of served models again, and tell whether the agents that gave them did the work
    Check(CheckArgs),
    /// Submit a job, described by a TOML file, and follow it to its end
    Run {
        #[command(flatten)]
        data_dir: DataDir,
        /// The job; `skein run --example` prints one
        #[arg(required_unless_present = "example")]
        job: Option<PathBuf>,
        /// Print an example of a job file and exit
        #[arg(long)]
        example: bool,
        /// Submit, print the job's id, and return at once
        #[arg(long)]
        detach: bool,
        /// Where to put the result; overrides `output` in the file
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// List the jobs that this agent knows
    Jobs {
        #[command(flatten)]
        data_dir: DataDir,
        /// Print one JSON array
        #[arg(long)]
        json: bool,
    },
    /// Show how a training job came on, outer step by outer step
    Logs {
        #[command(flatten)]
        job: JobChoice,
        /// Go on until the job ends
        #[arg(long, short)]
        follow: bool,
        /// Print JSON Lines
        #[arg(long)]
        json: bool,
    },
    /// End a job
    Cancel {
        #[command(flatten)]
        job: JobChoice,
    },
    /// Go on after `skein pause` or `skein finish`; or, with a job's id, take up a training job that ended unfinished
    Resume {
        #[command(flatten)]
        data_dir: DataDir,
        /// The first digits of the job's id, as `skein jobs` lists it
        id: Option<String>,
    },
    /// Fetch what a training job has made so far
    Result {
        #[command(flatten)]
        job: JobChoice,
        /// The folder to write
        #[arg(long, short, value_name = "FOLDER")]
        output: PathBuf,
    },
    /// Work with signed logs
    Log {
        #[command(subcommand)]
        verb: LogVerb,
    },
    /// Claim this agent's share of the last epoch that closed
    Claim {
        #[command(flatten)]
        data_dir: DataDir,
        /// Show what would be claimed, and claim nothing
        #[arg(long)]
        dry_run: bool,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Show everything on this machine: meet, train, serve, account, check
    Demo {
        #[command(flatten)]
        data_dir: DemoDir,
        /// Agents to start
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=8))]
        agents: u16,
        /// Print one JSON object at the end
        #[arg(long)]
        json: bool,
    },
    /// Have the system's service manager run the agent
    Service {
        #[command(subcommand)]
        verb: ServiceVerb,
    },
    /// Execute tasks from standard input on one device (started by the agent itself)
    #[command(hide = true)]
    Worker {
        /// The device, as the probe names it
        #[arg(long)]
        device: String,
    },
    /// List or exercise adapters (started by the agent itself, so that a driver may crash)
    #[command(hide = true)]
    Probe {
        /// List the adapters
        #[arg(long)]
        list: bool,
        /// Exercise one of them
        #[arg(long)]
        adapter: Option<u32>,
    },
}

/// What `skein bench` takes.
#[derive(Debug, Clone, Args)]
pub(crate) struct BenchArgs {
    #[command(flatten)]
    pub(crate) data_dir: DataDir,
    /// Measure this device: `cpu`, or part of an adapter's name
    #[arg(long, env = "SKEIN_DEVICE", value_name = "NAME|cpu")]
    pub(crate) device: Option<String>,
    /// Measure this language model: a GGUF file, or a folder as Hugging Face has them
    #[arg(long, value_name = "FILE")]
    pub(crate) model: Option<PathBuf>,
    /// Tokens of the prompt
    #[arg(long, default_value_t = 128, requires = "model", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) prompt: u32,
    /// Tokens to generate after it
    #[arg(long, default_value_t = 64, requires = "model", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) generate: u32,
    /// Sessions at once
    #[arg(long, default_value_t = 1, requires = "model", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) sessions: u32,
    /// Processor threads; 0 for all
    #[arg(long, env = "SKEIN_THREADS", default_value_t = 0, value_name = "N")]
    pub(crate) threads: usize,
    /// Repetitions, of which the median is told
    #[arg(long, default_value_t = 3, requires = "model", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) repeat: u32,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ModelVerb {
    /// Give the agent a model: a GGUF file, a folder as Hugging Face has them, or a checkpoint that Skein trained
    Add {
        #[command(flatten)]
        data_dir: DataDir,
        /// The file or folder
        path: PathBuf,
        /// What to call it [default: made from the file's name]
        #[arg(long)]
        name: Option<String>,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// List the models that were added
    Ls {
        #[command(flatten)]
        data_dir: DataDir,
        /// Print one JSON array
        #[arg(long)]
        json: bool,
    },
    /// Remove a model
    Rm {
        #[command(flatten)]
        data_dir: DataDir,
        /// Its name
        name: String,
    },
}

/// What `skein chat` takes.
#[derive(Debug, Clone, Args)]
pub(crate) struct ChatArgs {
    #[command(flatten)]
    pub(crate) data_dir: DataDir,
    /// The model's name, as `skein model ls` lists it
    pub(crate) model: String,
    /// Ask this, print the answer, and exit
    #[arg(long, short)]
    pub(crate) prompt: Option<String>,
    /// What the model is told first
    #[arg(long)]
    pub(crate) system: Option<String>,
    /// 0 for the likeliest words, 2 for the wildest
    #[arg(long, default_value_t = 0.7)]
    pub(crate) temperature: f32,
    /// The same seed gives the same answer
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// Longest answer in tokens
    #[arg(long, value_name = "N")]
    pub(crate) max_tokens: Option<u32>,
    /// Tell how fast it was
    #[arg(long, short)]
    pub(crate) verbose: bool,
}

/// What `skein update` takes.
#[derive(Debug, Clone, Args)]
pub(crate) struct UpdateArgs {
    #[command(flatten)]
    pub(crate) data_dir: DataDir,
    /// Look, and change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Exactly this version, older ones too [default: the newest of the channel]
    #[arg(long, value_name = "VERSION")]
    pub(crate) version: Option<skein_update::Version>,
    /// Put the version before back in place; the newer one is not installed again by itself
    #[arg(long, conflicts_with_all = ["dry_run", "version"])]
    pub(crate) back: bool,
    /// Change to this version in an agent's place, and become it (started by the agent itself)
    #[arg(long, hide = true, value_name = "VERSION", conflicts_with_all = ["dry_run", "version", "back"])]
    pub(crate) apply: Option<skein_update::Version>,
    /// What the agent was started with
    #[arg(last = true, hide = true)]
    pub(crate) then: Vec<std::ffi::OsString>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum FleetVerb {
    /// Print your public key, which each rig is told once; the key is made when there is none
    Key(DataDir),
    /// Stop the work of rigs, for a while or until `skein fleet resume`
    Pause {
        #[command(flatten)]
        data_dir: DataDir,
        /// For how long: `30m`, `2h`, or `tomorrow` for each rig's next midnight [default: until resumed]
        time: Option<String>,
        /// Leave the GPUs alone, and go on working on the processors
        #[arg(long)]
        gpu: bool,
        #[command(flatten)]
        rigs: Rigs,
    },
    /// Have rigs go on after a pause or a finish
    Resume {
        #[command(flatten)]
        data_dir: DataDir,
        #[command(flatten)]
        rigs: Rigs,
    },
    /// Have rigs finish what they are working on, and take nothing new until `skein fleet resume`
    Finish {
        #[command(flatten)]
        data_dir: DataDir,
        #[command(flatten)]
        rigs: Rigs,
    },
    /// Have rigs change to a newer version: each verifies it, tries it, and only then replaces its own
    #[command(disable_version_flag = true)]
    Update {
        #[command(flatten)]
        data_dir: DataDir,
        /// Exactly this version, older ones too [default: the newest of each rig's channel]
        #[arg(long, value_name = "VERSION")]
        version: Option<skein_update::Version>,
        #[command(flatten)]
        rigs: Rigs,
    },
    /// Show a machine no longer, and ask it for nothing
    Forget {
        #[command(flatten)]
        data_dir: DataDir,
        /// Show it again
        #[arg(long)]
        undo: bool,
        /// Its name, or the first digits of its node id
        rig: String,
    },
}

/// Some of the rigs.
#[derive(Debug, Clone, Args)]
pub(crate) struct Rigs {
    /// Names of rigs, or the first digits of their node ids, as `skein fleet` lists them [default: all]
    #[arg(value_name = "RIG")]
    pub(crate) rigs: Vec<String>,
}

/// How long a pause lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PauseTime {
    /// Seconds.
    For(u64),
    /// Until the owner's next midnight.
    Tomorrow,
}

impl std::str::FromStr for PauseTime {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "tomorrow" {
            return Ok(Self::Tomorrow);
        }
        let (count, unit) = text.split_at(text.len() - text.chars().next_back().map_or(0, char::len_utf8));
        let seconds = match unit {
            "s" => 1,
            "m" => 60,
            "h" => 3_600,
            "d" => 86_400,
            _ => 0,
        };
        let count = count.parse::<u64>().ok().filter(|count| *count > 0 && seconds > 0);
        let total = count.and_then(|count| count.checked_mul(seconds)).filter(|total| *total <= PAUSE_S_MAX);
        total.map(Self::For).ok_or_else(|| "write 30m, 2h, 1d (31 days at most) or tomorrow".to_owned())
    }
}

/// One of the jobs that an agent knows.
#[derive(Debug, Clone, Args)]
pub(crate) struct JobChoice {
    #[command(flatten)]
    pub(crate) data_dir: DataDir,
    /// The first digits of its id, as `skein jobs` lists it
    pub(crate) id: String,
}

/// What runs a model in this process, without an agent.
#[derive(Debug, Clone, Args)]
pub(crate) struct Processor {
    /// The device to work on: `cpu`, or part of an adapter's name
    #[arg(long, env = "SKEIN_DEVICE", value_name = "NAME|cpu", default_value = "cpu")]
    pub(crate) device: String,
    /// Processor threads; 0 for all
    #[arg(long, env = "SKEIN_THREADS", default_value_t = 0, value_name = "N")]
    pub(crate) threads: usize,
}

/// What `skein eval` takes.
#[derive(Debug, Clone, Args)]
pub(crate) struct EvalArgs {
    #[command(flatten)]
    pub(crate) data_dir: DataDir,
    /// A model's name, a GGUF file, or a folder as Hugging Face has them
    pub(crate) model: String,
    /// The text to predict, in chunks and scored as llama-perplexity does
    #[arg(long, value_name = "FILE")]
    pub(crate) perplexity: PathBuf,
    /// Tokens of a chunk
    #[arg(long, default_value_t = 512, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(2..=1_048_576))]
    pub(crate) ctx: u32,
    /// Most chunks to score [default: all]
    #[arg(long)]
    pub(crate) chunks: Option<u32>,
    #[command(flatten)]
    pub(crate) processor: Processor,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// What `skein check` takes.
#[derive(Debug, Clone, Args)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    pub(crate) data_dir: DataDir,
    #[command(flatten)]
    pub(crate) processor: Processor,
    /// Print one JSON array
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum LogVerb {
    /// Check every entry, signature and hash of a log
    Verify {
        #[command(flatten)]
        data_dir: DataDir,
        /// The log's directory, or its file of entries [default: the log of --data-dir]
        log: Option<PathBuf>,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Subcommand)]
#[expect(clippy::large_enum_variant, reason = "there is one, and it is short-lived")]
pub(crate) enum ServiceVerb {
    /// Register the service and start it, or register it anew
    Install {
        #[command(flatten)]
        data_dir: DataDir,
        /// For the whole machine, under a user of its own; always so on Windows
        #[arg(long)]
        system: bool,
        /// Nobody sits at this machine: no tray icon, and no rule about an owner's use of it
        #[arg(long)]
        headless: bool,
    },
    /// Stop the service and remove it; its data stays
    Uninstall {
        /// The whole machine's
        #[arg(long)]
        system: bool,
    },
    /// Tell whether the service runs
    Status {
        /// The whole machine's
        #[arg(long)]
        system: bool,
    },
    /// Run the agent (started by the service manager)
    #[command(hide = true)]
    Run(UpArgs),
}

/// Where the demo leaves its folder. Not read from the environment: it must never be an agent's own directory
/// by mistake.
#[derive(Debug, Clone, Args)]
pub(crate) struct DemoDir {
    /// Directory in which the demo makes its folder [default: the system's temporary directory]
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
}

/// What `skein up` takes; each flag has its key in `config.toml` of the data directory.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct UpArgs {
    /// Directory for the key, the log and all data of this agent
    #[arg(long, env = "SKEIN_DATA_DIR", value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Nobody sits at this machine: no tray icon, and no rule about an owner's use of it; `skein get` shows those that stay
    #[arg(long, env = "SKEIN_HEADLESS")]
    pub(crate) headless: bool,
    /// UDP address at which other agents reach this one [default: 0.0.0.0:7310]
    #[arg(long, env = "SKEIN_LISTEN", value_name = "ADDR")]
    pub(crate) listen: Option<SocketAddr>,
    /// Address at which others are told to reach this agent, such as a forwarded port [default: where it listens]
    #[arg(long, env = "SKEIN_ADVERTISE", value_name = "ADDR")]
    pub(crate) advertise: Option<SocketAddr>,
    /// TCP address of the local HTTP API [default: 127.0.0.1:7311]
    #[arg(long, env = "SKEIN_API", value_name = "ADDR")]
    pub(crate) api: Option<SocketAddr>,
    /// Agents to meet first: `ADDR`, or `NODE@ADDR` to insist on a node id
    #[arg(long, env = "SKEIN_BOOTSTRAP", value_name = "ADDR", num_args = 1.., value_delimiter = ',')]
    pub(crate) bootstrap: Vec<PeerAddress>,
    /// The network's genesis file [default: the built-in test network]
    #[arg(long, env = "SKEIN_NETWORK", value_name = "GENESIS.toml")]
    pub(crate) network: Option<PathBuf>,
    /// Most memory of each device that jobs may use, in bytes [default: half of it]
    #[arg(long, env = "SKEIN_MEMORY", value_name = "BYTES")]
    pub(crate) memory: Option<u64>,
    /// Most disk that models and data may take before what was used longest ago is removed, in bytes; what the owner
    /// added stays [default: 64 GiB]
    #[arg(long, env = "SKEIN_DISK", value_name = "BYTES")]
    pub(crate) disk: Option<u64>,
    /// A device to work on: `cpu`, or part of an adapter's name, which may match several; give it again for more [default:
    /// every graphics card that works, or the best of what there is]
    #[arg(long, env = "SKEIN_DEVICE", value_name = "NAME|cpu")]
    pub(crate) device: Vec<String>,
    /// Processor threads for work on the CPU; 0 for all [default: 0]
    #[arg(long, env = "SKEIN_THREADS", value_name = "N")]
    pub(crate) threads: Option<usize>,
    /// Obey the owner of this key from afar: what `skein fleet key` printed on the owner's machine
    #[arg(long, env = "SKEIN_OWNER", value_name = "HEX", value_parser = crate::config::owner_key)]
    pub(crate) owner: Option<NodeId>,
    /// What `skein fleet` calls this machine [default: its host name]
    #[arg(long, env = "SKEIN_NAME", value_parser = crate::config::rig_name)]
    pub(crate) name: Option<String>,
}
