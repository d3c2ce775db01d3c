//! The owner's side: asks all rigs at once, gives them orders, and remembers who answered.
//!
//! Who proves that it was told the owner's public key is a rig: what it is told is an order for itself alone, of no use
//! elsewhere. Must never wait for a rig longer than it said that it would, nor show what a rig says unread.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use ed25519_dalek::SigningKey;
use serde::{Deserialize, Serialize};
use skein_mesh::{StreamError, StreamKind};
use skein_proto::ids::NodeId;
use skein_proto::signed::decode;

use super::book::Known;
use super::order::{Ask, HELLO_BYTES, Hello, Order, Reply, proof, sign};
use super::report::Report;
use super::rig::plain_lines;
use super::{Fleet, within};
use crate::daemon::lock;
use crate::daemon::owner::unix_ms;
use crate::identity;
use crate::limits::{FLEET_OBEY_WAIT, FLEET_REPLY_BYTES_MAX, FLEET_REPORT_WAIT, FLEET_STRANGER_REST};

/// All rigs: `GET /api/fleet`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Overview {
    /// The owner's public key; nothing where no owner's key is kept, and so no rigs are asked.
    pub(crate) key: Option<NodeId>,
    /// When this was asked, in Unix milliseconds.
    pub(crate) at_ms: u64,
    pub(crate) rigs: Vec<Sight>,
    /// Machines that the owner does not want to see.
    pub(crate) forgotten: Vec<NodeId>,
}

/// One rig as it is, or as it was when it was last seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sight {
    pub(crate) node: NodeId,
    pub(crate) name: String,
    /// Whether it is the agent that was asked.
    pub(crate) own: bool,
    pub(crate) connected: bool,
    /// Whether `report` is of now.
    pub(crate) answers: bool,
    /// If not, why.
    pub(crate) trouble: Option<String>,
    /// When it answered last, in Unix milliseconds.
    pub(crate) seen_ms: u64,
    pub(crate) address: Option<String>,
    pub(crate) report: Report,
}

/// How one rig took an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Obeyed {
    pub(crate) node: NodeId,
    pub(crate) name: String,
    pub(crate) ok: bool,
    /// How it is now.
    pub(crate) headline: Option<String>,
    /// Why it did not obey.
    pub(crate) error: Option<String>,
}

/// What is said where there is no owner's key.
pub(crate) const NO_KEY: &str = "no owner's key is kept here, so no rig is commanded from here\n\
    hint: `skein fleet key` makes one, and says what to tell your rigs";

/// What came of asking.
enum Heard {
    Report(Box<Report>),
    Failed(String),
    Refused(String),
    /// It does not want to be asked: it is nobody's rig, or of a version that has none.
    Stranger,
    Silent(&'static str),
}

impl Fleet {
    /// All rigs; asked how they are now, if `ask` is set.
    ///
    /// # Errors
    /// When the owner's key is damaged.
    pub(crate) async fn overview(&self, ask: bool) -> Result<Overview> {
        let key = identity::owner(&self.shared.data_dir)?;
        let mut heard = BTreeMap::new();
        if let Some(key) = key.as_ref().filter(|_| ask) {
            let _asking = self.shared.asking.lock().await;
            let peers = self.askable(|_| true);
            heard = self.ask_all(key, peers, &Ask::Report, FLEET_REPORT_WAIT).await;
        }
        let connected = self.peers();
        let book = lock(&self.shared.book);
        let rigs = book.rigs().iter().map(|(&node, known)| {
            let own = node == self.node();
            let trouble = match heard.get(&node) {
                Some(Heard::Report(_)) => None,
                Some(Heard::Failed(why) | Heard::Refused(why)) => Some(why.clone()),
                Some(Heard::Stranger) => Some("does not name this owner any more".to_owned()),
                Some(Heard::Silent(why)) => Some((*why).to_owned()),
                None if !own && !connected.contains_key(&node) => Some("not connected".to_owned()),
                None => None,
            };
            Sight {
                node,
                name: known.report.name.clone(),
                own,
                connected: own || connected.contains_key(&node),
                answers: matches!(heard.get(&node), Some(Heard::Report(_))),
                trouble,
                seen_ms: known.seen_ms,
                address: known.address.clone(),
                report: known.report.clone(),
            }
        });
        let mut rigs: Vec<Sight> = rigs.collect();
        rigs.sort_by(|one, other| (&one.name, one.node).cmp(&(&other.name, other.node)));
        let forgotten = book.forgotten().iter().copied().collect();
        let key = key.map(|key| NodeId(key.verifying_key().to_bytes()));
        Ok(Overview { key, at_ms: unix_ms(), rigs, forgotten })
    }

