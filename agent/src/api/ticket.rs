//! One-time tickets: a command line, which others on this machine may read, takes one to the browser instead of the token.
//!
//! Must never keep a ticket itself, only its digest, nor take one twice or late.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderName, StatusCode, header};
use axum::{Extension, Json};
use serde::Deserialize;
use serde_json::{Value, json};

use super::caller::Ends;
use super::control::parse;
use super::{Door, Problem, body_within};
use crate::daemon::lock;
use crate::limits::{TICKET_BODY_BYTES_MAX, TICKET_BODY_TIMEOUT, TICKET_LIFE, TICKETS_MAX};

/// Tickets that were given out and not taken yet, oldest first. Clones share them.
#[derive(Clone, Default)]
pub(super) struct Tickets {
    given: Arc<Mutex<VecDeque<Ticket>>>,
    /// Redemptions under way.
    redeeming: Arc<AtomicUsize>,
}

struct Ticket {
    digest: blake3::Hash,
    issued: Instant,
    /// Which user of this machine asked for it, if that is known.
    user: Option<u32>,
}

impl Tickets {
    /// A new ticket; where there are too many, the oldest is void from now on.
    ///
    /// # Errors
    /// When the operating system has no randomness.
    fn issue(&self, user: Option<u32>, now: Instant) -> Result<String, getrandom::Error> {
        let mut secret = [0; 32];
        getrandom::fill(&mut secret)?;
        let ticket = hex::encode(secret);
        let mut tickets = lock(&self.given);
        prune(&mut tickets, now);
        if tickets.len() >= TICKETS_MAX {
            tickets.pop_front();
        }
        tickets.push_back(Ticket { digest: blake3::hash(ticket.as_bytes()), issued: now, user });
        Ok(ticket)
    }

    /// Whether this is a ticket that is good; it is none afterwards. Another user than the one who asked for it saw it in a
    /// command line: in his hand it is none, and stays good. What root asked for is for whoever has a browser.
    fn redeem(&self, text: &str, user: Option<u32>, now: Instant) -> bool {
        let mut tickets = lock(&self.given);
        prune(&mut tickets, now);
        let given = blake3::hash(text.as_bytes());
        let place = tickets.iter().position(|ticket| ticket.digest == given && ticket.is_for(user));
        place.and_then(|place| tickets.remove(place)).is_some()
    }

    /// A place for one more redemption, if there is one: anybody on this machine may try, and none may keep the owner from
    /// his word by trying slowly.
    fn enter(&self) -> Option<Redeeming> {
        let more = |under_way| (under_way < TICKETS_MAX).then_some(under_way + 1);
        self.redeeming.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Redeeming(Arc::clone(&self.redeeming)))
    }
}

impl Ticket {
    fn is_for(&self, user: Option<u32>) -> bool {
        self.user.zip(user).is_none_or(|(asked, comes)| asked == 0 || asked == comes)
    }
}

/// One redemption's place, given back when dropped.
struct Redeeming(Arc<AtomicUsize>);

impl Drop for Redeeming {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn prune(tickets: &mut VecDeque<Ticket>, now: Instant) {
    tickets.retain(|ticket| now.duration_since(ticket.issued) < TICKET_LIFE);
}

type Unkept = ([(HeaderName, &'static str); 1], Json<Value>);

fn unkept(value: Value) -> Unkept {
    ([(header::CACHE_CONTROL, "no-store")], Json(value))
}

/// A ticket, for whoever has the token or the owner's socket.
pub(super) async fn issue(
    State(door): State<Door>,
    ends: Option<Extension<Ends>>,
) -> Result<Unkept, Problem> {
    let user = ends.and_then(|Extension(ends)| ends.user());
    let ticket =
        door.tickets.issue(user, Instant::now()).map_err(|error| Problem::broken(error.to_string()))?;
    Ok(unkept(json!({ "ticket": ticket, "lives_s": TICKET_LIFE.as_secs() })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Redemption {
    ticket: String,
}

/// The token, for a ticket.
pub(super) async fn redeem(
    State(door): State<Door>,
    ends: Option<Extension<Ends>>,
    body: Body,
) -> Result<Unkept, Problem> {
    let Some(_place) = door.tickets.enter() else {
        let message = "too many pages are being opened\nhint: try again in a second";
        return Err(Problem::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_exceeded", message));
    };
    let body = body_within(body, TICKET_BODY_BYTES_MAX, TICKET_BODY_TIMEOUT).await?;
    let Redemption { ticket } = parse(&body, "ticket is needed")?;
    let user = ends.and_then(|Extension(ends)| ends.user());
    if door.tickets.redeem(&ticket, user, Instant::now()) {
        return Ok(unkept(json!({ "token": &*door.token })));
    }
    let message = format!(
        "the ticket is used already, or older than {} s\nhint: open the page again by the tray icon or `skein dashboard`",
        TICKET_LIFE.as_secs()
    );
    Err(Problem::new(StatusCode::UNAUTHORIZED, "authentication_error", message))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_ticket_is_good_once_and_not_for_long() {
        let (tickets, now) = (Tickets::default(), Instant::now());
        let issue = || tickets.issue(None, now).unwrap();
        let (first, second, third) = (issue(), issue(), issue());
        assert!(first.len() == 64 && first != second);
        assert!(!tickets.redeem("", None, now) && !tickets.redeem(&first[..63], None, now));
        assert!(tickets.redeem(&second, None, now) && !tickets.redeem(&second, None, now));
        let shortly = now + TICKET_LIFE - Duration::from_millis(1);
        assert!(tickets.redeem(&first, None, shortly) && !tickets.redeem(&third, None, now + TICKET_LIFE));
        assert!(!tickets.redeem(&third, None, now), "what was too old comes not back");
        assert!(lock(&tickets.given).is_empty());
    }

    #[test]
    fn who_read_it_in_a_command_line_cannot_use_it() {
        let (tickets, now) = (Tickets::default(), Instant::now());
        let ticket = tickets.issue(Some(1000), now).unwrap();
        assert!(!tickets.redeem(&ticket, Some(1001), now));
        assert!(tickets.redeem(&ticket, Some(1000), now), "it was not used up by the other");
        let of_root = tickets.issue(Some(0), now).unwrap();
        assert!(tickets.redeem(&of_root, Some(1000), now));
    }

    #[test]
    fn redemptions_are_bounded_and_places_given_back() {
        let tickets = Tickets::default();
        let mut held: Vec<Redeeming> = std::iter::from_fn(|| tickets.enter()).take(TICKETS_MAX + 1).collect();
        assert_eq!(held.len(), TICKETS_MAX);
        held.pop();
        assert!(tickets.enter().is_some());
    }

    #[test]
    fn of_too_many_the_oldest_is_void() {
        let (tickets, now) = (Tickets::default(), Instant::now());
        let issued: Vec<String> = (0..=TICKETS_MAX).map(|_| tickets.issue(None, now).unwrap()).collect();
        assert!(!tickets.redeem(&issued[0], None, now));
        assert!(issued[1..].iter().all(|ticket| tickets.redeem(ticket, None, now)));
    }

    #[test]
    fn of_many_who_try_one_is_given_the_token() {
        let (tickets, now) = (Tickets::default(), Instant::now());
        let ticket = tickets.issue(None, now).unwrap();
        let good = std::thread::scope(|scope| {
            let tries: Vec<_> = (0..8).map(|_| scope.spawn(|| tickets.redeem(&ticket, None, now))).collect();
            tries.into_iter().filter_map(|one| one.join().ok()).filter(|&good| good).count()
        });
        assert_eq!(good, 1);
    }
}
