//! The share of the processors' time that went to others, by `/proc/stat` and our own processes' counters.

use std::collections::BTreeSet;
use std::path::Path;

use super::bounded;

/// Fewer ticks than these (a hundredth of a second each) say nothing.
const TICKS_MIN: u64 = 20;

/// Counters at one moment, in ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Counters {
    all: u64,
    busy: u64,
    own: u64,
}

/// Remembers the counters from one reading to the next.
#[derive(Default)]
pub(crate) struct Processor {
    before: Option<Counters>,
    last: Option<u32>,
}

impl Processor {
    /// Thousandths of all processors' time that others took since the last call.
    pub(crate) fn others_permille(&mut self, root: &Path, own: &BTreeSet<u32>) -> Result<u32, String> {
        let (all, busy) = machine(&bounded(&root.join("proc/stat"), 1 << 20))
            .ok_or_else(|| "the system does not tell its processors' time (/proc/stat)".to_owned())?;
        let own = own
            .iter()
            .filter_map(|pid| process(&bounded(&root.join(format!("proc/{pid}/stat")), 4096)))
            .sum();
        let now = Counters { all, busy, own };
        let Some(before) = self.before else {
            self.before = Some(now);
            return Err("measured from one reading to the next; this is the first".to_owned());
        };
        if now.all.saturating_sub(before.all) >= TICKS_MIN {
            self.before = Some(now);
            self.last = Some(others(before, now));
        }
        self.last.ok_or_else(|| "too little time has passed since the first reading".to_owned())
    }
}

fn others(before: Counters, now: Counters) -> u32 {
    let all = now.all.saturating_sub(before.all).max(1);
    let busy = now.busy.saturating_sub(before.busy);
    let own = now.own.saturating_sub(before.own).min(busy);
    u32::try_from((busy - own) * 1000 / all).unwrap_or(1000).min(1000)
}

/// All ticks, and those in which a program of this machine ran. Time that a hypervisor took is neither idle nor ours.
fn machine(stat: &[u8]) -> Option<(u64, u64)> {
    let text = String::from_utf8_lossy(stat);
    let line = text.lines().find_map(|line| line.strip_prefix("cpu "))?;
    // user nice system idle iowait irq softirq steal; guests' time is in user already.
    let ticks: Vec<u64> = line.split_whitespace().take(8).map_while(|word| word.parse().ok()).collect();
    let [user, nice, system, idle, waiting, irq, softirq, steal] = ticks.as_slice() else { return None };
    let busy = user + nice + system + irq + softirq;
    Some((busy + idle + waiting + steal, busy))
}

/// The ticks of a process and of its children that it has waited for: so a worker's time stays in the sum when it ends.
fn process(stat: &[u8]) -> Option<u64> {
    let text = String::from_utf8_lossy(stat);
    // The name in parentheses may hold anything; the last parenthesis ends it. utime is the 14th field of all.
    let (_, rest) = text.rsplit_once(')')?;
    let ticks: Vec<u64> =
        rest.split_whitespace().skip(11).take(4).map_while(|word| word.parse().ok()).collect();
    (ticks.len() == 4).then(|| ticks.iter().sum())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;

    use super::Processor;

    #[test]
    fn own_workers_are_not_others_even_when_they_end() {
        let root = tempfile::tempdir().unwrap();
        let proc = root.path().join("proc");
        for pid in ["10", "11"] {
            fs::create_dir_all(proc.join(pid)).unwrap();
        }
        let stat = |user: u64, idle: u64| {
            fs::write(proc.join("stat"), format!("cpu  {user} 0 0 {idle} 0 0 0 0 0 0\ncpu0 1 1\n")).unwrap();
        };
        let process = |pid: u32, ticks: u64, children: u64| {
            let text =
                format!("{pid} (a) b) c) S 1 1 1 0 -1 0 0 0 0 0 {ticks} 0 {children} 0 20 0 1 0 5 0\n");
            fs::write(proc.join(format!("{pid}/stat")), text).unwrap();
        };
        let mut processor = Processor::default();
        let own = BTreeSet::from([10, 11]);
        let mut read = || processor.others_permille(root.path(), &own);
        stat(1000, 1000);
        process(10, 0, 0);
        process(11, 500, 0);
        assert!(read().is_err());
        stat(1500, 1500);
        process(11, 900, 0);
        assert_eq!(read(), Ok(100), "of 1000 ticks 500 were busy, 400 of them ours");
        // The worker ends after 100 more; its parent has waited for it.
        stat(1700, 2300);
        fs::remove_dir_all(proc.join("11")).unwrap();
        process(10, 0, 1000);
        assert_eq!(read(), Ok(100), "of 1000 ticks 200 were busy, 100 of them ours");
    }
}
