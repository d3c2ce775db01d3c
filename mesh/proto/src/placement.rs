//! Where the stages of a pipeline go: which agents' workers, in which order, with how many layers each.
//!
//! What counts is the time of one token once around the ring (the owner, every stage in turn, the owner),
//! and the time at the slowest stage, for which the token behind it must wait: their sum is made as small as
//! it can be, within everybody's memory. A token's time at a stage is linear in its layers, so for given
//! workers the best split is found by filling the fastest first, and for given ends the best order is the
//! shortest path. Exact for up to [`EXACT_WORKERS_MAX`] workers; among more, the likeliest are looked at
//! first. Integers only, so that every coordinator decides alike. Must never know leases or time.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use crate::ids::{NodeId, WorkerId};
use crate::job::{ModelSize, Requires, ServeSpec};
use crate::limits::{EXACT_WORKERS_MAX, LAYER_OVERHEAD_NS, STAGES_MAX};
use crate::links::Links;
use crate::message::bounded_reason;
use crate::offer::Offer;
use crate::signed::Signed;

/// A worker as a plan sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hand {
    /// Who.
    pub worker: WorkerId,
    /// How fast it multiplies, in MFLOP/s.
    pub matrix_mflops: u64,
    /// How fast it reads its memory, in MB/s.
    pub memory_mbps: u64,
    /// Memory that is promised to no stage yet.
    pub memory_bytes: u64,
    /// Whether it is a GPU.
    pub gpu: bool,
}

/// A stage's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seat {
    /// Who holds it.
    pub worker: WorkerId,
    /// First layer.
    pub start: u16,
    /// One past the last layer.
    pub end: u16,
}

/// Why a model cannot be placed, for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NoRoom(String);

impl Hand {
    /// The workers in `offer` that take work.
    pub fn all_of(offer: &Signed<Offer>) -> impl Iterator<Item = Self> + '_ {
        let node = offer.signer();
        let open = (0..).zip(&offer.statement().workers).filter(|(_, worker)| worker.open);
        open.map(move |(index, worker)| Self {
            worker: WorkerId { node, index },
            matrix_mflops: worker.matrix_mflops,
            memory_mbps: worker.memory_mbps,
            memory_bytes: worker.memory_bytes,
            gpu: worker.has_gpu(),
        })
    }

    /// Whether it offers, with all its memory, what a job requires.
    pub fn fulfils(&self, requires: Requires) -> bool {
        self.memory_bytes >= requires.memory_bytes && (self.gpu || !requires.gpu)
    }

    /// The time in which it reads so many bytes and computes with so many weights.
    fn part_ns(&self, bytes: u64, weights: u64) -> u64 {
        let read = bytes.saturating_mul(1_000) / self.memory_mbps.max(1);
        let multiply = weights.saturating_mul(2_000) / self.matrix_mflops.max(1);
        read.max(multiply)
    }

    /// The time of one token in a stage of so many layers.
    fn stage_ns(&self, size: &ModelSize, start: u16, end: u16) -> u64 {
        let head = if end == size.layers { self.head_ns(size) } else { 0 };
        self.layer_ns(size).saturating_mul(u64::from(end.saturating_sub(start))).saturating_add(head)
    }

    fn layer_ns(&self, size: &ModelSize) -> u64 {
        self.part_ns(size.layer_bytes, size.layer_weights).saturating_add(LAYER_OVERHEAD_NS)
    }

    fn head_ns(&self, size: &ModelSize) -> u64 {
        self.part_ns(size.head_bytes, size.head_weights)
    }
}

/// `3 agents`, or `5 workers on 3 agents` where some of them have several.
pub(crate) fn crowd(hands: &[Hand]) -> String {
    let agents = hands.iter().map(|hand| hand.worker.node).collect::<BTreeSet<_>>().len();
    let noun = if agents == 1 { "agent" } else { "agents" };
    if agents == hands.len() {
        format!("{agents} {noun}")
    } else {
        format!("{} workers on {agents} {noun}", hands.len())
    }
}

