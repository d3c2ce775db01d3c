//! How the other verbs talk to the running agent: its local API, found through `agent.json`.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use serde::Serialize;
use serde::de::DeserializeOwned;
use skein_proto::ids::{Digest, JobId};

use crate::cli::DataDir;
use crate::daemon::{RUNNING_FILE, Running};
use crate::serve::desk::ServeOrder;

/// A door to one running agent.
pub(crate) struct Client {
    data_dir: PathBuf,
    running: Running,
    agent: ureq::Agent,
}

impl Client {
    /// The agent of this data directory.
    ///
    /// # Errors
    /// When none runs there.
    pub(crate) fn find(data_dir: DataDir) -> Result<Self> {
        Self::of(&crate::config::data_dir(data_dir.data_dir)?)
    }

    /// The agent that runs in `data_dir`.
    ///
    /// # Errors
    /// When none runs there.
    pub(crate) fn of(data_dir: &Path) -> Result<Self> {
        let path: PathBuf = data_dir.join(RUNNING_FILE);
        let hint = format!("hint: `skein up --data-dir {}` starts one", data_dir.display());
        let bytes =
            std::fs::read(&path).map_err(|_| anyhow!("no agent runs in {}\n{hint}", data_dir.display()))?;
        let running = serde_json::from_slice(&bytes).with_context(|| {
            format!("{} is damaged\nhint: stop the agent and start it again", path.display())
        })?;
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            // It is on this machine, and the token goes to nobody else.
            .proxy(None)
            .timeout_connect(Some(Duration::from_secs(5)))
            .build();
        Ok(Self { data_dir: data_dir.to_owned(), running, agent: config.into() })
    }

    /// The same agent, which may have been started again since.
    ///
    /// # Errors
    /// When none runs any more.
    pub(crate) fn again(&self) -> Result<Self> {
        Self::of(&self.data_dir)
    }

    /// What `agent.json` says.
    pub(crate) fn running(&self) -> &Running {
        &self.running
    }

