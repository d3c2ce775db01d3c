//! How the tray talks to the agent: short requests to its local API, found anew each time.
//!
//! The agent may stop, start again, and come back with another port and another token; so nothing of it is kept but
//! the last good status. Must never go through a proxy (the token would go with it), follow a redirect, or wait long.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

use crate::Agent;
use crate::menu::Action;
use crate::status::Status;

/// A healthy agent answers within milliseconds.
const LOOK_TIMEOUT: Duration = Duration::from_secs(2);
/// Stopping is asked for by POST too, and may take some seconds.
const ORDER_TIMEOUT: Duration = Duration::from_secs(10);
/// A status is some kilobytes long.
const STATUS_BYTES_MAX: u64 = 4 << 20;
/// So often may a living agent be too busy to answer before it counts as away.
const MISSES_MAX: u32 = 3;

/// What a look at the agent showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Look {
    /// It answered, now or a moment ago.
    Here(Box<Status>),
    /// It does not answer: why, and in a line `hint: …` how to start it.
    Away(String),
}

/// A door to whatever agent runs now.
pub(crate) struct Client<F> {
    find: F,
    http: ureq::Agent,
    last: Option<Box<Status>>,
    misses: u32,
}

impl<F: Fn() -> Result<Agent>> Client<F> {
    pub(crate) fn new(find: F) -> Self {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_idle_connections(0)
            .proxy(None)
            .timeout_connect(Some(LOOK_TIMEOUT))
            .user_agent(concat!("skein-tray/", env!("CARGO_PKG_VERSION")))
            .build();
        Self { find, http: config.into(), last: None, misses: 0 }
    }

    /// Asks the agent how it is.
    pub(crate) fn look(&mut self) -> Look {
        match (self.find)().map_err(Miss::Away).and_then(|agent| self.ask(&agent)) {
            Ok(status) => {
                self.misses = 0;
                self.last = Some(Box::new(status.clone()));
                Look::Here(Box::new(status))
            }
            Err(Miss::Slow(error)) => {
                self.misses = self.misses.saturating_add(1);
                match &self.last {
                    Some(last) if self.misses < MISSES_MAX => Look::Here(last.clone()),
                    Some(_) | None => Look::Away(format!("{error:#}")),
                }
            }
            Err(Miss::Away(error)) => {
                self.last = None;
                Look::Away(format!("{error:#}"))
            }
        }
    }

    fn ask(&self, agent: &Agent) -> Result<Status, Miss> {
        let request = self.http.get(format!("http://{}/api/status?brief=true", agent.api));
        let answer = request.config().timeout_global(Some(LOOK_TIMEOUT)).build().call();
        let mut answer = answer.map_err(|error| Miss::of(agent, &error))?;
        if !answer.status().is_success() {
            let status = answer.status();
            return Err(Miss::Away(anyhow!(
                "{} answered {status} to the question for its status\nhint: another program may use this port; `skein status` says more",
                agent.api
            )));
        }
        let status = answer.body_mut().with_config().limit(STATUS_BYTES_MAX).read_json();
        status.map_err(|error| match Miss::of(agent, &error) {
            Miss::Slow(error) => Miss::Slow(error),
            Miss::Away(_) => Miss::Away(anyhow!(
                "what answers at {} is not an agent that this tray understands ({error})\nhint: start the tray again after an update",
                agent.api
            )),
        })
    }

    /// Gives an order by POST.
    ///
    /// # Errors
    /// When the agent does not answer, or refuses; nothing was done then, or nobody can tell.
    pub(crate) fn order(&self, action: Action) -> Result<()> {
        let Some((path, body)) = action.order() else { return Ok(()) };
        self.post(&(self.find)()?, path, body).map(drop)
    }

    fn post(
        &self,
        agent: &Agent,
        path: &str,
        body: impl serde::Serialize,
    ) -> Result<ureq::http::Response<ureq::Body>> {
        let request = self
            .http
            .post(format!("http://{}{path}", agent.api))
            .header("Authorization", format!("Bearer {}", agent.token));
        let answer = request.config().timeout_global(Some(ORDER_TIMEOUT)).build().send_json(body);
        let mut answer = answer.map_err(|error| silent(agent, &error))?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let status = answer.status();
        let said: Option<serde_json::Value> = answer.body_mut().with_config().limit(1 << 16).read_json().ok();
        let message = said.as_ref().and_then(|said| said["error"]["message"].as_str());
        bail!("{}", message.map_or_else(|| format!("the agent answered {status}"), str::to_owned))
    }

    /// The dashboard's address, with a ticket as its fragment, and the same without, for showing.
    ///
    /// The ticket is good once and for some seconds: others on this machine may read the browser's command line.
    ///
    /// # Errors
    /// When no agent is found, or it gives no ticket.
    pub(crate) fn dashboard(&self) -> Result<(String, String)> {
        #[derive(serde::Deserialize)]
        struct Issued {
            ticket: String,
        }
        let agent = (self.find)().context("no agent to show")?;
        let mut answer = self.post(&agent, "/api/ticket", serde_json::json!({}))?;
        let issued = answer.body_mut().with_config().limit(1 << 10).read_json();
        let Issued { ticket } = issued.context("the agent gives no ticket for its page")?;
        Ok((format!("http://{}/#ticket={ticket}", agent.api), format!("http://{}/", agent.api)))
    }
}

/// Why there is no status.
enum Miss {
    /// Something listens there and is slow.
    Slow(anyhow::Error),
    /// No agent.
    Away(anyhow::Error),
}

impl Miss {
    fn of(agent: &Agent, error: &ureq::Error) -> Self {
        if matches!(error, ureq::Error::Timeout(_)) {
            Self::Slow(silent(agent, error))
        } else {
            Self::Away(silent(agent, error))
        }
    }
}

fn silent(agent: &Agent, error: &ureq::Error) -> anyhow::Error {
    let hint = if matches!(error, ureq::Error::Timeout(_)) {
        "it may be very busy; if it stays so, `skein down` and `skein up` start it again"
    } else {
        "`skein up` starts it again"
    };
    anyhow!("the agent at {} does not answer ({error})\nhint: {hint}", agent.api)
}
