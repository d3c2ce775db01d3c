//! The rig's side: hears one order at a time from each peer, obeys its owner alone, and says how it is.
//!
//! Whoever may connect may try. Must never wait for long, hold much, or do anything for who is not the owner.

use std::sync::atomic::Ordering;

use skein_mesh::BulkStream;
use skein_policy::{Blocks, Event as Told, Pause};
use skein_proto::ids::NodeId;
use skein_proto::signed::encode;
use skein_update::Version;

use super::order::{Ask, Expected, Hello, Length, Nonce, Reply, check, proof};
use super::report::Report;
use super::{Fleet, plain, within};
use crate::daemon::owner::unix_ms;
use crate::daemon::{Call, lock};
use crate::limits::{
    FLEET_OBEY_WAIT, FLEET_ORDER_BYTES_MAX, FLEET_ORDER_WAIT, FLEET_REPLY_BYTES_MAX, PAUSE_S_MAX,
    RIG_TEXT_CHARS_MAX,
};

/// A peer's one turn to give an order.
struct Turn<'a> {
    fleet: &'a Fleet,
    from: NodeId,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        lock(&self.fleet.shared.heard).remove(&self.from);
    }
}

impl Fleet {
    /// Hears the order that comes on this stream, and answers it. What breaks off is dropped, and so abandoned.
    pub(super) async fn obey(self, owner: NodeId, from: NodeId, mut stream: BulkStream) {
        if !lock(&self.shared.heard).insert(from) {
            tracing::debug!(from = %from.short(), "a second order while the first is heard");
            return;
        }
        let turn = Turn { fleet: &self, from };
        let mut nonce: Nonce = [0; 32];
        if let Err(error) = getrandom::fill(&mut nonce) {
            tracing::warn!(%error, "no randomness from the operating system: an order is not heard");
            return;
        }
        let hello = Hello { nonce, proof: proof(owner, &nonce, self.node(), from) };
        let heard = within(FLEET_ORDER_WAIT, async {
            stream.send_frame(&encode(&hello)).await?;
            stream.recv_frame(FLEET_ORDER_BYTES_MAX).await
        });
        let bytes = match heard.await {
            Some(Ok(Some(bytes))) => bytes,
            Some(Ok(None)) => return,
            Some(Err(error)) => {
                tracing::debug!(from = %from.short(), %error, "an order did not come");
                return;
            }
            None => {
                tracing::debug!(from = %from.short(), "an order did not come in time");
                return;
            }
        };
        let expected = Expected { network: self.shared.network, owner, nonce, rig: self.node(), agent: from };
        let reply = match check(&bytes, &expected) {
            Ok(ask) => self.reply(ask, from).await,
            Err(why) => {
                self.shared.refused.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(from = %from.short(), "an order is refused: {why}");
                Reply::Refused(why)
            }
        };
        let answered = within(FLEET_OBEY_WAIT, stream.send_frame(&encoded(&reply))).await;
        // Before the end of the stream is told, so that the next order finds nobody in its way.
        drop(turn);
        if matches!(answered, Some(Ok(()))) {
            let _ = stream.finish();
        }
    }

    async fn reply(&self, ask: Ask, from: NodeId) -> Reply {
        if ask != Ask::Report {
            tracing::info!(through = %from.short(), "the owner orders from afar: {ask:?}");
        }
        match self.perform(ask).await {
            Ok(report) => Reply::Report(Box::new(report)),
            Err(why) => Reply::Failed(why),
        }
    }

    /// Does what the owner asks, and tells how this agent is then.
    ///
    /// # Errors
    /// Why it cannot be done.
    pub(super) async fn perform(&self, ask: Ask) -> Result<Report, String> {
        let leaving = || "the agent is leaving\nhint: ask again when it is back".to_owned();
        let told = match ask {
            Ask::Report => None,
            Ask::Pause { gpu, length } => {
                let blocks = if gpu { Blocks::Gpu } else { Blocks::All };
                let until_ms = match length {
                    Length::UntilResumed => None,
                    Length::For { seconds } if (1..=PAUSE_S_MAX).contains(&seconds) => {
                        Some(unix_ms() + seconds * 1_000)
                    }
                    Length::For { .. } => {
                        return Err(format!(
                            "a pause cannot be so long\nhint: from 1 to {PAUSE_S_MAX} seconds"
                        ));
                    }
                    Length::UntilTomorrow => Some(self.call(Call::Midnight).await.ok_or_else(leaving)?),
                };
                Some(Told::Pause(Pause { blocks, until_ms }))
            }
            Ask::Resume => Some(Told::Resume),
            Ask::Finish => Some(Told::Finish),
            Ask::Update { version } => {
                let version = version.map(|text| Version::parse(&text)).transpose();
                let version = version.map_err(|error| error.to_string())?;
                self.call(|answer| Call::Update(version, answer)).await.ok_or_else(leaving)??;
                None
            }
        };
        if let Some(told) = told {
            self.call(|answer| Call::Owner(told, answer)).await.ok_or_else(leaving)?;
        }
        self.own_report().await.ok_or_else(leaving)
    }
}

fn encoded(reply: &Reply) -> Vec<u8> {
    let short = match reply {
        Reply::Report(_) => None,
        Reply::Failed(why) => Some(Reply::Failed(plain_lines(why))),
        Reply::Refused(why) => Some(Reply::Refused(plain_lines(why))),
    };
    let bytes = serde_json::to_vec(short.as_ref().unwrap_or(reply)).unwrap_or_default();
    if !bytes.is_empty() && bytes.len() <= FLEET_REPLY_BYTES_MAX {
        return bytes;
    }
    br#"{"failed":"the report is too large to be sent"}"#.to_vec()
}

/// An error keeps its lines, of which the last says what to do.
pub(super) fn plain_lines(text: &str) -> String {
    let lines = text.lines().take(8).map(|line| plain(line, RIG_TEXT_CHARS_MAX));
    lines.collect::<Vec<_>>().join("\n")
}
