//! One-time tickets: a command line, which others on this machine may read, takes one to the browser instead of the token.
//!
//! Must never keep a ticket itself, only its digest, nor take one twice or late.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderName, StatusCode, header};
use serde::Deserialize;
use serde_json::{Value, json};

use super::control::parse;
use super::{Door, Problem, whole_body};
use crate::daemon::lock;
use crate::limits::{TICKET_LIFE, TICKETS_MAX};

/// Tickets that were given out and not taken yet, oldest first. Clones share them.
#[derive(Clone, Default)]
pub(super) struct Tickets(Arc<Mutex<VecDeque<(blake3::Hash, Instant)>>>);

impl Tickets {
    /// A new ticket; where there are too many, the oldest is void from now on.
    ///
    /// # Errors
    /// When the operating system has no randomness.
    fn issue(&self, now: Instant) -> Result<String, getrandom::Error> {
        let mut secret = [0; 32];
        getrandom::fill(&mut secret)?;
        let ticket = hex::encode(secret);
        let mut tickets = lock(&self.0);
        prune(&mut tickets, now);
        if tickets.len() >= TICKETS_MAX {
            tickets.pop_front();
        }
        tickets.push_back((blake3::hash(ticket.as_bytes()), now));
        Ok(ticket)
    }

    /// Whether this is a ticket that is good; it is none afterwards.
    fn redeem(&self, text: &str, now: Instant) -> bool {
        let mut tickets = lock(&self.0);
        prune(&mut tickets, now);
        let given = blake3::hash(text.as_bytes());
        let place = tickets.iter().position(|(ticket, _)| *ticket == given);
        place.and_then(|place| tickets.remove(place)).is_some()
    }
}

fn prune(tickets: &mut VecDeque<(blake3::Hash, Instant)>, now: Instant) {
    tickets.retain(|(_, issued)| now.duration_since(*issued) < TICKET_LIFE);
}

type Unkept = ([(HeaderName, &'static str); 1], Json<Value>);

fn unkept(value: Value) -> Unkept {
    ([(header::CACHE_CONTROL, "no-store")], Json(value))
}

/// A ticket, for whoever has the token or the owner's socket.
pub(super) async fn issue(State(door): State<Door>) -> Result<Unkept, Problem> {
    let ticket = door.tickets.issue(Instant::now()).map_err(|error| Problem::broken(error.to_string()))?;
    Ok(unkept(json!({ "ticket": ticket, "lives_s": TICKET_LIFE.as_secs() })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Redemption {
    ticket: String,
}

/// The token, for a ticket.
pub(super) async fn redeem(State(door): State<Door>, body: Body) -> Result<Unkept, Problem> {
    let Redemption { ticket } = parse(&whole_body(body).await?, "ticket is needed")?;
    if door.tickets.redeem(&ticket, Instant::now()) {
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
        let issue = || tickets.issue(now).unwrap();
        let (first, second, third) = (issue(), issue(), issue());
        assert!(first.len() == 64 && first != second);
        assert!(!tickets.redeem("", now) && !tickets.redeem(&first[..63], now));
        assert!(tickets.redeem(&second, now) && !tickets.redeem(&second, now));
        let shortly = now + TICKET_LIFE - Duration::from_millis(1);
        assert!(tickets.redeem(&first, shortly) && !tickets.redeem(&third, now + TICKET_LIFE));
        assert!(!tickets.redeem(&third, now), "what was too old comes not back");
        assert!(lock(&tickets.0).is_empty());
    }

    #[test]
    fn of_too_many_the_oldest_is_void() {
        let (tickets, now) = (Tickets::default(), Instant::now());
        let issued: Vec<String> = (0..=TICKETS_MAX).map(|_| tickets.issue(now).unwrap()).collect();
        assert!(!tickets.redeem(&issued[0], now));
        assert!(issued[1..].iter().all(|ticket| tickets.redeem(ticket, now)));
    }

    #[test]
    fn of_many_who_try_one_is_given_the_token() {
        let (tickets, now) = (Tickets::default(), Instant::now());
        let ticket = tickets.issue(now).unwrap();
        let good = std::thread::scope(|scope| {
            let tries: Vec<_> = (0..8).map(|_| scope.spawn(|| tickets.redeem(&ticket, now))).collect();
            tries.into_iter().filter_map(|one| one.join().ok()).filter(|&good| good).count()
        });
        assert_eq!(good, 1);
    }
}