/// Why none of these may work on a job, with the numbers.
pub(crate) fn unfulfilled(requires: Requires, hands: &[Hand]) -> String {
    let megabytes = |bytes: u64| bytes.div_ceil(1_000_000);
    let most = hands.iter().map(|hand| hand.memory_bytes).max().unwrap_or(0);
    let gpus = hands.iter().filter(|hand| hand.gpu);
    let most_on_gpu = gpus.clone().map(|hand| hand.memory_bytes).max();
    let wanted = match requires {
        Requires { memory_bytes: 0, .. } => "a GPU".to_owned(),
        Requires { memory_bytes, gpu: true } => format!("a GPU with {} MB", megabytes(memory_bytes)),
        Requires { memory_bytes, gpu: false } => format!("{} MB", megabytes(memory_bytes)),
    };
    let on_gpu = match (requires.gpu, most_on_gpu) {
        (false, _) => String::new(),
        (true, None) => ", none of them has a GPU".to_owned(),
        (true, Some(most)) => {
            format!(", {} of them have a GPU, the largest with {} MB", gpus.count(), megabytes(most))
        }
    };
    bounded_reason(&format!(
        "the job requires {wanted}, which nobody offers: of {} the largest offers {} MB{on_gpu}\nhint: require less in [requires], or start an agent that has it",
        crowd(hands),
        megabytes(most)
    ))
}

/// Seats for all layers, in order: exactly as many as the job demands, where there are so many workers;
/// otherwise as few as possible. No worker gets two.
///
/// # Errors
/// [`NoRoom`] says how much memory is missing.
pub fn place(spec: &ServeSpec, owner: NodeId, hands: &[Hand], links: &Links) -> Result<Vec<Seat>, NoRoom> {
    let all: Vec<Candidate> = hands.iter().filter_map(|hand| Candidate::new(spec, *hand)).collect();
    let counts = match spec.stages {
        Some(stages) if usize::from(stages) <= hands.len() => usize::from(stages)..=usize::from(stages),
        Some(_) | None => 1..=all.len().min(usize::from(spec.size.layers.min(STAGES_MAX))),
    };
    for count in counts {
        if !may_hold(&all, count, spec.size.layers) {
            continue;
        }
        let likeliest = likeliest(&all, count, spec.size.layers, owner, links);
        let found = best(&likeliest, count, spec.size.layers, owner, links)
            .or_else(|| largest(&all, count, spec.size.layers, owner, links));
        if let Some(chain) = found {
            return Ok(seats(&chain));
        }
    }
    Err(no_room(spec, hands))
}

/// The worker for a seat that lost its own, while the other `seats` stay as they are: again the least time of
/// a token, on workers that have the memory. Those in `avoid` come last, whatever their time.
pub fn substitute(
    spec: &ServeSpec,
    owner: NodeId,
    seats: &[Seat],
    index: usize,
    hands: &[Hand],
    avoid: &BTreeSet<WorkerId>,
    links: &Links,
) -> Option<WorkerId> {
    let lost = seats.get(index)?;
    let neighbour =
        |place: Option<usize>| place.and_then(|at| seats.get(at)).map_or(owner, |seat| seat.worker.node);
    let (before, after) = (neighbour(index.checked_sub(1)), neighbour(Some(index + 1)));
    let cost = |hand: &Hand| {
        let time = |seat: &Seat| hand.stage_ns(&spec.size, seat.start, seat.end);
        let others = seats.iter().enumerate().filter(|(at, seat)| *at != index && seat.worker == hand.worker);
        // What it holds already competes for the same device.
        let busy = others.map(|(_, seat)| time(seat)).fold(time(lost), u64::saturating_add);
        let node = hand.worker.node;
        let ways = links.between_ns(before, node).saturating_add(links.between_ns(node, after));
        time(lost).saturating_add(ways).saturating_add(busy)
    };
    let fits = |hand: &&Hand| spec.memory_bytes(lost.start, lost.end) <= hand.memory_bytes;
    let best =
        hands.iter().filter(fits).min_by_key(|hand| (avoid.contains(&hand.worker), cost(hand), hand.worker));
    best.map(|hand| hand.worker)
}

/// A worker that can hold at least one layer.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    worker: WorkerId,
    layer_ns: u64,
    head_ns: u64,
    /// Layers for which it has memory: in the middle, as first, as last, and as both.
    layers_max: [u16; 4],
}

/// Workers in the order of the pipeline, and the layers of each.
type Chain = Vec<(Candidate, u16)>;

