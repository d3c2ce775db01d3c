//! The manifest of a release: what it consists of, in one exact layout that a shell can read line by line.
//!
//! There is one encoding of a manifest. Reading encodes again and compares, so nothing that the fields do not say
//! (another order, unknown or repeated fields, spaces, escapes) passes. Must never be read before its signature
//! was verified, except by whoever signs.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use semver::Version;
use serde::Deserialize;

use crate::error::{Result, UpdateError};

/// No manifest is longer, in bytes.
pub const MANIFEST_BYTES_MAX: usize = 1 << 20;
/// No file of a release is longer, in bytes.
pub const FILE_BYTES_MAX: u64 = 512 << 20;
/// No release has more files.
pub const FILES_MAX: usize = 256;
/// The name of the format.
pub const SCHEMA: &str = "skein-release/1";
/// The kind of the files that `skein update` installs.
pub const ARCHIVE: &str = "archive";

/// One release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// What is released.
    pub version: Version,
    /// When, as `2026-11-23T00:00:00Z`.
    pub released_at: String,
    /// Its files, in the order of the manifest.
    pub files: Vec<ReleaseFile>,
}

/// One file of a release.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReleaseFile {
    /// A plain name, without directories.
    pub name: String,
    /// The platform it is for, as Rust names it, or `any`.
    pub target: String,
    /// `archive`, `deb`, `rpm`, `hiveos`, `sbom` or `installer`; later releases may have others.
    pub kind: String,
    /// Length.
    pub bytes: u64,
    /// 64 lower-case hex digits.
    pub sha256: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    schema: String,
    version: String,
    released_at: String,
    files: Vec<ReleaseFile>,
}

impl Manifest {
    /// Reads a manifest and refuses every deviation from the format.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let bad = |reason: String| UpdateError::BadManifest(reason);
        if bytes.len() > MANIFEST_BYTES_MAX {
            return Err(UpdateError::TooLarge {
                what: "the release manifest".to_owned(),
                max: MANIFEST_BYTES_MAX as u64,
            });
        }
        let raw: Raw = serde_json::from_slice(bytes).map_err(|error| bad(error.to_string()))?;
        if raw.schema != SCHEMA {
            return Err(bad(format!("its schema is `{}`, this version reads `{SCHEMA}`", raw.schema)));
        }
        let version = parse_version(&raw.version)?;
        let manifest = Self { version, released_at: raw.released_at, files: raw.files };
        manifest.check()?;
        if manifest.encode().as_bytes() != bytes {
            return Err(bad("it is not in the one layout that manifests have".to_owned()));
        }
        Ok(manifest)
    }

    /// Checks what the fields say; `parse` has done so already.
    pub fn check(&self) -> Result<()> {
        let bad = |reason: String| Err(UpdateError::BadManifest(reason));
        if !is_time(&self.released_at) {
            return bad(format!("`{}` is not a time as 2026-11-23T00:00:00Z", self.released_at));
        }
        if self.files.is_empty() || self.files.len() > FILES_MAX {
            return bad(format!("it has {} files, 1 to {FILES_MAX} are allowed", self.files.len()));
        }
        let mut names = BTreeSet::new();
        let mut archives = BTreeSet::new();
        for file in &self.files {
            if !is_file_name(&file.name) {
                return bad(format!("`{}` is not a plain file name", file.name));
            }
            if !names.insert(&file.name) {
                return bad(format!("`{}` is there twice", file.name));
            }
            if !is_word(&file.target) || !is_word(&file.kind) {
                return bad(format!("`{}` has a strange target or kind", file.name));
            }
            if file.kind == ARCHIVE && !archives.insert(&file.target) {
                return bad(format!("there are two archives for {}", file.target));
            }
            if file.bytes == 0 || file.bytes > FILE_BYTES_MAX {
                return bad(format!(
                    "`{}` has {} bytes, 1 to {FILE_BYTES_MAX} are allowed",
                    file.name, file.bytes
                ));
            }
            let hex_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
            if file.sha256.len() != 64 || !file.sha256.bytes().all(hex_digit) {
                return bad(format!("the sha256 of `{}` is not 64 lower-case hex digits", file.name));
            }
        }
        Ok(())
    }

    /// The exact bytes that are signed.
    pub fn encode(&self) -> String {
        let mut text = format!(
            "{{\"schema\":\"{SCHEMA}\",\"version\":\"{}\",\"released_at\":\"{}\",\"files\":[\n",
            self.version, self.released_at
        );
        for (index, file) in self.files.iter().enumerate() {
            let comma = if index + 1 < self.files.len() { "," } else { "" };
            let ReleaseFile { name, target, kind, bytes, sha256 } = file;
            // Writing to a String cannot fail.
            let _ = writeln!(
                text,
                "{{\"name\":\"{name}\",\"target\":\"{target}\",\"kind\":\"{kind}\",\"bytes\":{bytes},\"sha256\":\"{sha256}\"}}{comma}"
            );
        }
        text.push_str("]}\n");
        text
    }

    /// What `skein update` installs on `target`.
    pub fn archive(&self, target: &str) -> Option<&ReleaseFile> {
        self.files.iter().find(|file| file.kind == ARCHIVE && file.target == target)
    }
}

