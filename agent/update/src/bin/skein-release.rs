//! `skein-release`: what the publisher of releases runs. Makes keys, signs a directory of files, verifies one.
//!
//! Prints public facts on standard output and errors on standard error. Must never print a secret key.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use skein_update::manifest::{Manifest, parse_version};
use skein_update::{Result, TrustedKeys, sign};

/// Make keys, sign releases, verify releases.
#[derive(Parser)]
#[command(name = "skein-release", version)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Make a secret key in a new file (mode 0600) and print its public key.
    Keygen {
        /// The file to create.
        out: PathBuf,
    },
    /// Print the public key of a secret key: as hex, for ssh's allowed_signers, and as PEM for openssl.
    Public {
        /// A secret key, or 64 hex digits of a public key.
        key: String,
    },
    /// Sign the files of a directory as one release; writes manifest.json, .sig and .sshsig.
    Sign {
        /// A secret key; twice while keys are changed. The first one makes the .sshsig.
        #[arg(long = "key", required = true)]
        keys: Vec<PathBuf>,
        /// The version that is released.
        #[arg(long)]
        version: String,
        /// When, as 2026-11-23T00:00:00Z.
        #[arg(long)]
        released_at: String,
        /// Where the files are.
        directory: PathBuf,
    },
    /// Verify a signed directory as a stranger would.
    Verify {
        /// Where the files are.
        directory: PathBuf,
        /// Trusted public keys, 64 hex digits each; without, those of packaging/release-keys.
        #[arg(long = "trust", num_args = 1..)]
        trust: Vec<String>,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse().verb) {
        Ok(text) => match std::io::stdout().write_all(text.as_bytes()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        },
        Err(error) => {
            // Standard error may be closed; the exit code still says it.
            let _ = writeln!(std::io::stderr(), "error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> Result<String> {
    match verb {
        Verb::Keygen { out } => Ok(format!("{}\n", sign::generate_key(&out)?)),
        Verb::Public { key } => public(&key),
        Verb::Sign { keys, version, released_at, directory } => {
            let keys = keys.iter().map(|path| sign::read_key(path)).collect::<Result<Vec<_>>>()?;
            let version = parse_version(&version)?;
            sign::sign_release(&directory, &keys, &version, &released_at).map(|manifest| summary(&manifest))
        }
        Verb::Verify { directory, trust } => {
            let keys =
                if trust.is_empty() { TrustedKeys::built_in()? } else { TrustedKeys::from_hex(trust)? };
            sign::verify_release(&directory, &keys).map(|manifest| summary(&manifest))
        }
    }
}

fn public(key: &str) -> Result<String> {
    let mut bytes = [0; 32];
    if hex::decode_to_slice(key, &mut bytes).is_err() {
        bytes = sign::read_key(&PathBuf::from(key))?.verifying_key().to_bytes();
    }
    // Refuses what is no key.
    TrustedKeys::from_hex([hex::encode(bytes)])?;
    let (ssh, pem) = sign::public_forms(&bytes)?;
    Ok(format!("{}\n{ssh}\n{pem}", hex::encode(bytes)))
}

fn summary(manifest: &Manifest) -> String {
    let mut text = format!("release {} of {}\n", manifest.version, manifest.released_at);
    for file in &manifest.files {
        text.push_str(&format!("{} {} {} {}\n", file.sha256, file.bytes, file.kind, file.name));
    }
    text
}
