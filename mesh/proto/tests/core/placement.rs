//! Placement against its definition: every way to place a small model, tried one by one.
//!
//! Must never share arithmetic with what it judges, beyond the memory that a job says it needs.

use std::collections::BTreeSet;

use proptest::prelude::*;
use skein_proto::ids::{NodeId, WorkerId};
use skein_proto::job::{ModelSize, ServeSpec};
use skein_proto::limits::{EXACT_WORKERS_MAX, LAYER_OVERHEAD_NS};
use skein_proto::links::Links;
use skein_proto::placement::{Hand, Seat, place, substitute};

use crate::fixture;

const OWNER: NodeId = NodeId([200; 32]);

fn node(number: usize) -> NodeId {
    NodeId([u8::try_from(number).unwrap(); 32])
}

/// Some workers, a model and the links between all of them.
#[derive(Clone, Debug)]
struct Case {
    spec: ServeSpec,
    hands: Vec<Hand>,
    links_us: Vec<u32>,
}

impl Case {
    fn links(&self) -> Links {
        let mut links = Links::default();
        let mut times = self.links_us.iter().cycle();
        let nodes: Vec<NodeId> = (0..self.hands.len()).map(node).chain([OWNER]).collect();
        for one in &nodes {
            let others = nodes.iter().filter(|other| *other > one);
            links.told(*one, others.map(|other| (*other, *times.next().unwrap())).collect());
        }
        links
    }

    /// A token's time in one stage.
    fn stage_ns(&self, seat: &Seat) -> u64 {
        let size = &self.spec.size;
        let hand = self.hands.iter().find(|hand| hand.worker == seat.worker).unwrap();
        let part = |bytes: u64, weights: u64| {
            (bytes * 1_000 / hand.memory_mbps).max(weights * 2_000 / hand.matrix_mflops)
        };
        let layer = part(size.layer_bytes, size.layer_weights) + LAYER_OVERHEAD_NS;
        let head = if seat.end == size.layers { part(size.head_bytes, size.head_weights) } else { 0 };
        layer * u64::from(seat.end - seat.start) + head
    }

    /// A token's lap over `seats`, and the slowest of them.
    fn cost(&self, seats: &[Seat]) -> u64 {
        let links = self.links();
        let stages: Vec<u64> = seats.iter().map(|seat| self.stage_ns(seat)).collect();
        let agents = seats.iter().map(|seat| seat.worker.node);
        let ring: Vec<NodeId> = [OWNER].into_iter().chain(agents).chain([OWNER]).collect();
        let ways: u64 = ring.windows(2).map(|pair| links.between_ns(pair[0], pair[1])).sum();
        stages.iter().sum::<u64>() + stages.iter().max().unwrap() + ways
    }

    fn fits(&self, seat: &Seat) -> bool {
        let hand = self.hands.iter().find(|hand| hand.worker == seat.worker).unwrap();
        self.spec.memory_bytes(seat.start, seat.end) <= hand.memory_bytes
    }

    /// The least cost over every order of `count` workers and every split, if any fits.
    fn least(&self, count: usize) -> Option<u64> {
        let mut least = None;
        let mut seats = Vec::new();
        self.each(count, 0, &mut seats, &mut |seats| {
            let cost = self.cost(seats);
            least = Some(least.map_or(cost, |least: u64| least.min(cost)));
        });
        least
    }

    fn each(&self, left: usize, start: u16, seats: &mut Vec<Seat>, found: &mut impl FnMut(&[Seat])) {
        let layers = self.spec.size.layers;
        if left == 0 {
            if start == layers {
                found(seats);
            }
            return;
        }
        for hand in &self.hands {
            if seats.iter().any(|seat| seat.worker == hand.worker) {
                continue;
            }
            for end in start + 1..=layers {
                let seat = Seat { worker: hand.worker, start, end };
                if self.fits(&seat) {
                    seats.push(seat);
                    self.each(left - 1, end, seats, found);
                    seats.pop();
                }
            }
        }
    }
}

/// So many workers, one, two or three to an agent.
fn cases(workers: std::ops::Range<usize>, layers: std::ops::Range<u16>) -> impl Strategy<Value = Case> {
    let hand = (1u64..40, 1u64..40, 0u64..60);
    let size = (layers, 1u64..8, 1u64..8, 1u64..6, any::<bool>());
    let hands = prop::collection::vec(hand, workers);
    let links_us = prop::collection::vec(0u32..80_000, 40);
    (size, hands, links_us, prop::option::of(1u16..5), 1usize..4).prop_map(
        |(size, hands, links_us, stages, rig)| {
            let (layers, layer, head, embedding, tied) = size;
            const MEGABYTE: u64 = 1_000_000;
            let size = ModelSize {
                layers,
                layer_weights: layer * 2 * MEGABYTE,
                head_weights: head * 2 * MEGABYTE,
                layer_bytes: layer * MEGABYTE,
                embedding_bytes: embedding * MEGABYTE,
                head_bytes: head * MEGABYTE,
                tied,
                cache_bytes_per_token: 500,
                ..fixture::serve(None).size
            };
            let stages = stages.map(|stages| stages.min(layers));
            let spec = ServeSpec { size, context: 1_000, sessions: 2, stages, ..fixture::serve(None) };
            let hand = |(at, (reads, multiplies, memory)): (usize, (u64, u64, u64))| Hand {
                worker: WorkerId { node: node(at / rig), index: u8::try_from(at % rig).unwrap() },
                matrix_mflops: multiplies * 2_000,
                memory_mbps: reads * 500,
                memory_bytes: memory * MEGABYTE,
                gpu: false,
            };
            Case { spec, hands: hands.into_iter().enumerate().map(hand).collect(), links_us }
        },
    )
}