/// Reads a version as releases have them: without build metadata, which has no order.
pub fn parse_version(text: &str) -> Result<Version> {
    let bad = |reason: String| UpdateError::BadManifest(format!("`{text}` is not a version: {reason}"));
    if text.len() > 64 {
        return Err(bad("too long".to_owned()));
    }
    let version = Version::parse(text).map_err(|error| bad(error.to_string()))?;
    if !version.build.is_empty() {
        return Err(bad("`+` is not used".to_owned()));
    }
    Ok(version)
}

/// Letters, digits and `._+~-`, not beginning with a dot: no directories, no escapes in JSON, shells or addresses.
pub fn is_file_name(name: &str) -> bool {
    (1..=128).contains(&name.len())
        && !name.starts_with('.')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._+~-".contains(&byte))
}

fn is_word(word: &str) -> bool {
    (1..=64).contains(&word.len())
        && word
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-".contains(&byte))
}

fn is_time(text: &str) -> bool {
    let pattern = b"dddd-dd-ddTdd:dd:ddZ";
    text.len() == pattern.len()
        && text.bytes().zip(pattern).all(|(byte, &wanted)| match wanted {
            b'd' => byte.is_ascii_digit(),
            _ => byte == wanted,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Manifest {
        let file = |name: &str, target: &str, kind: &str| ReleaseFile {
            name: name.to_owned(),
            target: target.to_owned(),
            kind: kind.to_owned(),
            bytes: 123,
            sha256: "ab".repeat(32),
        };
        Manifest {
            version: Version::new(0, 2, 0),
            released_at: "2026-11-23T00:00:00Z".to_owned(),
            files: vec![
                file("skein-0.2.0-x86_64-unknown-linux-gnu.tar.gz", "x86_64-unknown-linux-gnu", "archive"),
                file("skein_0.2.0_amd64.deb", "x86_64-unknown-linux-gnu", "deb"),
            ],
        }
    }

    #[test]
    fn the_layout_is_as_written_down() {
        let hash = "ab".repeat(32);
        let expected = format!(
            "{{\"schema\":\"skein-release/1\",\"version\":\"0.2.0\",\"released_at\":\"2026-11-23T00:00:00Z\",\"files\":[\n\
             {{\"name\":\"skein-0.2.0-x86_64-unknown-linux-gnu.tar.gz\",\"target\":\"x86_64-unknown-linux-gnu\",\"kind\":\"archive\",\"bytes\":123,\"sha256\":\"{hash}\"}},\n\
             {{\"name\":\"skein_0.2.0_amd64.deb\",\"target\":\"x86_64-unknown-linux-gnu\",\"kind\":\"deb\",\"bytes\":123,\"sha256\":\"{hash}\"}}\n\
             ]}}\n"
        );
        assert_eq!(sample().encode(), expected);
        assert_eq!(Manifest::parse(expected.as_bytes()).unwrap(), sample());
    }

    #[test]
    fn every_deviation_is_refused() {
        let good = sample().encode();
        let two_archives = good.replace("\"deb\"", "\"archive\"");
        let twice = good.replace("skein_0.2.0_amd64.deb", "skein-0.2.0-x86_64-unknown-linux-gnu.tar.gz");
        let cases: [(&str, String); 16] = [
            ("a space", good.replacen(":", ": ", 1)),
            ("no last line end", good.trim_end().to_owned()),
            ("something after it", format!("{good}x")),
            ("another schema", good.replace("release/1", "release/2")),
            ("an unknown field", good.replacen("\"kind\"", "\"sort\"", 1)),
            ("one field more", good.replacen("\"kind\"", "\"more\":1,\"kind\"", 1)),
            ("a repeated field", good.replacen("\"version\"", "\"version\":\"9.9.9\",\"version\"", 1)),
            ("a path", good.replace("skein_0", "../skein_0")),
            ("a hidden file", good.replace("skein_0", ".skein_0")),
            ("a name twice", twice),
            ("two archives for one target", two_archives),
            ("no version", good.replace("\"0.2.0\"", "\"0.2\"")),
            ("build metadata", good.replace("\"0.2.0\"", "\"0.2.0+b\"")),
            ("an empty file", good.replacen("123", "0", 1)),
            ("a huge file", good.replacen("123", "18446744073709551615", 1)),
            ("upper-case digits", good.replacen("abab", "ABab", 1)),
        ];
        for (what, text) in cases {
            assert_ne!(text, good, "{what}: the case changes nothing");
            let error = Manifest::parse(text.as_bytes()).expect_err(what);
            assert!(matches!(error, UpdateError::BadManifest(_)), "{what}: {error}");
            assert!(error.to_string().contains("\nhint: "), "{what}: {error}");
        }
        let long = vec![b' '; MANIFEST_BYTES_MAX + 1];
        assert!(matches!(Manifest::parse(&long), Err(UpdateError::TooLarge { .. })));
    }
}
