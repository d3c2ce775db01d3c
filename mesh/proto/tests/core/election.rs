//! The rules of succession, one test each. Must never use a key: ids are enough here.

use std::collections::BTreeSet;

use skein_proto::election::{Election, Reign};
use skein_proto::ids::{Millis, NetworkId, NodeId, Term};
use skein_proto::limits::{NEWCOMER_MS, SUCCESSION_MS, TERM_JUMP_MAX, VACANCY_MS};

const NETWORK: NetworkId = NetworkId([7; 32]);

/// Nodes in the order of succession.
fn line() -> [NodeId; 4] {
    let mut line = [1, 2, 3, 4].map(|number| NodeId([number; 32]));
    line.sort_by_key(|node| *blake3::hash(&[NETWORK.0, node.0].concat()).as_bytes());
    line
}

fn reign(term: u64, coordinator: NodeId) -> Reign {
    Reign { term: Term(term), coordinator }
}

fn present(nodes: &[NodeId]) -> BTreeSet<NodeId> {
    nodes.iter().copied().collect()
}

/// `me`, obeying `reign`, which its coordinator claimed.
fn obeying(me: NodeId, reign: Reign) -> Election {
    let mut election = Election::new(me, NETWORK);
    assert!(election.heard(reign.coordinator, Some(reign)));
    election
}

#[test]
fn the_incumbent_stays_while_it_is_present() {
    let [first, second, third, _] = line();
    let mut election = obeying(first, reign(1, third));
    for now in (0..100_000).step_by(500) {
        assert!(!election.tick(Millis(now), &present(&[first, second, third])));
    }
    assert_eq!(election.reign(), Some(reign(1, third)));
}

#[test]
fn members_succeed_in_line_each_waiting_longer() {
    let [first, second, third, gone] = line();
    for (place, me) in [first, second, third].into_iter().enumerate() {
        let mut election = obeying(me, reign(4, gone));
        let members = present(&[first, second, third]);
        let due = VACANCY_MS + SUCCESSION_MS * place as u64;
        assert!(!election.tick(Millis(0), &members));
        assert!(!election.tick(Millis(due - 1), &members));
        assert!(election.tick(Millis(due), &members));
        assert_eq!(election.reign(), Some(reign(5, me)));
        assert!(election.in_office());
    }
}

#[test]
fn an_incumbent_that_returns_in_time_is_not_replaced() {
    let [first, _, _, incumbent] = line();
    let mut election = obeying(first, reign(4, incumbent));
    election.tick(Millis(0), &present(&[first]));
    assert!(!election.tick(Millis(400), &present(&[first, incumbent])));
    // The vacancy is counted anew.
    assert!(!election.tick(Millis(600), &present(&[first])));
    assert!(!election.tick(Millis(600 + VACANCY_MS - 1), &present(&[first])));
    assert!(election.tick(Millis(600 + VACANCY_MS), &present(&[first])));
}

#[test]
fn who_may_not_hold_office_does_not_take_it() {
    let [first, _, _, gone] = line();
    let mut election = obeying(first, reign(4, gone));
    assert!(election.tick(Millis(0), &present(&[])));
    assert_eq!(election.reign(), None);
    assert!(!election.tick(Millis(1_000_000), &present(&[])));
}

#[test]
fn a_higher_term_wins_and_a_lower_is_never_obeyed_again() {
    let [first, second, third, fourth] = line();
    let mut election = obeying(first, reign(4, second));
    assert!(!election.heard(third, Some(reign(3, third))));
    assert!(election.heard(third, Some(reign(5, third))));
    assert!(!election.heard(third, Some(reign(5, third))));
    // The coordinator leaves; one of a lower term is still not obeyed, not even in a vacancy.
    assert!(election.heard(third, None));
    assert_eq!(election.reign(), None);
    assert!(!election.heard(fourth, Some(reign(4, fourth))));
    assert!(election.heard(fourth, Some(reign(5, fourth))));
}

#[test]
fn at_equal_terms_the_first_in_line_wins() {
    let [first, second, third, me] = line();
    let mut election = obeying(me, reign(4, second));
    assert!(!election.heard(third, Some(reign(4, third))));
    assert!(election.heard(first, Some(reign(4, first))));
    assert_eq!(election.reign(), Some(reign(4, first)));
}

#[test]
fn hearsay_is_no_claim_but_raises_the_next_term() {
    let [first, second, third, _] = line();
    let mut election = Election::new(first, NETWORK);
    assert!(!election.heard(second, Some(reign(9, third))));
    assert_eq!(election.reign(), None);
    election.tick(Millis(0), &present(&[first]));
    election.tick(Millis(VACANCY_MS), &present(&[first]));
    assert_eq!(election.reign(), None, "a newcomer does not take office from somebody it has yet to hear");
    election.tick(Millis(VACANCY_MS + NEWCOMER_MS), &present(&[first]));
    assert_eq!(election.reign(), Some(reign(10, first)));
}

#[test]
fn no_vacancy_is_counted_before_one_may_hold_office() {
    let [first, second, ..] = line();
    let mut election = Election::new(first, NETWORK);
    election.tick(Millis(0), &present(&[second]));
    election.tick(Millis(10 * VACANCY_MS), &present(&[first, second]));
    assert_eq!(election.reign(), None, "the time before it had an offer does not count");
    election.tick(Millis(11 * VACANCY_MS), &present(&[first, second]));
    assert_eq!(election.reign(), Some(reign(1, first)));
}

#[test]
fn a_coordinator_that_obeys_another_or_none_or_less_has_stepped_down() {
    let [first, second, third, _] = line();
    for said in [None, Some(reign(9, third)), Some(reign(3, second))] {
        let mut election = obeying(first, reign(4, second));
        assert!(election.heard(second, said), "{said:?}");
        assert_eq!(election.reign(), None);
    }
    let mut election = obeying(first, reign(4, second));
    assert!(!election.heard(third, None));
    assert_eq!(election.reign(), Some(reign(4, second)));
}

#[test]
fn a_term_too_far_ahead_is_approached_and_then_believed() {
    let [first, second, third, _] = line();
    let far = 5 * TERM_JUMP_MAX;
    let mut election = obeying(first, reign(1, third));
    let mut heard = 0;
    while !election.heard(second, Some(reign(far, second))) {
        heard += 1;
        assert!(heard < 10, "an honest high term must be reached: a newcomer starts at zero");
    }
    assert!(heard >= 4);
}

#[test]
fn terms_end_without_a_panic() {
    let [first, second, ..] = line();
    let mut election = Election::new(first, NETWORK);
    election.heard(second, Some(reign(u64::MAX, second)));
    election.tick(Millis(u64::MAX - 10_000), &present(&[first]));
    election.tick(Millis(u64::MAX), &present(&[first]));
    assert!(election.in_office());
}
