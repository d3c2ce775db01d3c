//! The customer's side of jobs: what this agent submitted, and what it was told of all jobs.
//!
//! An order is said again until the coordinator in office shows that it heard it, and a cancellation until
//! the job ended, so that no lost message and no change of coordinator loses either. Must never decide how
//! a job is executed.

use std::collections::BTreeMap;

use crate::ids::{JobId, Millis};
use crate::job::JobSpec;
use crate::limits::{JOBS_MAX, ORDERS_MAX, RESUBMIT_MS};
use crate::message::{JobStatus, Message, Phase, Resume, bounded_reason};
use crate::signed::{Envelope, Signed};

/// An own job that has not ended.
#[derive(Debug)]
struct Order {
    job: Envelope<JobSpec>,
    cancelled: bool,
    /// How far it came, by the last word that said so: a coordinator who is in office for a moment may know nothing.
    resume: Option<Resume>,
    /// Whether the coordinator in office told of it since it was last met.
    answered: bool,
    said_at: Option<Millis>,
}

/// Own jobs, and the last word about every job.
#[derive(Debug, Default)]
pub struct Orders {
    own: BTreeMap<JobId, Order>,
    told: BTreeMap<JobId, JobStatus>,
}

impl Orders {
    /// The local customer submits a job, or takes one up where it stood `before`. One that ended before is only shown; one
    /// that cannot be ordered is shown as failed.
    pub fn place(&mut self, job: Signed<JobSpec>, before: Option<JobStatus>) -> JobId {
        let mut status = JobStatus::new(&job);
        let id = status.id;
        if self.own.contains_key(&id) {
            return id;
        }
        if let Some(before) = before.filter(JobStatus::is_bounded) {
            if before.id == id && before.phase.is_final() {
                self.keep(before);
                return id;
            }
            if let Some(Resume::Train(trained)) = before.resume() {
                status.resume_from(&trained);
            }
        }
        let refusal = match job.statement().validate() {
            Err(error) => Some(error.to_string()),
            Ok(()) if self.own.len() >= ORDERS_MAX => {
                Some(format!("this agent has {ORDERS_MAX} jobs under way already"))
            }
            Ok(()) => None,
        };
        match refusal {
            Some(reason) => status.phase = Phase::Failed { reason: bounded_reason(&reason) },
            None => {
                let order = Order {
                    job: job.into_envelope(),
                    cancelled: false,
                    resume: status.resume(),
                    answered: false,
                    said_at: None,
                };
                self.own.insert(id, order);
            }
        }
        self.keep(status);
        id
    }

    /// The local customer ends his job. Returns whether it is an order that had not ended.
    pub fn cancel(&mut self, id: JobId) -> bool {
        let Some(order) = self.own.get_mut(&id) else { return false };
        order.cancelled = true;
        order.said_at = None;
        true
    }

    /// The coordinator in office told of a job. Returns whether it is news.
    pub fn heard(&mut self, status: JobStatus) -> bool {
        if status.phase.is_final() {
            self.own.remove(&status.id);
        } else if let Some(order) = self.own.get_mut(&status.id) {
            order.answered = true;
            order.resume = status.resume().or(order.resume.take());
        }
        // What ended stays ended: another coordinator may not know it yet.
        let ended = self.told.get(&status.id).is_some_and(|known| known.phase.is_final());
        if ended && !status.phase.is_final() {
            return false;
        }
        self.keep(status)
    }

    /// Another coordinator is in office, or the same was met anew: it may know nothing. What it does know
    /// of others' jobs it will tell; what was under way under another may have ended unheard.
    pub fn unanswered(&mut self) {
        let own = &self.own;
        self.told.retain(|id, known| own.contains_key(id) || known.phase.is_final());
        for order in self.own.values_mut() {
            order.answered = false;
            order.said_at = None;
        }
    }

    /// What the coordinator must be told now.
    pub fn to_say(&mut self, now: Millis) -> Vec<Message> {
        let mut messages = Vec::new();
        for (id, order) in &mut self.own {
            let due = order.said_at.is_none_or(|said_at| now.since(said_at) >= RESUBMIT_MS);
            if !due || (order.answered && !order.cancelled) {
                continue;
            }
            order.said_at = Some(now);
            if !order.answered {
                messages.push(Message::Submit { job: order.job.clone(), resume: order.resume.clone() });
            }
            if order.cancelled {
                messages.push(Message::Cancel(*id));
            }
        }
        messages
    }

    /// The last word about every job.
    pub fn jobs(&self) -> &BTreeMap<JobId, JobStatus> {
        &self.told
    }

    /// Keeps the last word about a job; others' jobs make room for own ones, and ended ones for the rest.
    fn keep(&mut self, status: JobStatus) -> bool {
        if self.told.len() >= JOBS_MAX && !self.told.contains_key(&status.id) {
            let foreign = |id: &JobId| !self.own.contains_key(id);
            let ended = self.told.iter().find(|(id, known)| foreign(id) && known.phase.is_final());
            let any = || self.told.iter().find(|(id, _)| foreign(id)).filter(|_| !foreign(&status.id));
            let Some(room) = ended.or_else(any).map(|(id, _)| *id) else { return false };
            self.told.remove(&room);
        }
        self.told.insert(status.id, status);
        true
    }
}
