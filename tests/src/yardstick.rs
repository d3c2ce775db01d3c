//! What benchmarks are held against: the test model, llama.cpp's tools, and the processor time that either takes.
//!
//! Files come from `tests/yardsticks/get`, or from where an environment variable says. Must never time anything
//! by the wall alone where the processor's own count can be had.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

/// The language model that tests and benchmarks use; `SKEIN_TEST_MODEL` names another copy.
///
/// # Errors
/// When it is not here and cannot be fetched.
pub fn model() -> Result<PathBuf> {
    found("SKEIN_TEST_MODEL", "model")
}

/// A long text; `SKEIN_TEST_CORPUS` names another copy.
///
/// # Errors
/// As [`model`].
pub fn corpus() -> Result<PathBuf> {
    found("SKEIN_TEST_CORPUS", "corpus")
}

/// One of llama.cpp's tools; `SKEIN_LLAMA_CPP` names the directory of another build.
///
/// # Errors
/// As [`model`], or when it cannot be built.
pub fn llama(tool: &str) -> Result<PathBuf> {
    let path = found("SKEIN_LLAMA_CPP", "llama.cpp")?.join(tool);
    ensure!(path.is_file(), "{} is missing", path.display());
    Ok(path)
}

/// A Python with JAX; `SKEIN_JAX_PYTHON` names another.
///
/// # Errors
/// As [`model`].
pub fn jax() -> Result<PathBuf> {
    found("SKEIN_JAX_PYTHON", "jax")
}

fn found(variable: &str, what: &str) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(variable).filter(|path| !path.is_empty()) {
        return Ok(path.into());
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("yardsticks/get");
    let output = Command::new(script).arg(what).stderr(Stdio::inherit()).output()?;
    ensure!(
        output.status.success(),
        "tests/yardsticks/get {what} failed\nhint: set {variable} to a copy of it"
    );
    Ok(String::from_utf8(output.stdout)?.trim().into())
}

/// What a command printed, and the processor time of it and its children in seconds.
///
/// # Errors
/// When it fails; the error has what it said.
pub fn timed(program: &Path, arguments: &[&str]) -> Result<(String, f64)> {
    // The shell's own count of its children is the one that needs no library.
    let script = "\"$0\" \"$@\" && times >&2";
    let output = Command::new("bash").args(["-c", script]).arg(program).args(arguments).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{} {arguments:?} failed: {said}", program.display());
    let seconds = children_seconds(&said).with_context(|| format!("no times in {said}"))?;
    Ok((String::from_utf8_lossy(&output.stdout).into_owned(), seconds))
}

/// The last line of `times`: user and system time of the children, as `0m1.234s 0m0.056s`.
fn children_seconds(said: &str) -> Option<f64> {
    let line = said.lines().rfind(|line| line.contains('m') && line.ends_with('s'))?;
    let seconds = |text: &str| {
        let (minutes, seconds) = text.strip_suffix('s')?.split_once('m')?;
        Some(minutes.parse::<f64>().ok()? * 60.0 + seconds.parse::<f64>().ok()?)
    };
    line.split_whitespace().map(seconds).sum()
}

/// Processor time in seconds of a process and all below it that live, by `/proc`.
///
/// # Errors
/// When it ended, or there is no `/proc`.
pub fn processor_seconds(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is the name in brackets, which may hold blanks.
    let fields = stat.rsplit_once(')').context("no name in stat")?.1;
    let ticks: Vec<f64> =
        fields.split_ascii_whitespace().skip(11).take(2).map(str::parse).collect::<Result<_, _>>()?;
    // Every Linux has a hundred ticks a second.
    let mut seconds = ticks.iter().sum::<f64>() / 100.0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
        let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
        for child in children.split_ascii_whitespace() {
            seconds += processor_seconds(child.parse()?).unwrap_or(0.0);
        }
    }
    Ok(seconds)
}

/// The middle of some values.
///
/// # Errors
/// When there are none.
pub fn median(mut values: Vec<f64>) -> Result<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().context("no values")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_from_the_shells_last_line() {
        let said = "0m0.001s 0m0.002s\n1m2.500s 0m0.250s\n";
        assert_eq!(children_seconds(said), Some(62.75));
        let (out, seconds) = timed(Path::new("echo"), &["honk"]).unwrap();
        assert_eq!(out, "honk\n");
        assert!((0.0..1.0).contains(&seconds));
    }
}
