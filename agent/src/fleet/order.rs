//! What an owner may ask of a rig, how it is signed, and what the rig holds it against.
//!
//! Pure: bytes and expectations in, an [`Ask`] or a refusal out. Must never accept an order that was meant for another
//! rig, came through another agent, or was given before.

use borsh::{BorshDeserialize, BorshSerialize};
use ed25519_dalek::SigningKey;
use serde::{Deserialize, Serialize};
use skein_proto::ids::{Digest, NetworkId, NodeId};
use skein_proto::signed::{Envelope, Signed, Statement, decode, encode};

use super::report::Report;

/// Bytes that a rig draws for one order, so that none can be given twice.
pub(crate) type Nonce = [u8; 32];

/// What a rig says first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(crate) struct Hello {
    pub(crate) nonce: Nonce,
    /// That it was told this owner's key; see [`proof`].
    pub(crate) proof: Digest,
}

/// Bytes of it.
pub(crate) const HELLO_BYTES: usize = 64;

/// What only somebody who was told the owner's public key can say, for this conversation alone. An owner's agent does
/// not show that key to who does not know it already, and gives orders to nobody else: so no stranger is taken for a
/// rig, and no rig is given the orders of another owner.
pub(crate) fn proof(owner: NodeId, nonce: &Nonce, rig: NodeId, agent: NodeId) -> Digest {
    Digest::of(&[b"skein fleet\0".as_slice(), &owner.0, nonce, &rig.0, &agent.0].concat())
}

/// What the owner signs.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(crate) struct Order {
    /// What the rig drew.
    pub(crate) nonce: Nonce,
    /// Who is to obey.
    pub(crate) rig: NodeId,
    /// Through whom the order is given.
    pub(crate) agent: NodeId,
    pub(crate) ask: Ask,
}

impl Statement for Order {
    const KIND: &'static str = "fleet order";
}

/// What is asked of a rig.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(crate) enum Ask {
    /// To tell how it is.
    Report,
    /// To stop working.
    Pause {
        /// On the GPU alone.
        gpu: bool,
        length: Length,
    },
    /// To go on.
    Resume,
    /// To take no new work.
    Finish,
    /// To become another version: this one, or the newest of its channel.
    Update { version: Option<String> },
}

/// How long a pause lasts; by the rig's clock, which need not be the owner's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(crate) enum Length {
    UntilResumed,
    For {
        seconds: u64,
    },
    /// The rig's next midnight.
    UntilTomorrow,
}

/// What a rig answers, as JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Reply {
    /// It obeyed, and so it is now.
    Report(Box<Report>),
    /// It would have obeyed, and could not.
    Failed(String),
    /// It does not obey.
    Refused(String),
}

/// What an order is held against.
pub(crate) struct Expected {
    pub(crate) network: NetworkId,
    pub(crate) owner: NodeId,
    pub(crate) nonce: Nonce,
    pub(crate) rig: NodeId,
    /// Who opened the stream, as the connection proves.
    pub(crate) agent: NodeId,
}

/// The bytes of an order, signed.
pub(crate) fn sign(order: Order, network: &NetworkId, key: &SigningKey) -> Vec<u8> {
    encode(Signed::new(order, network, key).envelope())
}

