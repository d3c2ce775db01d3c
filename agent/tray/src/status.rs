//! What the tray reads of the agent's `GET /api/status`.
//!
//! Lenient: whatever an older or a newer agent leaves out has a default, and what it adds is ignored. Must never
//! refuse a status because of a part that the tray does not show.

use serde::Deserialize;

/// What the agent said about itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Status {
    /// Whether the agent takes work; what there is without `policy`.
    pub working: bool,
    /// Why it does not, in words; what there is without `policy`.
    pub reasons: Vec<String>,
    /// What the policy decided. Agents before 0.2 have none.
    pub policy: Option<Policy>,
    /// What was earned since midnight, as a decimal number of credits.
    pub earned_today: Option<String>,
}

/// What the policy decided, and why.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Policy {
    /// The one word for it.
    pub state: Phase,
    /// One sentence for it.
    pub headline: String,
    /// All that holds work back.
    pub reasons: Vec<Reason>,
    /// The owner's own pause, if one is in force.
    pub pause: Option<Pause>,
    /// Whether the agent ends what is at work and then waits for `resume`.
    pub finishing: bool,
}

/// The policy's one word.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Work is allowed.
    Working,
    /// The owner paused it.
    Paused,
    /// Somebody should look at it.
    Trouble,
    /// Something holds work back and will pass by itself. Also any word that this version does not know.
    #[default]
    #[serde(other)]
    Waiting,
}

/// One thing that holds work back.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Reason {
    /// In words.
    pub text: String,
    /// With its limit and when it is looked at again. Earlier agents have none.
    pub line: String,
}

impl Reason {
    /// As much as the agent tells.
    #[must_use]
    pub fn told(&self) -> &str {
        if self.line.is_empty() { &self.text } else { &self.line }
    }
}

/// A pause that the owner ordered.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Pause {
    /// `all`, or `gpu` for the GPU alone.
    pub blocks: String,
}
