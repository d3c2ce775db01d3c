//! Groups: workers, of one agent or several, that together train a model which none of them could hold alone, as if they
//! were one.
//!
//! Each member holds some of the layers; sequences go forward through all of them and their gradients come back (1F1B,
//! Narayanan et al. 2019). Where the layers go is decided by the placement that serving uses, with training's sums.

use std::ops::Range;

use borsh::{BorshDeserialize, BorshSerialize};

use crate::cost::Fit;
use crate::ids::{NodeId, WorkerId};
use crate::job::{BadJob, Method, ModelSize, ServeSpec, TrainSpec, check};
use crate::limits::{GROUP_ROWS_BYTES_MAX, SLICES_MAX, STAGES_MAX};
use crate::links::Links;
use crate::placement::{Hand, Seat, place};

/// One of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Member {
    /// Who.
    pub node: NodeId,
    /// Which of its workers.
    pub worker: u8,
    /// First layer.
    pub start: u16,
    /// One past the last layer.
    pub end: u16,
}

impl Member {
    /// Who.
    pub fn worker_id(&self) -> WorkerId {
        WorkerId { node: self.node, index: self.worker }
    }
}

/// A group, as one of its members is told of it.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Group {
    /// Tells it from other groups of the same job.
    pub number: u64,
    /// In the order of their layers.
    pub members: Vec<Member>,
    /// Which of them is meant.
    pub stage: u16,
    /// Sequences that travel together.
    pub sequences: u32,
}

impl Group {
    /// The layers of the member that is meant.
    pub fn layers(&self) -> Range<u16> {
        self.members.get(usize::from(self.stage)).map_or(0..0, |member| member.start..member.end)
    }

    /// Sequences between their way forward and their way back at this member, in units of `sequences`.
    pub fn in_flight(&self) -> u16 {
        in_flight(self.members.len(), usize::from(self.stage))
    }

    /// Whether this is the member with the last layers.
    pub fn is_last(&self) -> bool {
        usize::from(self.stage) + 1 == self.members.len()
    }

    /// Checks every field that a coordinator may have chosen.
    ///
    /// # Errors
    /// [`BadJob`] names the first field that is out of range.
    pub fn validate(&self, spec: &TrainSpec) -> Result<(), BadJob> {
        let count = self.members.len();
        check((1..=usize::from(STAGES_MAX)).contains(&count), "members", count, "1 to 128 workers")?;
        check(usize::from(self.stage) < count, "stage", self.stage, "below the number of members")?;
        let mut ends = self.members.iter().map(|member| member.end);
        let starts = std::iter::once(0).chain(ends.clone());
        let joined = self.members.iter().zip(starts).all(|(m, start)| m.start == start && m.start < m.end);
        let whole = joined && ends.next_back() == Some(spec.size.layers);
        check(whole, "layers", count, "the members hold all layers, each once, in order")?;
        let worker = |at: usize| self.members.get(at).map(Member::worker_id);
        let twice = (0..count).any(|at| (0..at).any(|before| worker(before) == worker(at)));
        check(!twice, "members", count, "no worker twice")?;
        let bytes = spec.rows_bytes().saturating_mul(self.sequences.into());
        let fits = self.sequences > 0 && bytes <= GROUP_ROWS_BYTES_MAX;
        check(fits, "sequences", self.sequences, "at least 1, and no more than a message carries")
    }
}

/// Of `count` stages, stage `at` starts so many micro-batches before the first of them comes back.
fn in_flight(count: usize, at: usize) -> u16 {
    u16::try_from(count.saturating_sub(at)).unwrap_or(u16::MAX)
}

/// Who trains a slice: one worker, or several as one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Team {
    seats: Vec<Seat>,
    sequences: u32,
}

impl Team {
    fn alone(worker: WorkerId, spec: &TrainSpec) -> Self {
        Self { seats: vec![Seat { worker, start: 0, end: spec.size.layers }], sequences: 1 }
    }

    /// By whose pace the team's is known.
    pub(crate) fn leader(&self) -> Option<WorkerId> {
        self.seats.first().map(|seat| seat.worker)
    }