/// What is asked by these bytes.
///
/// # Errors
/// Why they are no order to this rig, at this moment, of its owner.
pub(crate) fn check(bytes: &[u8], expected: &Expected) -> Result<Ask, String> {
    let envelope: Envelope<Order> = decode(bytes).map_err(|error| error.to_string())?;
    // Before the signature: a stranger's word is not worth the time.
    if envelope.signer() != expected.owner {
        return Err("this agent obeys another owner".to_owned());
    }
    let signed = envelope.open(&expected.network).map_err(|forged| forged.to_string())?;
    let Order { nonce, rig, agent, ask } = signed.statement().clone();
    if nonce != expected.nonce {
        return Err("the order is not the answer to what was just asked".to_owned());
    }
    if rig != expected.rig {
        return Err("the order is meant for another rig".to_owned());
    }
    if agent != expected.agent {
        return Err("the order was given through another agent".to_owned());
    }
    Ok(ask)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NETWORK: NetworkId = NetworkId([1; 32]);

    fn key() -> SigningKey {
        SigningKey::from_bytes(&[7; 32])
    }

    fn id(key: &SigningKey) -> NodeId {
        NodeId(key.verifying_key().to_bytes())
    }

    fn order() -> Order {
        let ask = Ask::Pause { gpu: true, length: Length::For { seconds: 1_800 } };
        Order { nonce: [3; 32], rig: NodeId([4; 32]), agent: NodeId([5; 32]), ask }
    }

    fn expected() -> Expected {
        let Order { nonce, rig, agent, .. } = order();
        Expected { network: NETWORK, owner: id(&key()), nonce, rig, agent }
    }

    #[test]
    fn the_owners_order_is_obeyed() {
        assert_eq!(check(&sign(order(), &NETWORK, &key()), &expected()), Ok(order().ask));
    }

    #[test]
    fn any_other_order_is_refused() {
        let other = SigningKey::from_bytes(&[8; 32]);
        let cases = [
            (sign(order(), &NETWORK, &other), "another owner"),
            (sign(order(), &NetworkId([2; 32]), &key()), "does not verify"),
            (sign(Order { nonce: [9; 32], ..order() }, &NETWORK, &key()), "just asked"),
            (sign(Order { rig: NodeId([9; 32]), ..order() }, &NETWORK, &key()), "another rig"),
            (sign(Order { agent: NodeId([9; 32]), ..order() }, &NETWORK, &key()), "another agent"),
            (Vec::new(), "malformed"),
            (b"please".to_vec(), "malformed"),
        ];
        for (bytes, why) in cases {
            let said = check(&bytes, &expected()).unwrap_err();
            assert!(said.contains(why), "{why}: {said}");
        }
    }

    #[test]
    fn not_one_bit_of_an_order_can_be_changed() {
        let good = sign(order(), &NETWORK, &key());
        for at in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[at / 8] ^= 1 << (at % 8);
            assert!(check(&bad, &expected()).is_err(), "bit {at}");
        }
        let longer = [good.as_slice(), &[0]].concat();
        assert!(check(&longer, &expected()).is_err());
    }

    #[test]
    fn a_proof_is_good_for_one_conversation() {
        let node = |byte| NodeId([byte; 32]);
        let good = proof(node(1), &[2; 32], node(3), node(4));
        assert_eq!(good.to_string(), "a8835e54b906b3332f27ff80b66a0a263402b54c94051bcef696ade891bc455c");
        let others = [
            proof(node(9), &[2; 32], node(3), node(4)),
            proof(node(1), &[9; 32], node(3), node(4)),
            proof(node(1), &[2; 32], node(9), node(4)),
            proof(node(1), &[2; 32], node(3), node(9)),
        ];
        assert!(others.iter().all(|other| *other != good));
        assert_eq!(encode(&Hello { nonce: [2; 32], proof: good }).len(), HELLO_BYTES);
    }

    #[test]
    fn orders_have_one_encoding() {
        // Rigs of other versions must understand them.
        let encoded = |ask: Ask| hex::encode(encode(&ask));
        assert_eq!(encoded(Ask::Report), "00");
        assert_eq!(encoded(order().ask), "0101010807000000000000");
        assert_eq!(encoded(Ask::Pause { gpu: false, length: Length::UntilTomorrow }), "010002");
        assert_eq!(encoded(Ask::Resume), "02");
        assert_eq!(encoded(Ask::Finish), "03");
        assert_eq!(encoded(Ask::Update { version: Some("1.2".to_owned()) }), "040103000000312e32");
    }
}