impl Candidate {
    fn new(spec: &ServeSpec, hand: Hand) -> Option<Self> {
        let layers_max = [(false, false), (true, false), (false, true), (true, true)]
            .map(|(first, last)| spec.layers_within(hand.memory_bytes, first, last));
        let size = &spec.size;
        let candidate = Self {
            worker: hand.worker,
            layer_ns: hand.layer_ns(size),
            head_ns: hand.head_ns(size),
            layers_max,
        };
        (layers_max[0] > 0).then_some(candidate)
    }

    /// Layers for which it has memory at place `at` of `count`.
    fn layers_max(&self, at: usize, count: usize) -> u16 {
        self.layers_max[usize::from(at == 0) + 2 * usize::from(at + 1 == count)]
    }

    /// What each of its tokens costs there besides its layers.
    fn fixed_ns(&self, at: usize, count: usize) -> u64 {
        if at + 1 == count { self.head_ns } else { 0 }
    }
}

/// Whether the `count` largest could hold all layers, were it not for embedding and head.
fn may_hold(all: &[Candidate], count: usize, layers: u16) -> bool {
    let mut most: Vec<u16> = all.iter().map(|candidate| candidate.layers_max[0]).collect();
    most.sort_unstable_by_key(|&most| Reverse(most));
    let held: u64 = most.iter().take(count).map(|&most| u64::from(most)).sum();
    most.len() >= count && count <= usize::from(layers) && held >= u64::from(layers)
}

/// Those that are worth trying in all orders: first who has memory for an equal share, then who is fast
/// and near.
fn likeliest(all: &[Candidate], count: usize, layers: u16, owner: NodeId, links: &Links) -> Vec<Candidate> {
    let share = usize::from(layers).div_ceil(count);
    let mut order = all.to_vec();
    order.sort_by_key(|candidate| {
        let most = if count == 1 { candidate.layers_max[3] } else { candidate.layers_max[0] };
        let time = candidate.layer_ns.saturating_mul(share as u64).saturating_add(candidate.head_ns);
        let time = time.saturating_add(links.between_ns(owner, candidate.worker.node));
        (usize::from(most) < share, time, candidate.worker)
    });
    order.truncate(EXACT_WORKERS_MAX);
    order
}

/// The best chain of `count` of these few workers, by looking at all that could be better than the best so
/// far.
fn best(few: &[Candidate], count: usize, layers: u16, owner: NodeId, links: &Links) -> Option<Chain> {
    if few.len() < count {
        return None;
    }
    let paths = Paths::new(few, owner, links);
    let mut rough = Vec::new();
    for (first, last, members) in paths.ends(count) {
        let path_ns = paths.shortest_ns(first, last, members);
        // The order between the ends does not matter to the split.
        let chain = arranged(few, first, last, members);
        if let Some(least_ns) = fill(&chain, layers, u64::MAX).map(|split| lap_ns(&chain, &split)) {
            // The slowest stage is no faster than the mean one.
            let bound_ns = path_ns.saturating_add(least_ns).saturating_add(least_ns / count as u64);
            rough.push((bound_ns, path_ns, first, last, members));
        }
    }
    rough.sort_unstable();
    let mut best: Option<(u64, usize, usize, u32, Vec<u16>)> = None;
    for (bound_ns, path_ns, first, last, members) in rough {
        if best.as_ref().is_some_and(|best| best.0 <= bound_ns) {
            break;
        }
        let Some((split_ns, layers)) = split(&arranged(few, first, last, members), layers) else { continue };
        let cost_ns = path_ns.saturating_add(split_ns);
        if best.as_ref().is_none_or(|best| cost_ns < best.0) {
            best = Some((cost_ns, first, last, members, layers));
        }
    }
    let (_, first, last, members, layers) = best?;
    let split: Vec<(WorkerId, u16)> =
        arranged(few, first, last, members).iter().map(|candidate| candidate.worker).zip(layers).collect();
    let order = paths.order(first, last, members);
    let layers_of = |worker| split.iter().find(|(of, _)| *of == worker).map_or(0, |(_, layers)| *layers);
    Some(order.into_iter().map(|at| (few[at], layers_of(few[at].worker))).collect())
}

