//! The threads of work that blocks.
//!
//! Owns the number of threads for each kind of work, and that no kind waits for another: starts and ends of instances
//! have threads of their own, however long slugs are unpacked and whoever reads output. Work that finds no free thread
//! waits as the task that asked for it, in order, so that the queue is no longer than the effects that are under way.
//!
//! ```text
//! process   starts, ends, notes, envs   bounded by the instances: one effect of each at a time
//! slugs     writing, unpacking, syncing and removing slugs
//! followed  new output, read once for all followers
//! past      earlier output, for one reader at a time
//! ```

use std::{io, sync::Arc, time::Duration};

use tokio::{
    runtime::{Builder, Runtime},
    sync::Semaphore,
    task::JoinError,
};

/// The time after which an idle thread ends. Each thread costs memory.
const KEEP_ALIVE: Duration = Duration::from_secs(2);

/// The stack of a thread, in bytes.
const STACK: usize = 512 << 10;

/// The pools of a host. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Pools {
    /// For starts and ends of instances and the notes on them, and for nothing else.
    pub process: Pool,
    /// For slugs.
    pub slugs: Pool,
    /// For the output that is followed.
    pub followed: Pool,
    /// For the output of the past.
    pub past: Pool,
}

impl Pools {
    /// Creates the pools. They have no thread before there is work.
    ///
    /// # Errors
    /// The system's.
    pub fn create() -> io::Result<Pools> {
        Ok(Pools {
            process: Pool::new("process", 4)?,
            slugs: Pool::new("slugs", 2)?,
            followed: Pool::new("followed", 1)?,
            past: Pool::new("past", 1)?,
        })
    }
}

/// Threads for one kind of work. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Pool(Arc<Threads>);

#[derive(Debug)]
struct Threads {
    /// A runtime that nobody drives, for its threads. It is there until the drop.
    runtime: Option<Runtime>,
    turns: Arc<Semaphore>,
}

impl Pool {
    /// Creates a pool of at most so many threads.
    ///
    /// # Errors
    /// The system's.
    pub fn new(name: &'static str, threads: usize) -> io::Result<Pool> {
        let runtime = Builder::new_current_thread()
            .max_blocking_threads(threads)
            .thread_keep_alive(KEEP_ALIVE)
            .thread_stack_size(STACK)
            .thread_name(name)
            .build()?;
        Ok(Pool(Arc::new(Threads { runtime: Some(runtime), turns: Arc::new(Semaphore::new(threads)) })))
    }

    /// Runs blocking work on a thread of this pool, once one is free. Work that has begun goes on to its end, even if
    /// nobody waits for it.
    ///
    /// # Errors
    /// If the work panicked.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, JoinError> {
        let turn = self.0.turns.clone().acquire_owned().await.expect("it is never closed");
        let runtime = self.0.runtime.as_ref().expect("it is there until the drop");
        let working = runtime.spawn_blocking(move || {
            let _turn = turn;
            work()
        });
        working.await
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        // A runtime's own drop would wait for its threads, which is not allowed inside another one.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn no_kind_of_work_waits_for_another() {
        let pools = Pools::create().expect("there is room");
        let (mut ends, mut busy) = (Vec::new(), Vec::new());
        // More than each of these has threads.
        for pool in [&pools.slugs, &pools.followed, &pools.past] {
            for _ in 0..8 {
                let (end, held) = mpsc::channel::<()>();
                let pool = pool.clone();
                ends.push(end);
                busy.push(tokio::spawn(async move { pool.run(move || held.recv()).await }));
            }
        }
        tokio::task::yield_now().await;
        assert!(pools.slugs.run(|| ()).now_or_never().is_none(), "its threads are all busy");
        let process = tokio::time::timeout(Duration::from_secs(10), pools.process.run(|| 7));
        assert_eq!(process.await.expect("a start waits for nobody").expect("it does not panic"), 7);
        drop(ends);
        for task in busy {
            let _ = task.await.expect("it does not panic").expect("it does not panic");
        }
    }

    #[tokio::test]
    async fn work_waits_in_order_and_a_panic_costs_no_thread() {
        let pool = Pool::new("one", 1).expect("there is room");
        assert!(pool.run(|| panic!("as a test has it")).await.is_err());
        let (told, heard) = mpsc::channel();
        let works = (0..20).map(|n| {
            let told = told.clone();
            pool.run(move || told.send(n).is_ok())
        });
        assert!(futures::future::join_all(works).await.into_iter().all(|sent| sent.is_ok_and(|sent| sent)));
        assert_eq!(heard.try_iter().collect::<Vec<_>>(), (0..20).collect::<Vec<_>>());
    }
}
