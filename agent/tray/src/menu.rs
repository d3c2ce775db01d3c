//! What the icon says and offers, as a pure function of the agent's status.
//!
//! Words and choices only: no I/O, no clock, no toolkit. Texts that come from the agent may quote what strangers
//! chose (the name of a program), so they are cut and cleaned here. Must never offer what the agent would refuse.

use serde_json::{Value, json};

use crate::status::{Phase, Policy, Reason, Status};

/// Longest line of the menu, in characters.
const LINE_CHARS_MAX: usize = 120;
/// Most reasons that the menu lists.
const REASONS_MAX: usize = 6;

/// What the icon shows: a colour and a shape for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// Work is allowed.
    Working,
    /// Something holds work back and will pass by itself.
    Waiting,
    /// The owner paused it.
    Paused,
    /// Somebody should look at it.
    Trouble,
    /// The agent does not answer.
    Away,
}

impl State {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Working, Self::Waiting, Self::Paused, Self::Trouble, Self::Away];

    /// One word, as an owner would say it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Working => "working",
            Self::Waiting => "waiting",
            Self::Paused => "paused",
            Self::Trouble => "trouble",
            Self::Away => "not running",
        }
    }
}

/// What a click orders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// No work for 30 minutes.
    PauseHalfHour,
    /// No work before tomorrow, as the agent understands it.
    PauseUntilTomorrow,
    /// No work on the GPU until resumed; the processor goes on.
    PauseGpu,
    /// Ends any pause.
    Resume,
    /// Ends what is at work, then waits for resume.
    Finish,
    /// Shows the dashboard in the browser.
    OpenDashboard,
    /// Removes the icon; the agent goes on.
    QuitTray,
    /// Stops the agent, and removes the icon.
    QuitSkein,
}

impl Action {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::PauseHalfHour,
        Self::PauseUntilTomorrow,
        Self::PauseGpu,
        Self::Resume,
        Self::Finish,
        Self::OpenDashboard,
        Self::QuitTray,
        Self::QuitSkein,
    ];

    /// The order to the agent's API, as path and body; none where the tray acts by itself.
    #[must_use]
    pub fn order(self) -> Option<(&'static str, Value)> {
        match self {
            Self::PauseHalfHour => Some(("/api/pause", json!({"for_s": 1800}))),
            Self::PauseUntilTomorrow => Some(("/api/pause", json!({"until": "tomorrow"}))),
            Self::PauseGpu => Some(("/api/pause", json!({"gpu": true}))),
            Self::Resume => Some(("/api/resume", json!({}))),
            Self::Finish => Some(("/api/finish", json!({}))),
            Self::QuitSkein => Some(("/api/down", json!({}))),
            Self::OpenDashboard | Self::QuitTray => None,
        }
    }

    /// What could not be done, for the sentence "Could not …".
    #[must_use]
    pub fn deed(self) -> &'static str {
        match self {
            Self::PauseHalfHour | Self::PauseUntilTomorrow | Self::PauseGpu => "pause",
            Self::Resume => "resume",
            Self::Finish => "finish current work",
            Self::OpenDashboard => "open the dashboard",
            Self::QuitTray => "remove the icon",
            Self::QuitSkein => "stop Skein",
        }
    }
}

/// One line of the menu.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// Something to read.
    Text(String),
    /// Something to do.
    Item {
        /// What it says.
        label: String,
        /// What it orders.
        action: Action,
        /// Whether it can be chosen now.
        enabled: bool,
        /// A checkmark, for what can be on or off.
        checked: Option<bool>,
    },
    /// A line between groups.
    Separator,
}

impl Entry {
    fn item(label: &str, action: Action, enabled: bool) -> Self {
        Self::Item { label: label.to_owned(), action, enabled, checked: None }
    }
}

/// Everything that the icon shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Menu {
    /// Which icon.
    pub state: State,
    /// The tooltip's first line.
    pub title: String,
    /// The tooltip's other lines, as plain text.
    pub tooltip: String,
    /// The menu, from top to bottom.
    pub entries: Vec<Entry>,
}