    /// Where `path` of the API is.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.running.api)
    }

    /// GET, as JSON.
    ///
    /// # Errors
    /// When the agent does not answer, or answers with an error.
    pub(crate) fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let request = self.agent.get(self.url(path)).config().timeout_global(limit(path)).build();
        parse(self.answered(request.call())?)
    }

    /// GET, as JSON, of an agent that must have answered within `limit`.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub(crate) fn get_within<T: DeserializeOwned>(&self, path: &str, limit: Duration) -> Result<T> {
        let request = self.agent.get(self.url(path)).config().timeout_global(Some(limit)).build();
        parse(self.answered(request.call())?)
    }

    /// GET of what only the owner may read, as JSON.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub(crate) fn get_own<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let request = self.agent.get(self.url(path)).config().timeout_global(limit(path)).build();
        parse(self.answered(request.header("Authorization", self.bearer()).call())?)
    }

    /// POST of JSON with the token, as JSON.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub(crate) fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        let request = self.agent.post(self.url(path)).config().timeout_global(limit(path)).build();
        parse(self.answered(request.header("Authorization", self.bearer()).send_json(body))?)
    }

    /// Gives the agent a blob, which it keeps.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub(crate) fn put_blob(&self, content: impl std::io::Read) -> Result<Digest> {
        self.put("/api/blobs", content)
    }

    /// Gives the agent a part of something that will name it, such as a model.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub(crate) fn put_piece(&self, content: impl std::io::Read) -> Result<Digest> {
        self.put("/api/blobs?keep=false", content)
    }

    fn put(&self, path: &str, content: impl std::io::Read) -> Result<Digest> {
        #[derive(serde::Deserialize)]
        struct Stored {
            digest: Digest,
        }
        let mut content = content;
        let request = self.agent.post(self.url(path)).header("Authorization", self.bearer());
        let body = ureq::SendBody::from_reader(&mut content);
        parse(self.answered(request.send(body))?).map(|stored: Stored| stored.digest)
    }

    /// Copies a blob that the agent holds into a file.
    ///
    /// # Errors
    /// When it is not held, or the file cannot be written.
    pub(crate) fn get_blob(&self, digest: Digest, into: &Path) -> Result<u64> {
        let mut response = self.blob(digest)?;
        let mut file =
            std::fs::File::create(into).with_context(|| format!("cannot write {}", into.display()))?;
        let mut body = response.body_mut().as_reader();
        let copied = std::io::copy(&mut body, &mut file);
        copied.with_context(|| format!("cannot write {}", into.display()))
    }

    /// A small blob that the agent holds, at most `most` bytes long, and truly the one asked for.
    ///
    /// # Errors
    /// When it is not held, or too large.
    pub(crate) fn get_bytes(&self, digest: Digest, most: u64) -> Result<Vec<u8>> {
        let mut response = self.blob(digest)?;
        let mut bytes = Vec::new();
        std::io::Read::take(response.body_mut().as_reader(), most + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > most || Digest::of(&bytes) != digest {
            bail!("the agent gave back another blob than {}, or a larger one than expected", digest.short());
        }
        Ok(bytes)
    }

    /// From wherever it is, which is an order to the agent.
    fn blob(&self, digest: Digest) -> Result<ureq::http::Response<ureq::Body>> {
        let request = self.agent.get(self.url(&format!("/api/blobs/{digest}?fetch=true")));
        self.answered(request.header("Authorization", self.bearer()).call())
    }

    /// The dashboard's address with a ticket, which its page is given the token for, once.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub(crate) fn dashboard(&self) -> Result<String> {
        #[derive(serde::Deserialize)]
        struct Issued {
            ticket: String,
        }
        let issued: Issued = self.post("/api/ticket", &())?;
        // Behind the `#`, which a browser keeps to itself.
        Ok(self.url(&format!("/#ticket={}", issued.ticket)))
    }

    /// Submits a job.
    ///
    /// # Errors
    /// When the job is refused.
    pub(crate) fn submit(&self, spec: &skein_proto::job::JobSpec) -> Result<JobId> {
        #[derive(serde::Deserialize)]
        struct Submitted {
            id: JobId,
        }
        self.post("/api/jobs", spec).map(|submitted: Submitted| submitted.id)
    }

    /// Has a model that was added served.
    ///
    /// # Errors
    /// When it is not known, or the job is refused.
    pub(crate) fn serve(&self, order: &ServeOrder) -> Result<JobId> {
        #[derive(serde::Deserialize)]
        struct Submitted {
            id: JobId,
        }
        self.post("/api/serve", order).map(|submitted: Submitted| submitted.id)
    }

    /// POST of JSON, whatever the answer: its status and body.
    ///
    /// # Errors
    /// When the agent does not answer, or not with JSON.
    pub(crate) fn post_any(&self, path: &str, body: &serde_json::Value) -> Result<(u16, serde_json::Value)> {
        let answer = self.agent.post(self.url(path)).send_json(body);
        let mut response =
            answer.with_context(|| format!("the agent at {} does not answer", self.running.api))?;
        let status = response.status().as_u16();
        Ok((status, response.body_mut().read_json().context("the agent answered with what is no JSON")?))
    }

    /// A streaming POST: the response's body, line by line.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub(crate) fn post_stream(
        &self,
        path: &str,
        body: &serde_json::Value,
    ) -> Result<impl std::io::BufRead + use<>> {
        let answer = self.agent.post(self.url(path)).send_json(body);
        let response = self.answered(answer)?;
        Ok(std::io::BufReader::new(response.into_body().into_reader()))
    }

    fn bearer(&self) -> String {
        format!("Bearer {}", self.running.token)
    }

    fn answered(
        &self,
        answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
    ) -> Result<ureq::http::Response<ureq::Body>> {
        let mut response = answer.map_err(|error| {
            anyhow!(
                "the agent at {} does not answer: {error}\nhint: it may have been killed; `skein up` starts it again",
                self.running.api
            )
        })?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let text = response.body_mut().read_to_string().unwrap_or_default();
        let said = serde_json::from_str::<serde_json::Value>(&text).ok();
        let message = said.as_ref().and_then(|said| said["error"]["message"].as_str());
        bail!("{}", message.map_or_else(|| format!("the agent answered {status}"), str::to_owned))
    }
}

/// How long an answer may take; models take as long as they need.
fn limit(path: &str) -> Option<Duration> {
    if path.starts_with("/v1/") {
        return None;
    }
    let seconds = match path {
        "/api/down" => 15,
        path if path.starts_with("/api/fleet") => 30,
        _ => 10,
    };
    Some(Duration::from_secs(seconds))
}

fn parse<T: DeserializeOwned>(mut response: ureq::http::Response<ureq::Body>) -> Result<T> {
    response.body_mut().read_json().context("the agent's answer is not what this version expects")
}