/// What holds for every placement.
fn check(case: &Case, seats: &[Seat]) {
    let mut reached = 0;
    for seat in seats {
        assert_eq!(seat.start, reached);
        assert!(seat.end > seat.start);
        assert!(case.fits(seat), "{seat:?}");
        reached = seat.end;
    }
    assert_eq!(reached, case.spec.size.layers);
    let workers: BTreeSet<WorkerId> = seats.iter().map(|seat| seat.worker).collect();
    assert_eq!(workers.len(), seats.len(), "nobody has two");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 200 } else { 5_000 }))]

    #[test]
    fn no_placement_is_better(case in cases(1..5, 1..7)) {
        let placed = place(&case.spec, OWNER, &case.hands, &case.links());
        let demanded = case.spec.stages.map(usize::from).filter(|stages| *stages <= case.hands.len());
        let counts = demanded.map_or(1..=case.hands.len(), |stages| stages..=stages);
        let least = counts.into_iter().find_map(|count| Some((count, case.least(count)?)));
        prop_assert_eq!(placed.is_ok(), least.is_some());
        if let (Ok(seats), Some((count, least))) = (placed, least) {
            check(&case, &seats);
            prop_assert_eq!(seats.len(), count, "no more stages than must be");
            prop_assert_eq!(case.cost(&seats), least);
        }
    }

    #[test]
    fn every_layer_is_placed_once_and_within_memory(case in cases(1..25, 1..60)) {
        if let Ok(seats) = place(&case.spec, OWNER, &case.hands, &case.links()) {
            check(&case, &seats);
        }
    }

    #[test]
    fn no_substitute_is_better(case in cases(3..6, 3..7), avoided in 0usize..6) {
        let case = Case { spec: ServeSpec { stages: Some(3), ..case.spec.clone() }, ..case };
        let Ok(seats) = place(&case.spec, OWNER, &case.hands, &case.links()) else { return Ok(()) };
        let avoid = case.hands.get(avoided).map(|hand| hand.worker).into_iter().collect();
        let links = case.links();
        let hands: Vec<Hand> = case.hands.iter().filter(|hand| hand.worker != seats[1].worker).copied().collect();
        let key = |hand: &Hand| {
            let mine = Seat { worker: hand.worker, ..seats[1] };
            let other = [seats[0], seats[2]].into_iter().find(|seat| seat.worker == hand.worker);
            let at = hand.worker.node;
            let ways = links.between_ns(seats[0].worker.node, at) + links.between_ns(at, seats[2].worker.node);
            // Its own time, and that of all that its device has to do.
            let cost = 2 * case.stage_ns(&mine) + other.map_or(0, |seat| case.stage_ns(&seat)) + ways;
            (BTreeSet::contains(&avoid, &hand.worker), cost, hand.worker)
        };
        let fits = |hand: &&Hand| case.fits(&Seat { worker: hand.worker, ..seats[1] });
        let best = hands.iter().filter(fits).map(key).min().map(|(_, _, worker)| worker);
        prop_assert_eq!(substitute(&case.spec, OWNER, &seats, 1, &hands, &avoid, &links), best);
    }
}

fn first(number: usize) -> WorkerId {
    fixture::first(node(number))
}

fn hand(number: usize, reads_mbps: u64, memory_bytes: u64) -> Hand {
    Hand { worker: first(number), matrix_mflops: u64::MAX, memory_mbps: reads_mbps, memory_bytes, gpu: true }
}

/// Everybody is so far from everybody.
fn links(round_trip_us: u32) -> Links {
    let mut links = Links::default();
    let nodes: Vec<NodeId> = (0..30).map(node).chain([OWNER]).collect();
    for one in &nodes {
        links.told(*one, nodes.iter().map(|other| (*other, round_trip_us)).collect());
    }
    links
}

#[test]
fn the_fastest_that_holds_it_all_works_alone() {
    let spec = fixture::serve(None);
    let needed = spec.memory_bytes(0, 4);
    let hands =
        [hand(0, 900, needed), hand(1, 50_000, needed - 1), hand(2, 1_000, needed), hand(3, 800, u64::MAX)];
    let seats = place(&spec, OWNER, &hands, &links(100)).unwrap();
    assert_eq!(seats, [Seat { worker: first(2), start: 0, end: 4 }]);
    // A way that costs more than the speed gains.
    let mut far = links(100);
    far.told(OWNER, vec![(node(2), 400_000)]);
    assert_eq!(place(&spec, OWNER, &hands, &far).unwrap()[0].worker, first(0));
}

