//! The command line: every verb and flag, and nothing else.
//!
//! Operators script against these; a flag is never renamed or given another meaning.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use skein_mesh::PeerAddress;

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
    /// Find the devices of this machine and measure the one that would work
    Bench {
        #[command(flatten)]
        data_dir: DataDir,
        /// Measure this device: `cpu`, or part of an adapter's name
        #[arg(long, env = "SKEIN_DEVICE", value_name = "NAME|cpu")]
        device: Option<String>,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
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
    /// List the jobs that this agent knows, or end one
    Jobs {
        #[command(flatten)]
        data_dir: DataDir,
        /// End this job (its owner only): the first digits of its id suffice
        #[arg(long, value_name = "ID")]
        cancel: Option<String>,
        /// Print one JSON array
        #[arg(long)]
        json: bool,
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
    /// No tray icon: log lines to standard error only
    #[arg(long, env = "SKEIN_HEADLESS")]
    pub(crate) headless: bool,
    /// UDP address at which other agents reach this one [default: 0.0.0.0:7310]
    #[arg(long, env = "SKEIN_LISTEN", value_name = "ADDR")]
    pub(crate) listen: Option<SocketAddr>,
    /// TCP address of the local HTTP API [default: 127.0.0.1:7311]
    #[arg(long, env = "SKEIN_API", value_name = "ADDR")]
    pub(crate) api: Option<SocketAddr>,
    /// Agents to meet first: `ADDR`, or `NODE@ADDR` to insist on a node id
    #[arg(long, env = "SKEIN_BOOTSTRAP", value_name = "ADDR", num_args = 1.., value_delimiter = ',')]
    pub(crate) bootstrap: Vec<PeerAddress>,
    /// The network's genesis file [default: the built-in test network]
    #[arg(long, env = "SKEIN_NETWORK", value_name = "GENESIS.toml")]
    pub(crate) network: Option<PathBuf>,
    /// Most memory that jobs may use, in bytes [default: half of the device's]
    #[arg(long, env = "SKEIN_MEMORY", value_name = "BYTES")]
    pub(crate) memory: Option<u64>,
    /// The device to work on: `cpu`, or part of an adapter's name [default: the best that works]
    #[arg(long, env = "SKEIN_DEVICE", value_name = "NAME|cpu")]
    pub(crate) device: Option<String>,
    /// Processor threads for work on the CPU; 0 for all [default: 0]
    #[arg(long, env = "SKEIN_THREADS", value_name = "N")]
    pub(crate) threads: Option<usize>,
}
