//! Owns the threads and the instructions that a stage computes with.
//! Must never change a result: work is only split where its parts do not meet.

use std::ops::Range;

use super::lanes::InstructionSet;

/// Tasks per thread, so that a slow core leaves work to the others.
const TASKS_PER_THREAD: usize = 4;

/// Threads for one stage. One thread means the caller's own.
#[derive(Debug)]
pub struct Pool {
    set: InstructionSet,
    threads: Option<rayon::ThreadPool>,
}

impl Pool {
    /// `threads` threads with the fastest instructions of this machine.
    ///
    /// # Errors
    /// When the system gives no thread, in its words.
    pub fn new(threads: usize) -> Result<Self, String> {
        Self::with(threads, InstructionSet::detect())
    }

    /// The same with the given instructions.
    ///
    /// # Errors
    /// As [`Pool::new`].
    pub fn with(threads: usize, set: InstructionSet) -> Result<Self, String> {
        let start = || {
            let names = |index| format!("skein-compute-{index}");
            rayon::ThreadPoolBuilder::new().num_threads(threads).thread_name(names).build()
        };
        let pool = (threads > 1).then(start).transpose();
        let threads = pool.map_err(|error| format!("cannot start {threads} threads: {error}"))?;
        Ok(Self { set, threads })
    }

    /// The instructions.
    #[must_use]
    pub fn set(&self) -> InstructionSet {
        self.set
    }

    /// How many threads.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.threads.as_ref().map_or(1, rayon::ThreadPool::current_num_threads)
    }

    /// Runs a whole step on the pool's threads; what it calls with this pool then need not change threads each time.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        match &self.threads {
            None => work(),
            Some(threads) => threads.install(work),
        }
    }

    /// Runs `work` on each task, in any order.
    pub(crate) fn each<T: Send>(&self, tasks: Vec<T>, work: impl Fn(T) + Sync) {
        match &self.threads {
            None => tasks.into_iter().for_each(work),
            Some(threads) => threads.scope(|scope| {
                let work = &work;
                for task in tasks {
                    scope.spawn(move |_| work(task));
                }
            }),
        }
    }

    /// Splits the columns of a row-major `output` into spans of whole `step`s, at least `least` columns each, and runs
    /// `work` on each: which columns, and those of every row.
    pub(crate) fn spans(
        &self,
        output: &mut [f32],
        columns: usize,
        step: usize,
        least: usize,
        work: impl Fn(Range<usize>, &mut [&mut [f32]]) + Sync,
    ) {
        let fair = columns.div_ceil(TASKS_PER_THREAD * self.threads());
        let span = fair.max(least).next_multiple_of(step);
        if output.len() == columns {
            return match &self.threads {
                Some(_) if span < columns => {
                    let tasks = output.chunks_mut(span).enumerate().collect();
                    self.each(tasks, |(i, part)| work(i * span..i * span + part.len(), &mut [part]));
                }
                _ => work(0..columns, &mut [output]),
            };
        }
        if self.threads.is_none() || span >= columns {
            let mut rows: Vec<&mut [f32]> = output.chunks_mut(columns).collect();
            return work(0..columns, &mut rows);
        }
        let mut tasks: Vec<Vec<&mut [f32]>> = (0..columns.div_ceil(span)).map(|_| Vec::new()).collect();
        for row in output.chunks_mut(columns) {
            for (task, part) in tasks.iter_mut().zip(row.chunks_mut(span)) {
                task.push(part);
            }
        }
        let tasks = tasks.into_iter().enumerate().collect();
        self.each(tasks, |(i, mut rows)| {
            let width = rows.first().map_or(0, |row| row.len());
            work(i * span..i * span + width, &mut rows);
        });
    }
}