#[test]
fn equal_agents_get_equal_shares_and_slow_ones_get_less() {
    let spans = |speeds: [u64; 3], head_bytes: u64| {
        let size = ModelSize { layers: 12, head_bytes, head_weights: 8, ..fixture::serve(None).size };
        let spec = ServeSpec { size, ..fixture::serve(Some(3)) };
        let hands = [0, 1, 2].map(|at| hand(at, speeds[at], 1 << 40));
        let seats = place(&spec, OWNER, &hands, &links(100)).unwrap();
        seats.iter().map(|seat| seat.end - seat.start).collect::<Vec<_>>()
    };
    assert_eq!(spans([5_000; 3], 1), [4, 4, 4]);
    // The last has a head besides that takes as long as three layers.
    assert_eq!(spans([5_000; 3], 6_800_000), [5, 5, 2]);
    // One that is ten times slower gets as little as it can.
    assert_eq!(spans([5_000, 500, 5_000], 1).iter().min(), Some(&1));
}

#[test]
fn a_fleet_of_small_agents_holds_what_a_few_could_not() {
    let size = ModelSize { layers: 64, ..fixture::serve(None).size };
    let spec = ServeSpec { size, ..fixture::serve(None) };
    let three = spec.memory_bytes(0, 3);
    let hands: Vec<Hand> = (0..25).map(|number| hand(number, 1_000, three)).collect();
    let seats = place(&spec, OWNER, &hands, &links(100)).unwrap();
    assert!(seats.len() > EXACT_WORKERS_MAX, "{}", seats.len());
    assert!(place(&spec, OWNER, &hands[..12], &links(100)).is_err());
}

#[test]
fn among_many_the_fastest_that_have_the_memory_are_found() {
    let needed = fixture::serve(None).memory_bytes(0, 4);
    // More fast ones than are tried in every order, none of which holds it all; and two slow ones that do.
    let mut hands: Vec<Hand> = (0..20).map(|number| hand(number, 50_000, needed - 1)).collect();
    hands.extend([hand(20, 1_000, u64::MAX), hand(21, 2_000, needed)]);
    let seats = place(&fixture::serve(None), OWNER, &hands, &links(100)).unwrap();
    assert_eq!(seats, [Seat { worker: first(21), start: 0, end: 4 }]);
}

#[test]
fn what_is_missing_is_said() {
    let spec = fixture::serve(None);
    let needed = spec.memory_bytes(0, 4);
    let error =
        place(&spec, OWNER, &[hand(0, 900, needed - 5_000_000)], &links(100)).unwrap_err().to_string();
    assert!(error.ends_with("5 MB are missing"), "{error}");
    assert!(error.contains("4 sessions of 2048 tokens"), "{error}");
    // Enough in all, but in crumbs.
    let crumbs: Vec<Hand> = (0..30).map(|number| hand(number, 900, needed / 20)).collect();
    let error = place(&spec, OWNER, &crumbs, &links(100)).unwrap_err().to_string();
    assert!(error.contains("the largest layer takes"), "{error}");
    let error = place(&spec, OWNER, &[], &links(100)).unwrap_err().to_string();
    assert!(error.contains("0 agents"), "{error}");
}

#[test]
fn fewer_agents_than_stages_demanded_serve_with_as_few_as_possible() {
    let hands = [hand(0, 900, 1 << 40), hand(1, 900, 1 << 40)];
    assert_eq!(place(&fixture::serve(Some(3)), OWNER, &hands, &links(100)).unwrap().len(), 1);
    assert_eq!(place(&fixture::serve(Some(2)), OWNER, &hands, &links(100)).unwrap().len(), 2);
}

#[test]
fn a_lost_stage_goes_to_a_free_neighbour_rather_than_doubling_a_busy_one() {
    let spec = fixture::serve(Some(2));
    let seats = [Seat { worker: first(0), start: 0, end: 2 }, Seat { worker: first(1), start: 2, end: 4 }];
    let hands = [hand(0, 1_000, 1 << 40), hand(2, 1_000, 1 << 40)];
    let none = BTreeSet::new();
    let near = links(100);
    assert_eq!(substitute(&spec, OWNER, &seats, 1, &hands, &none, &near), Some(first(2)));
    // A far one is worse than one that does both.
    assert_eq!(substitute(&spec, OWNER, &seats, 1, &hands, &none, &Links::default()), Some(first(0)));
    let avoid = BTreeSet::from([first(0)]);
    assert_eq!(substitute(&spec, OWNER, &seats, 1, &hands, &avoid, &Links::default()), Some(first(2)));
    let small = [hand(0, 1_000, 10), hand(2, 1_000, 10)];
    assert_eq!(substitute(&spec, OWNER, &seats, 1, &small, &none, &near), None);
}