    /// Gives an order to these rigs, by name or the first digits of their node ids; to all, if none are named.
    ///
    /// # Errors
    /// When no owner's key is here, or a name is nobody's or several rigs'. Nobody was given the order then.
    pub(crate) async fn order(&self, rigs: Option<Vec<String>>, ask: Ask) -> Result<Vec<Obeyed>> {
        let key = self.key()?;
        let _asking = self.shared.asking.lock().await;
        // Who connected since rigs were asked last may be meant too.
        let new = self.askable(|node| !lock(&self.shared.book).rigs().contains_key(&node));
        self.ask_all(&key, new, &Ask::Report, FLEET_REPORT_WAIT).await;
        let known: Vec<(NodeId, String)> = {
            let book = lock(&self.shared.book);
            book.rigs().iter().map(|(&node, known)| (node, known.report.name.clone())).collect()
        };
        if known.is_empty() {
            bail!("no rig has answered yet\nhint: `skein fleet key` prints what each rig is to be told");
        }
        let chosen = match rigs {
            Some(wanted) => choose(&known, &wanted)?,
            None => known.iter().map(|(node, _)| *node).collect(),
        };
        let connected = self.peers();
        let there = |node: &&NodeId| **node == self.node() || connected.contains_key(*node);
        let asked = chosen.iter().filter(there).copied().collect();
        let mut heard = self.ask_all(&key, asked, &ask, FLEET_OBEY_WAIT).await;
        let obeyed = known.into_iter().filter(|(node, _)| chosen.contains(node)).map(|(node, name)| {
            let (headline, error) = match heard.remove(&node) {
                Some(Heard::Report(report)) => (Some(report.headline), None),
                Some(Heard::Failed(why) | Heard::Refused(why)) => (None, Some(why)),
                Some(Heard::Stranger) => (None, Some("does not name this owner any more".to_owned())),
                Some(Heard::Silent(why)) => (None, Some(why.to_owned())),
                None => (None, Some("not connected: it was given no order".to_owned())),
            };
            Obeyed { node, name, ok: error.is_none(), headline, error }
        });
        let mut obeyed: Vec<Obeyed> = obeyed.collect();
        obeyed.sort_by(|one, other| (&one.name, one.node).cmp(&(&other.name, other.node)));
        Ok(obeyed)
    }

    /// Does not show this rig any more, nor ask it; or does so again.
    ///
    /// # Errors
    /// When the name is nobody's, or several rigs'.
    pub(crate) fn forget(&self, rig: &str, undo: bool) -> Result<NodeId> {
        let mut book = lock(&self.shared.book);
        let known: Vec<(NodeId, String)> = if undo {
            book.forgotten().iter().map(|&node| (node, node.short())).collect()
        } else {
            book.rigs().iter().map(|(&node, known)| (node, known.report.name.clone())).collect()
        };
        let chosen = choose(&known, &[rig.to_owned()])?;
        let node = chosen.first().copied().context("one was chosen")?;
        if undo {
            book.recall(node);
        } else {
            book.forget(node);
        }
        book.save();
        Ok(node)
    }

    fn key(&self) -> Result<SigningKey> {
        identity::owner(&self.shared.data_dir)?.ok_or_else(|| anyhow!("{NO_KEY}"))
    }

    fn peers(&self) -> BTreeMap<NodeId, SocketAddr> {
        self.shared.mesh.peers().into_iter().collect()
    }

    /// This agent and its peers, but for those that want no orders or are to be given none.
    fn askable(&self, wanted: impl Fn(NodeId) -> bool) -> Vec<NodeId> {
        let peers = self.peers().into_keys().chain([self.node()]);
        let mut nodes: Vec<NodeId> = peers.filter(|&node| wanted(node)).collect();
        let (strangers, book, now) = (lock(&self.shared.strangers), lock(&self.shared.book), Instant::now());
        nodes.retain(|node| {
            !strangers.get(node).is_some_and(|&told| is_recent(told, now)) && !book.forgotten().contains(node)
        });
        nodes
    }