impl Menu {
    /// What to show of an agent that answers.
    #[must_use]
    pub fn of(status: &Status) -> Self {
        let policy = policy(status);
        let state = match policy.state {
            Phase::Working => State::Working,
            Phase::Waiting => State::Waiting,
            Phase::Paused => State::Paused,
            Phase::Trouble => State::Trouble,
        };
        let mut said = lines(&policy, state);
        let told = said.join("\n");
        let mut entries: Vec<Entry> = said.drain(..).map(Entry::Text).collect();
        entries.push(Entry::Separator);
        entries.extend(orders(&policy));
        entries.push(Entry::Separator);
        if let Some(earned) = &status.earned_today {
            entries.push(Entry::Text(format!("Earned today: {}", line(plain_amount(earned)))));
        }
        entries.push(Entry::item("Open dashboard", Action::OpenDashboard, true));
        entries.push(Entry::Separator);
        entries.push(Entry::item("Quit tray", Action::QuitTray, true));
        entries.push(Entry::item("Quit Skein", Action::QuitSkein, true));
        Self { state, title: title(state), tooltip: told, entries }
    }

    /// What to show while no agent answers. `why` is an error's text; its line `hint: …` says how to start one.
    #[must_use]
    pub fn away(why: &str) -> Self {
        let said: Vec<String> = why
            .lines()
            .map(|said| sentence(said.trim().trim_start_matches("hint: ")))
            .filter(|said| !said.is_empty())
            .take(REASONS_MAX)
            .collect();
        let mut entries = vec![Entry::Text("Skein is not running".to_owned())];
        entries.extend(said.iter().cloned().map(Entry::Text));
        entries.push(Entry::Separator);
        entries.push(Entry::item("Quit tray", Action::QuitTray, true));
        Self { state: State::Away, title: title(State::Away), tooltip: said.join("\n"), entries }
    }

    /// The same with the news that an order failed, on top.
    #[must_use]
    pub fn with_notice(mut self, notice: &str) -> Self {
        let said = notice.lines().map(|said| Entry::Text(sentence(said))).take(2);
        self.entries.splice(0..0, said.chain([Entry::Separator]));
        self
    }
}

fn title(state: State) -> String {
    format!("Skein: {}", state.word())
}

/// What the policy says, and with it what is no matter of the policy, as a network that does not answer. An agent without
/// policy is told in the words of one with it.
fn policy(status: &Status) -> Policy {
    let mut policy = status.policy.clone().unwrap_or_else(|| {
        let state = if status.working { Phase::Working } else { Phase::Waiting };
        Policy { state, ..Policy::default() }
    });
    let told = |text: &&String| policy.reasons.iter().all(|reason| reason.told() != text.as_str());
    let others: Vec<Reason> = status
        .reasons
        .iter()
        .filter(told)
        .map(|text| Reason { text: text.clone(), ..Reason::default() })
        .collect();
    policy.reasons.extend(others);
    policy
}

/// The state and its reasons in words, nothing twice: a headline `Waiting: cause` loses the cause where a reason says
/// more about it, and a reason that says no more is left out.
fn lines(policy: &Policy, state: State) -> Vec<String> {
    let whole = if policy.headline.trim().is_empty() { state.word() } else { policy.headline.trim() };
    let headline = match whole.split_once(": ") {
        Some((word, cause)) if policy.reasons.iter().any(|reason| adds_to(reason, cause)) => word,
        Some(_) | None => whole,
    };
    let told = |text: &str| text.is_empty() || headline.contains(text);
    let reasons: Vec<String> = policy
        .reasons
        .iter()
        .filter(|reason| !told(reason.text.trim()))
        .map(|reason| sentence(reason.told()))
        .collect();
    let more = reasons.len().saturating_sub(REASONS_MAX);
    let mut said = vec![sentence(headline)];
    said.extend(reasons.into_iter().take(REASONS_MAX));
    if more > 0 {
        said.push(format!("… and {more} more: see the dashboard"));
    }
    said
}

fn adds_to(reason: &Reason, cause: &str) -> bool {
    reason.text.len() > cause.len() && reason.text.contains(cause)
}

fn orders(policy: &Policy) -> [Entry; 5] {
    let paused_gpu = policy.pause.as_ref().is_some_and(|pause| pause.blocks == "gpu");
    let finish = if policy.finishing { "Finishing current work…" } else { "Finish current work" };
    [
        Entry::item("Pause 30 minutes", Action::PauseHalfHour, true),
        Entry::item("Pause until tomorrow", Action::PauseUntilTomorrow, true),
        Entry::Item {
            label: "Pause GPU only".to_owned(),
            action: if paused_gpu { Action::Resume } else { Action::PauseGpu },
            enabled: true,
            checked: Some(paused_gpu),
        },
        Entry::item("Resume", Action::Resume, policy.pause.is_some() || policy.finishing),
        Entry::item(finish, Action::Finish, policy.state == Phase::Working && !policy.finishing),
    ]
}