/// A chain of the `count` workers with most memory, each next to its nearest.
fn largest(all: &[Candidate], count: usize, layers: u16, owner: NodeId, links: &Links) -> Option<Chain> {
    let mut left = all.to_vec();
    left.sort_by_key(|candidate| (Reverse(candidate.layers_max[0]), candidate.layer_ns, candidate.worker));
    left.truncate(count);
    let mut chain: Vec<Candidate> = Vec::new();
    while !left.is_empty() {
        let from = chain.last().map_or(owner, |candidate| candidate.worker.node);
        let nearest = (0..left.len()).min_by_key(|&at| links.between_ns(from, left[at].worker.node))?;
        chain.push(left.remove(nearest));
    }
    let (_, layers) = split(&chain, layers)?;
    Some(chain.into_iter().zip(layers).collect())
}

/// The split of `layers` over a chain with the least sum of a token's lap and its slowest stage, and that sum.
fn split(chain: &[Candidate], layers: u16) -> Option<(u64, Vec<u16>)> {
    let count = chain.len();
    let least_ns = lap_ns(chain, &fill(chain, layers, u64::MAX)?);
    let mut slowest_ns = BTreeSet::new();
    for (at, candidate) in chain.iter().enumerate() {
        let stage_ns = |layers: u16| {
            let fixed_ns = candidate.fixed_ns(at, count);
            candidate.layer_ns.saturating_mul(u64::from(layers)).saturating_add(fixed_ns)
        };
        let stages_ns = (1..=candidate.layers_max(at, count).min(layers)).map(stage_ns);
        slowest_ns.extend(stages_ns.filter(|stage_ns| *stage_ns >= least_ns / count as u64));
    }
    let mut best: Option<(u64, Vec<u16>)> = None;
    for slowest_ns in slowest_ns {
        // A slower slowest stage could only shorten the lap, and not below its least.
        if best.as_ref().is_some_and(|best| best.0 <= least_ns.saturating_add(slowest_ns)) {
            break;
        }
        let Some(split) = fill(chain, layers, slowest_ns) else { continue };
        let cost_ns = lap_ns(chain, &split).saturating_add(slowest_ns);
        if best.as_ref().is_none_or(|best| cost_ns < best.0) {
            best = Some((cost_ns, split));
        }
    }
    best
}

/// The split with the shortest lap in which no stage takes longer than `slowest_ns`: at least one layer each,
/// the rest to the fastest as far as memory and that bound allow.
fn fill(chain: &[Candidate], layers: u16, slowest_ns: u64) -> Option<Vec<u16>> {
    let count = chain.len();
    let most = |at: usize| {
        let candidate = &chain[at];
        let time_ns = slowest_ns.checked_sub(candidate.fixed_ns(at, count))?;
        let in_time = u16::try_from(time_ns / candidate.layer_ns.max(1)).unwrap_or(u16::MAX);
        Some(in_time.min(candidate.layers_max(at, count))).filter(|most| *most > 0)
    };
    let most: Vec<u16> = (0..count).map(most).collect::<Option<_>>()?;
    let mut split = vec![1; count];
    let mut left = layers.checked_sub(u16::try_from(count).ok()?)?;
    let mut fastest: Vec<usize> = (0..count).collect();
    fastest.sort_by_key(|&at| chain[at].layer_ns);
    for at in fastest {
        let more = (most[at] - 1).min(left);
        split[at] += more;
        left -= more;
    }
    (left == 0).then_some(split)
}

/// A token's time at all stages.
fn lap_ns(chain: &[Candidate], split: &[u16]) -> u64 {
    let stages = chain
        .iter()
        .zip(split)
        .map(|(candidate, &layers)| candidate.layer_ns.saturating_mul(u64::from(layers)));
    let head_ns = chain.last().map_or(0, |candidate| candidate.head_ns);
    stages.fold(head_ns, u64::saturating_add)
}

/// The members of a set with `first` at the beginning and `last` at the end.
fn arranged(few: &[Candidate], first: usize, last: usize, members: u32) -> Vec<Candidate> {
    let between = (0..few.len()).filter(|&at| members & (1 << at) != 0 && at != first && at != last);
    let end = (last != first).then_some(last);
    std::iter::once(first).chain(between).chain(end).map(|at| few[at]).collect()
}

fn seats(chain: &[(Candidate, u16)]) -> Vec<Seat> {
    let mut start = 0;
    let seat = |(candidate, layers): &(Candidate, u16)| {
        let seat = Seat { worker: candidate.worker, start, end: start + layers };
        start = seat.end;
        seat
    };
    chain.iter().map(seat).collect()
}

