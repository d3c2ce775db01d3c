//! The bytes that are signed, pinned: whoever changes them makes every log and verifier before worthless.
//!
//! After a deliberate change, run with `SKEIN_BLESS=1` and say in the commit why. Must never be blessed to
//! make a red test green.

use proptest::prelude::*;
use skein_proto::ids::NetworkId;
use skein_proto::job::JobSpec;
use skein_proto::lease::{Acceptance, Lease, Receipt};
use skein_proto::offer::Offer;
use skein_proto::signed::{Envelope, Forged, Signed, Statement, decode, encode};

use crate::fixture;

/// Name and hexadecimal bytes of everything pinned; the signer of a kind is who signs it in life.
fn pinned() -> Vec<(&'static str, String)> {
    let network = fixture::network();
    vec![
        ("genesis", hex::encode(encode(&fixture::genesis()))),
        ("network-id", hex::encode(network.0)),
        ("offer", envelope(fixture::offer(), 2)),
        ("job", envelope(fixture::job(), 3)),
        ("serve-job", envelope(fixture::serve_job(2), 3)),
        ("job-id", hex::encode(Signed::new(fixture::job(), &network, &fixture::key(3)).digest().0)),
        ("lease", envelope(fixture::lease(), 1)),
        ("lease-id", hex::encode(fixture::lease().id().0)),
        ("receipt", envelope(fixture::receipt(), 2)),
        ("acceptance", envelope(fixture::acceptance(), 1)),
    ]
}

fn envelope<T: Statement>(statement: T, signer: u8) -> String {
    let signed = Signed::new(statement, &fixture::network(), &fixture::key(signer));
    hex::encode(encode(signed.envelope()))
}

#[test]
fn bytes_are_as_published() {
    let now: String = pinned().iter().map(|(name, bytes)| format!("{name} {bytes}\n")).collect();
    if std::env::var_os("SKEIN_BLESS").is_some() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/core/golden/statements.txt");
        std::fs::write(file, &now).unwrap();
    }
    let published = include_str!("golden/statements.txt");
    for (now, published) in now.lines().zip(published.lines()) {
        assert_eq!(now, published);
    }
    assert_eq!(now.lines().count(), published.lines().count());
}

#[test]
fn published_envelopes_verify() {
    let bytes = |name: &str| {
        let line = include_str!("golden/statements.txt")
            .lines()
            .find(|line| line.split(' ').next() == Some(name))
            .unwrap();
        hex::decode(line.split(' ').nth(1).unwrap()).unwrap()
    };
    opens::<Offer>(&bytes("offer"), &fixture::network()).unwrap();
    opens::<JobSpec>(&bytes("job"), &fixture::network()).unwrap();
    opens::<Lease>(&bytes("lease"), &fixture::network()).unwrap();
    opens::<Receipt>(&bytes("receipt"), &fixture::network()).unwrap();
    opens::<Acceptance>(&bytes("acceptance"), &fixture::network()).unwrap();
}

/// The format as its description in `signed.rs` says it, put together by hand.
#[test]
fn the_description_of_the_format_is_true() {
    let network = fixture::network();
    let acceptance = fixture::acceptance();
    let mut statement = Vec::new();
    statement.extend(acceptance.receipt.0);
    statement.extend(acceptance.lease.0);
    statement.extend(acceptance.agent.0);
    statement.extend(acceptance.units.0.to_le_bytes());
    statement.extend(acceptance.accepted_at.0.to_le_bytes());
    let mut signed = b"skein\0acceptance\0".to_vec();
    signed.extend(network.0);
    signed.extend(&statement);
    let key = fixture::key(1);
    let mut expected = statement;
    expected.extend(key.verifying_key().to_bytes());
    expected.extend(ed25519_dalek::Signer::sign(&key, &signed).to_bytes());
    assert_eq!(encode(Signed::new(acceptance, &network, &key).envelope()), expected);
}

#[derive(Debug)]
enum NotOpened {
    Undecodable,
    Forged(Forged),
}

fn opens<T: Statement>(bytes: &[u8], network: &NetworkId) -> Result<Signed<T>, NotOpened> {
    let envelope: Envelope<T> = decode(bytes).map_err(|_| NotOpened::Undecodable)?;
    envelope.open(network).map_err(NotOpened::Forged)
}

/// The same bytes as an offer, said to be of another kind.
#[derive(Debug, borsh::BorshSerialize, borsh::BorshDeserialize)]
struct Impostor(Offer);

impl Statement for Impostor {
    const KIND: &'static str = "impostor";
}

#[test]
fn a_signature_of_one_kind_is_none_of_another() {
    let network = fixture::network();
    let bytes = encode(Signed::new(fixture::offer(), &network, &fixture::key(2)).envelope());
    assert!(opens::<Offer>(&bytes, &network).is_ok());
    let taken = opens::<Impostor>(&bytes, &network);
    assert!(matches!(taken, Err(NotOpened::Forged(Forged::BadSignature { kind: "impostor", .. }))));
}

#[test]
fn a_signature_for_one_network_is_none_for_another() {
    let bytes = encode(Signed::new(fixture::offer(), &fixture::network(), &fixture::key(2)).envelope());
    let mut genesis = fixture::genesis();
    genesis.started_at_ms += 1;
    let taken = opens::<Offer>(&bytes, &genesis.network_id());
    assert!(matches!(taken, Err(NotOpened::Forged(Forged::BadSignature { .. }))));
}

#[test]
fn trailing_and_missing_bytes_are_refused() {
    let mut bytes = encode(Signed::new(fixture::receipt(), &fixture::network(), &fixture::key(2)).envelope());
    bytes.push(0);
    assert!(decode::<Envelope<Receipt>>(&bytes).is_err());
    bytes.truncate(bytes.len() - 2);
    assert!(decode::<Envelope<Receipt>>(&bytes).is_err());
}

#[test]
fn a_key_of_small_order_signs_nothing() {
    // The neutral point as key, and R = neutral, s = 0: plain verification takes this for any message.
    let mut bytes = encode(&fixture::offer());
    let mut neutral = [0; 32];
    neutral[0] = 1;
    bytes.extend(neutral);
    bytes.extend(neutral);
    bytes.extend([0; 32]);
    assert!(matches!(opens::<Offer>(&bytes, &fixture::network()), Err(NotOpened::Forged(_))));
}

fn flipped_bit_is_seen<T: Statement>(statement: T, signer: u8, place: prop::sample::Index, bit: u8) {
    let network = fixture::network();
    let mut bytes = encode(Signed::new(statement, &network, &fixture::key(signer)).envelope());
    let place = place.index(bytes.len());
    bytes[place] ^= 1 << bit;
    assert!(opens::<T>(&bytes, &network).is_err(), "byte {place} bit {bit}");
}

proptest! {
    // Signatures are slow in a debug build.
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 16 } else { 512 }))]

    #[test]
    fn any_flipped_bit_is_seen(place in any::<prop::sample::Index>(), bit in 0u8..8) {
        flipped_bit_is_seen(fixture::offer(), 2, place, bit);
        flipped_bit_is_seen(fixture::job(), 3, place, bit);
        flipped_bit_is_seen(fixture::lease(), 1, place, bit);
        flipped_bit_is_seen(fixture::receipt(), 2, place, bit);
        flipped_bit_is_seen(fixture::acceptance(), 1, place, bit);
    }
}