/// `12.34000000` as people write it.
fn plain_amount(amount: &str) -> &str {
    if amount.contains('.') { amount.trim_end_matches('0').trim_end_matches('.') } else { amount }
}

/// One line with a capital letter, unless it begins with something quoted.
fn sentence(text: &str) -> String {
    let text = line(text);
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

/// One line of bounded length, without control characters and without what turns the writing direction.
fn line(text: &str) -> String {
    let turns = |letter: char| matches!(letter, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let clean = text.trim().chars().filter(|letter| !turns(*letter));
    let mut clean = clean.map(|letter| if letter.is_control() { ' ' } else { letter });
    let mut line: String = clean.by_ref().take(LINE_CHARS_MAX).collect();
    if clean.next().is_some() {
        line.pop();
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(policy: &Value) -> Status {
        serde_json::from_value(json!({"working": true, "policy": policy, "earned_today": "12.34000000"}))
            .unwrap()
    }

    fn texts(menu: &Menu) -> Vec<&str> {
        let text = |entry: &'_ Entry| matches!(entry, Entry::Text(_));
        menu.entries
            .iter()
            .filter(|entry| text(entry))
            .map(|entry| if let Entry::Text(text) = entry { text.as_str() } else { "" })
            .collect()
    }

    fn item(menu: &Menu, wanted: &str) -> (Action, bool, Option<bool>) {
        for entry in &menu.entries {
            if let Entry::Item { label, action, enabled, checked } = entry
                && label == wanted
            {
                return (*action, *enabled, *checked);
            }
        }
        panic!("no {wanted} in {menu:?}");
    }

    #[test]
    fn states_and_their_words() {
        for (word, state, title) in [
            ("working", State::Working, "Skein: working"),
            ("waiting", State::Waiting, "Skein: waiting"),
            ("paused", State::Paused, "Skein: paused"),
            ("trouble", State::Trouble, "Skein: trouble"),
            ("a word of a later version", State::Waiting, "Skein: waiting"),
        ] {
            let menu = Menu::of(&status(&json!({"state": word})));
            assert_eq!((menu.state, menu.title.as_str()), (state, title));
        }
    }

    #[test]
    fn reasons_come_first_and_are_not_said_twice() {
        let menu = Menu::of(&status(&json!({
            "state": "waiting",
            "headline": "Waiting: you used this machine 40 s ago",
            "reasons": [
                {"rule": "user_active", "text": "you used this machine 40 s ago"},
                {"rule": "gpu_temperature", "text": "GPU at 84 °C; work goes on below 78 °C"},
            ],
        })));
        let said = ["Waiting: you used this machine 40 s ago", "GPU at 84 °C; work goes on below 78 °C"];
        assert_eq!(texts(&menu), [said[0], said[1], "Earned today: 12.34"]);
        assert_eq!(menu.tooltip, said.join("\n"));
    }

    #[test]
    fn a_reason_that_says_more_takes_the_cause_from_the_headline() {
        let menu = Menu::of(&status(&json!({
            "state": "waiting",
            "headline": "Waiting: you used this machine 40 s ago",
            "reasons": [{"text": "you used this machine 40 s ago; work goes on after 3 min without input"}],
        })));
        let said = "You used this machine 40 s ago; work goes on after 3 min without input";
        assert_eq!(texts(&menu)[..2], ["Waiting", said]);
    }

    #[test]
    fn limits_next_looks_and_what_is_no_matter_of_the_policy_are_told() {
        let line = "GPU at 88 °C; work goes on at 75 °C (limit 85 °C, next look in 4 s)";
        let menu = Menu::of(
            &serde_json::from_value(json!({
                "policy": {
                    "state": "waiting", "headline": "Waiting for work",
                    "reasons": [{"text": "GPU at 88 °C; work goes on at 75 °C", "line": line}],
                },
                "reasons": [line, "none of the bootstrap agents answers"],
            }))
            .unwrap(),
        );
        assert_eq!(texts(&menu), ["Waiting for work", line, "None of the bootstrap agents answers"]);
    }

    #[test]
    fn many_reasons_are_counted() {
        let reasons: Vec<Value> = (0..9).map(|n| json!({"text": format!("reason {n}")})).collect();
        let menu = Menu::of(&status(&json!({"state": "waiting", "reasons": reasons})));
        let said = texts(&menu);
        assert_eq!(said.len(), 1 + REASONS_MAX + 1 + 1);
        assert_eq!(said[1 + REASONS_MAX], "… and 3 more: see the dashboard");
    }

    #[test]
    fn what_can_be_chosen_follows_the_state() {
        let table = [
            // state, pause, finishing: resume enabled, finish enabled, GPU checked, what the GPU entry orders
            (json!({"state": "working"}), false, true, false, Action::PauseGpu),
            (json!({"state": "waiting"}), false, false, false, Action::PauseGpu),
            (json!({"state": "paused", "pause": {"blocks": "all"}}), true, false, false, Action::PauseGpu),
            (json!({"state": "working", "pause": {"blocks": "gpu"}}), true, true, true, Action::Resume),
            (json!({"state": "trouble"}), false, false, false, Action::PauseGpu),
        ];
        for (policy, resume, finish, checked, gpu) in table {
            let menu = Menu::of(&status(&policy));
            assert_eq!(item(&menu, "Resume"), (Action::Resume, resume, None), "{policy}");
            assert_eq!(item(&menu, "Finish current work"), (Action::Finish, finish, None), "{policy}");
            assert_eq!(item(&menu, "Pause GPU only"), (gpu, true, Some(checked)), "{policy}");
            assert_eq!(item(&menu, "Pause 30 minutes"), (Action::PauseHalfHour, true, None));
            assert_eq!(item(&menu, "Pause until tomorrow"), (Action::PauseUntilTomorrow, true, None));
        }
        let menu = Menu::of(&status(&json!({"state": "working", "finishing": true})));
        assert_eq!(item(&menu, "Finishing current work…"), (Action::Finish, false, None));
        assert_eq!(item(&menu, "Resume"), (Action::Resume, true, None));
    }

    #[test]
    fn the_menu_does_not_move_under_the_pointer() {
        let count = |policy: Value| Menu::of(&status(&policy)).entries.len();
        let paused = count(json!({"state": "paused", "headline": "Paused", "pause": {"blocks": "all"}}));
        assert_eq!(count(json!({"state": "working", "headline": "Working"})), paused);
    }

    #[test]
    fn orders_are_those_of_the_api() {
        let orders: Vec<_> = Action::ALL.into_iter().filter_map(Action::order).collect();
        let expected = [
            ("/api/pause", json!({"for_s": 1800})),
            ("/api/pause", json!({"until": "tomorrow"})),
            ("/api/pause", json!({"gpu": true})),
            ("/api/resume", json!({})),
            ("/api/finish", json!({})),
            ("/api/down", json!({})),
        ];
        assert_eq!(orders, expected);
    }

    #[test]
    fn an_older_agent_is_understood() {
        let menu = Menu::of(&serde_json::from_value(json!({"working": true})).unwrap());
        assert_eq!((menu.state, texts(&menu)), (State::Working, vec!["Working"]));
        let menu = Menu::of(&serde_json::from_value(json!({"reasons": ["no adapter"]})).unwrap());
        assert_eq!((menu.state, texts(&menu)), (State::Waiting, vec!["Waiting", "No adapter"]));
    }

    #[test]
    fn away_says_how_to_start() {
        let menu = Menu::away("no agent runs in /home/a/skein\nhint: `skein up` starts one\n");
        assert_eq!(menu.state, State::Away);
        let said = ["Skein is not running", "No agent runs in /home/a/skein", "`skein up` starts one"];
        assert_eq!(texts(&menu), said);
        assert_eq!(item(&menu, "Quit tray"), (Action::QuitTray, true, None));
        assert!(
            !menu
                .entries
                .iter()
                .any(|entry| matches!(entry, Entry::Item { action, .. } if action.order().is_some()))
        );
    }

    #[test]
    fn a_failed_order_is_told_on_top() {
        let menu =
            Menu::of(&status(&json!({"state": "working"}))).with_notice("could not pause: it answered 500");
        assert_eq!(texts(&menu)[0], "Could not pause: it answered 500");
    }

    #[test]
    fn what_strangers_wrote_stays_one_clean_short_line() {
        let name = format!("evil\n\u{202e}exe.gnp{}", "x".repeat(500));
        let menu = Menu::of(&status(&json!({"state": "waiting", "headline": name})));
        let said = texts(&menu)[0];
        assert_eq!(said.chars().count(), LINE_CHARS_MAX);
        assert!(said.starts_with("Evil exe.gnp") && said.ends_with('…'), "{said}");
        assert!(said.chars().all(|letter| !letter.is_control()));
    }

    #[test]
    fn amounts_lose_only_zeros_behind_the_point() {
        for (given, shown) in
            [("12.34000000", "12.34"), ("0.00000000", "0"), ("100", "100"), ("100.00000001", "100.00000001")]
        {
            assert_eq!(plain_amount(given), shown);
        }
    }
}