/// Shortest ways from the owner through a set of workers and back, for every set and every two ends (Held and
/// Karp).
struct Paths {
    workers: usize,
    /// Way between two workers.
    between_ns: Vec<Vec<u64>>,
    /// Way between the owner and each.
    home_ns: Vec<u64>,
    /// By first worker, set, and last worker.
    to_ns: Vec<u64>,
}

impl Paths {
    fn new(few: &[Candidate], owner: NodeId, links: &Links) -> Self {
        let workers = few.len();
        let from = |one: NodeId| few.iter().map(|other| links.between_ns(one, other.worker.node)).collect();
        let mut paths = Self {
            workers,
            between_ns: few.iter().map(|one| from(one.worker.node)).collect(),
            home_ns: from(owner),
            to_ns: vec![u64::MAX; (workers * workers) << workers],
        };
        for first in 0..workers {
            let start = paths.place(first, 1 << first, first);
            paths.to_ns[start] = paths.home_ns[first];
            for members in 1..1u32 << workers {
                for last in (0..workers).filter(|last| members & (1 << last) != 0) {
                    let so_far = paths.to_ns[paths.place(first, members, last)];
                    if so_far == u64::MAX {
                        continue;
                    }
                    for next in (0..workers).filter(|next| members & (1 << next) == 0) {
                        let to = paths.place(first, members | 1 << next, next);
                        let way = so_far.saturating_add(paths.between_ns[last][next]);
                        paths.to_ns[to] = paths.to_ns[to].min(way);
                    }
                }
            }
        }
        paths
    }

    fn place(&self, first: usize, members: u32, last: usize) -> usize {
        ((first << self.workers) + members as usize) * self.workers + last
    }

    /// Every set of `count` workers with every choice of ends.
    fn ends(&self, count: usize) -> Vec<(usize, usize, u32)> {
        let sets = (1..1u32 << self.workers).filter(|members| members.count_ones() as usize == count);
        let inside = |members: u32| (0..self.workers).filter(move |at| members & (1 << at) != 0);
        let pairs = sets.flat_map(|members| {
            inside(members).flat_map(move |first| inside(members).map(move |last| (first, last, members)))
        });
        pairs.filter(|(first, last, _)| (first == last) == (count == 1)).collect()
    }

    /// The ring from the owner over `first`, all other `members` and `last`, and back.
    fn shortest_ns(&self, first: usize, last: usize, members: u32) -> u64 {
        self.to_ns[self.place(first, members, last)].saturating_add(self.home_ns[last])
    }

    /// The workers in the order of that ring.
    fn order(&self, first: usize, last: usize, members: u32) -> Vec<usize> {
        let (mut order, mut at, mut left) = (vec![last], last, members);
        while at != first {
            let way = self.to_ns[self.place(first, left, at)];
            left &= !(1 << at);
            let leads = |before: &usize| {
                let to = self.to_ns[self.place(first, left, *before)];
                left & (1 << before) != 0
                    && to != u64::MAX
                    && to.saturating_add(self.between_ns[*before][at]) == way
            };
            let Some(before) = (0..self.workers).find(leads) else { break };
            order.push(before);
            at = before;
        }
        order.reverse();
        order
    }
}

fn no_room(spec: &ServeSpec, hands: &[Hand]) -> NoRoom {
    let megabytes = |bytes: u64| bytes.div_ceil(1_000_000);
    let needed = spec.memory_bytes(0, spec.size.layers);
    let offered = hands.iter().fold(0, |sum: u64, hand| sum.saturating_add(hand.memory_bytes));
    let demand = format!(
        "the model with {} sessions of {} tokens takes {} MB of memory; {} have {} MB free",
        spec.sessions,
        spec.context,
        megabytes(needed),
        crowd(hands),
        megabytes(offered)
    );
    let missing = needed.saturating_sub(offered);
    NoRoom(if missing > 0 {
        format!("{demand}: {} MB are missing", megabytes(missing))
    } else {
        let layer =
            megabytes(spec.memory_bytes(0, 1).max(spec.memory_bytes(spec.size.layers - 1, spec.size.layers)));
        let stages = spec.stages.map_or(String::new(), |stages| format!(" in {stages} stages"));
        format!(
            "{demand}, but not in parts that hold it{stages}: the largest layer takes {layer} MB with its end"
        )
    })
}