    /// Asks all of these at once, and notes who answered.
    async fn ask_all(
        &self,
        key: &SigningKey,
        nodes: Vec<NodeId>,
        ask: &Ask,
        limit: Duration,
    ) -> BTreeMap<NodeId, Heard> {
        let asking: Vec<_> = nodes
            .into_iter()
            .map(|node| {
                let (fleet, key, ask) = (self.clone(), key.clone(), ask.clone());
                (node, skein_mesh::spawn(async move { fleet.ask(&key, node, ask, limit).await }))
            })
            .collect();
        let mut heard = BTreeMap::new();
        for (node, asked) in asking {
            heard.insert(node, asked.await);
        }
        if self.note(&heard) {
            let fleet = self.clone();
            smol::unblock(move || lock(&fleet.shared.book).save()).await;
        }
        heard
    }

    /// Whether there is something to write down.
    fn note(&self, heard: &BTreeMap<NodeId, Heard>) -> bool {
        let (peers, now) = (self.peers(), unix_ms());
        let mut book = lock(&self.shared.book);
        let mut strangers = lock(&self.shared.strangers);
        let mut answered = false;
        for (node, heard) in heard {
            let known = book.rigs().contains_key(node);
            match heard {
                Heard::Report(report) => {
                    let address = peers.get(node).map(SocketAddr::to_string);
                    book.note(Known { seen_ms: now, address, report: (**report).clone() });
                    strangers.remove(node);
                    answered = true;
                }
                // Who was never heard need not be waited for each time; a rig may break off for once.
                Heard::Stranger | Heard::Refused(_) | Heard::Silent(_) if !known => {
                    strangers.insert(*node, Instant::now());
                }
                Heard::Stranger | Heard::Refused(_) | Heard::Silent(_) | Heard::Failed(_) => {}
            }
        }
        // Of who is gone meanwhile nothing is kept: back again, it is asked again.
        strangers.retain(|node, _| peers.contains_key(node));
        answered
    }

    async fn ask(&self, key: &SigningKey, node: NodeId, ask: Ask, limit: Duration) -> Heard {
        if node == self.node() {
            return match self.perform(ask).await {
                Ok(report) => Heard::Report(Box::new(report)),
                Err(why) => Heard::Failed(why),
            };
        }
        let silent = Heard::Silent("connected, and does not answer");
        within(limit, self.exchange(key, node, ask)).await.unwrap_or(silent)
    }