    /// Each member, and the group as it is told of it.
    pub(crate) fn members(&self, number: u64) -> Vec<(WorkerId, Group)> {
        let member = |seat: &Seat| {
            let WorkerId { node, index } = seat.worker;
            Member { node, worker: index, start: seat.start, end: seat.end }
        };
        let members: Vec<Member> = self.seats.iter().map(member).collect();
        let told = |(stage, seat): (u16, &Seat)| {
            let group = Group { number, members: members.clone(), stage, sequences: self.sequences };
            (seat.worker, group)
        };
        (0..).zip(&self.seats).map(told).collect()
    }
}

/// Every worker that has the memory alone, and of the others as many groups as they can form; no more than a round has
/// slices for.
pub(crate) fn teams(spec: &TrainSpec, owner: NodeId, hands: &[Hand], links: &Links) -> Vec<Team> {
    let able = |hand: &&Hand| hand.memory_bytes >= spec.memory_bytes();
    let alone = hands.iter().filter(able).take(SLICES_MAX).map(|hand| Team::alone(hand.worker, spec));
    let mut teams: Vec<Team> = alone.collect();
    let mut rest: Vec<Hand> = hands.iter().filter(|hand| !able(hand)).copied().collect();
    if !may_be_split(spec) {
        return teams;
    }
    // Each member gives a part, and the parts of all slices have a bound.
    let mut parts = teams.len();
    while let Some(team) =
        group(spec, owner, &rest, links).filter(|team| parts + team.seats.len() <= SLICES_MAX)
    {
        rest.retain(|hand| team.seats.iter().all(|seat| seat.worker != hand.worker));
        parts += team.seats.len();
        teams.push(team);
    }
    teams
}

/// Whether the model can be split among workers at all. The gradients of a table that two members hold would have to be
/// added up, which nobody does yet.
pub(crate) fn may_be_split(spec: &TrainSpec) -> bool {
    let twice = spec.tied() && matches!(spec.method, Method::Full);
    spec.size.layers > 1 && !twice && spec.rows_bytes() <= GROUP_ROWS_BYTES_MAX
}

/// The best group among these workers.
fn group(spec: &TrainSpec, owner: NodeId, hands: &[Hand], links: &Links) -> Option<Team> {
    let (kept, at_work) = spec.work_bytes();
    let (layer_bytes, embedding_bytes, head_bytes) = spec.part_bytes();
    let hands: Vec<Hand> = hands
        .iter()
        .map(|hand| Hand { memory_bytes: hand.memory_bytes.saturating_sub(at_work), ..*hand })
        .collect();
    let mut stages = 2;
    // How many sequences are in flight depends on the number of stages, and that on the memory they take.
    loop {
        let size = ModelSize {
            layers: spec.size.layers,
            width: spec.size.width,
            layer_weights: spec.multiplied(&(1..2)).max(1),
            head_weights: spec.table(),
            layer_bytes: layer_bytes.saturating_add(kept.saturating_mul(stages as u64)),
            embedding_bytes,
            head_bytes,
            tied: false,
            cache_bytes_per_token: 0,
        };
        let like = ServeSpec { model: spec.model, size, context: 1, sessions: 1, stages: None };
        let seats = place(&like, owner, &hands, links).ok().filter(|seats| seats.len() > 1)?;
        if seats.len() <= stages {
            let sequences = sequences(spec, &seats, &hands, at_work)?;
            return Some(Team { seats, sequences });
        }
        stages = seats.len();
    }
}

/// Sequences of a micro-batch: few enough that all stages work most of the time (a lap of K stages over M micro-batches
/// idles (K - 1) / (M + K - 1) of it), and that each has the memory.
fn sequences(spec: &TrainSpec, seats: &[Seat], hands: &[Hand], at_work: u64) -> Option<u32> {
    let count = seats.len();
    let by_rows = GROUP_ROWS_BYTES_MAX / spec.rows_bytes().max(1);
    let wanted = (u64::from(spec.batch) / (4 * count as u64)).clamp(1, by_rows.max(1));
    let mut least = u32::try_from(wanted).unwrap_or(u32::MAX);
    for (at, seat) in seats.iter().enumerate() {
        let hand = hands.iter().find(|hand| hand.worker == seat.worker)?;
        let memory = hand.memory_bytes.saturating_add(at_work);
        let Fit { at_once, .. } = spec.fit(&(seat.start..seat.end), least, in_flight(count, at), memory)?;
        least = least.min(at_once);
    }
    Some(least)
}