    async fn exchange(&self, key: &SigningKey, node: NodeId, ask: Ask) -> Heard {
        let broken = |error: StreamError| match error {
            StreamError::Disconnected { .. } => Heard::Silent("the connection to it ended"),
            StreamError::Abandoned { .. } => Heard::Stranger,
            StreamError::Truncated | StreamError::TooLarge { .. } | StreamError::Finished => {
                Heard::Silent("it answers what this version does not understand")
            }
        };
        let Ok(mut stream) = self.shared.mesh.open(node, StreamKind::Fleet).await else {
            return Heard::Silent("not connected");
        };
        let hello = match stream.recv_frame(HELLO_BYTES).await {
            Ok(Some(bytes)) => decode::<Hello>(&bytes).ok(),
            Ok(None) => None,
            Err(error) => return broken(error),
        };
        let owner = NodeId(key.verifying_key().to_bytes());
        let told = |hello: &Hello| hello.proof == proof(owner, &hello.nonce, node, self.node());
        let Some(Hello { nonce, .. }) = hello.filter(told) else { return Heard::Stranger };
        let order = Order { nonce, rig: node, agent: self.node(), ask };
        if let Err(error) = stream.send_frame(&sign(order, &self.shared.network, key)).await {
            return broken(error);
        }
        let reply = match stream.recv_frame(FLEET_REPLY_BYTES_MAX).await {
            Ok(Some(bytes)) => serde_json::from_slice(&bytes).ok(),
            Ok(None) => None,
            Err(error) => return broken(error),
        };
        // Then it is ready for the next order.
        let _ = stream.recv_frame(0).await;
        match reply {
            Some(Reply::Report(report)) => Heard::Report(Box::new(report.tidied(node))),
            Some(Reply::Failed(why)) => Heard::Failed(plain_lines(&why)),
            Some(Reply::Refused(why)) => Heard::Refused(plain_lines(&why)),
            None => Heard::Silent("it answers what this version does not understand"),
        }
    }
}

/// Whether a peer said so lately that it is no rig that it need not be asked.
fn is_recent(told: Instant, now: Instant) -> bool {
    now.duration_since(told) < FLEET_STRANGER_REST
}

/// The rigs that are meant, each once. A whole node id means that one, whatever others call themselves.
fn choose(known: &[(NodeId, String)], wanted: &[String]) -> Result<Vec<NodeId>> {
    let listed = |rigs: &[&(NodeId, String)]| {
        let listed: Vec<String> =
            rigs.iter().map(|(node, name)| format!("{name} ({})", hex::encode(&node.0[..6]))).collect();
        if listed.is_empty() { "none".to_owned() } else { listed.join(", ") }
    };
    let mut chosen = Vec::new();
    for text in wanted {
        let digits = text.to_lowercase();
        let whole = digits.parse::<NodeId>().ok();
        let is_meant = |(node, name): &&(NodeId, String)| match whole {
            Some(whole) => *node == whole,
            None => name == text || (!digits.is_empty() && node.to_string().starts_with(&digits)),
        };
        let meant: Vec<&(NodeId, String)> = known.iter().filter(is_meant).collect();
        match meant.as_slice() {
            [(node, _)] if chosen.contains(node) => {}
            [(node, _)] => chosen.push(*node),
            [] => bail!(
                "no rig is called `{text}`\nhint: there are {}",
                listed(&known.iter().collect::<Vec<_>>())
            ),
            several => bail!("`{text}` may mean {}\nhint: give more digits of the node id", listed(several)),
        }
    }
    if chosen.is_empty() {
        bail!("no rig is named\nhint: there are {}", listed(&known.iter().collect::<Vec<_>>()));
    }
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_no_rig_is_asked_again_after_a_while() {
        let told = Instant::now();
        assert!(is_recent(told, told) && is_recent(told, told + FLEET_STRANGER_REST / 2));
        assert!(!is_recent(told, told + FLEET_STRANGER_REST));
    }

    #[test]
    fn rigs_are_chosen_by_name_or_digits_and_never_by_guess() {
        let id = |first: u8, second: u8| {
            let mut id = [0; 32];
            (id[0], id[1]) = (first, second);
            NodeId(id)
        };
        let whole = id(0xab, 0x02).to_string();
        let known = [
            (id(0xab, 0x01), "attic".to_owned()),
            (id(0xab, 0x02), "cellar".to_owned()),
            (id(0xcd, 0x01), "cellar".to_owned()),
            // One that pretends to be another.
            (id(0xee, 0x01), whole.clone()),
            (id(0xef, 0x01), "ee".to_owned()),
        ];
        let choose = |wanted: &[&str]| {
            let wanted: Vec<String> = wanted.iter().map(|&text| text.to_owned()).collect();
            choose(&known, &wanted).map_err(|error| error.to_string())
        };
        assert_eq!(choose(&["attic"]), Ok(vec![id(0xab, 0x01)]));
        assert_eq!(choose(&["AB02", "attic", "ab01"]), Ok(vec![id(0xab, 0x02), id(0xab, 0x01)]));
        assert_eq!(choose(&[&whole]), Ok(vec![id(0xab, 0x02)]));
        for (wanted, words) in [
            ("ab", ["attic (ab0100000000)", "more digits"]),
            ("cellar", ["cellar (ab0200000000), cellar (cd0100000000)", "hint:"]),
            ("ee", ["ee0100000000", "ef0100000000"]),
            ("Attic", ["no rig is called `Attic`", "there are attic (ab0100000000)"]),
            ("", ["no rig is called", "hint:"]),
        ] {
            let error = choose(&[wanted]).unwrap_err();
            assert!(words.iter().all(|word| error.contains(word)), "{wanted}: {error}");
        }
        assert!(choose(&[]).unwrap_err().contains("no rig is named"));
    }
}
