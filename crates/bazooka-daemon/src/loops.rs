//! A daemon's tasks, and what their ends mean.
//!
//! Owns the tasks that last as long as the daemon. Such a *loop* ends the daemon when it ends, by a return, an error or
//! a panic: otherwise a panic would leave a daemon that reports ready and does only a part of its work. The error names
//! the loop. A task that belongs to one request is not a loop; its owner is the request.
//!
//! ```text
//! spawn, spawn_endless   a loop: its end ends the daemon
//! spawn_once             has an end of its own: only its panic ends the daemon
//!         └─▶ first_end ─▶ LoopEnded ─▶ the daemon's run returns it
//! ```

use std::{any::Any, collections::HashMap, future::Future};

use tokio::task::{Id, JoinError, JoinSet};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The unexpected end of a loop.
#[derive(Debug, thiserror::Error)]
pub enum LoopEnded {
    /// The loop panicked.
    #[error("{name} panicked: {message}")]
    Panicked {
        /// The loop's name.
        name: &'static str,
        /// The panic's message.
        message: String,
    },
    /// The loop failed.
    #[error("{name} failed")]
    Failed {
        /// The loop's name.
        name: &'static str,
        /// The loop's error.
        #[source]
        source: BoxError,
    },
    /// The loop returned.
    #[error("{name} ended by itself")]
    Returned {
        /// The loop's name.
        name: &'static str,
    },
}

impl LoopEnded {
    /// Describes the end of a loop's task.
    pub fn of<E: Into<BoxError>>(name: &'static str, ended: Result<Result<(), E>, JoinError>) -> LoopEnded {
        match ended {
            Ok(Ok(())) => LoopEnded::Returned { name },
            Ok(Err(error)) => LoopEnded::Failed { name, source: error.into() },
            Err(error) => LoopEnded::Panicked { name, message: panic_of(error) },
        }
    }
}

/// The daemon's loops. Dropping this ends all of them.
#[derive(Debug, Default)]
pub struct Loops {
    set: JoinSet<Result<(), BoxError>>,
    tasks: HashMap<Id, Task>,
}

#[derive(Debug)]
struct Task {
    name: &'static str,
    /// True if the task may return.
    has_end: bool,
}

impl Loops {
    /// Starts a loop that ends only with an error.
    pub fn spawn<E: Into<BoxError>>(
        &mut self,
        name: &'static str,
        work: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        let handle = self.set.spawn(async move { work.await.map_err(Into::into) });
        self.tasks.insert(handle.id(), Task { name, has_end: false });
    }

    /// Starts a loop that never ends.
    pub fn spawn_endless(&mut self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        self.spawn(name, async move {
            work.await;
            Ok::<_, BoxError>(())
        });
    }

    /// Starts a task that ends once its work is done.
    pub fn spawn_once(&mut self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        let handle = self.set.spawn(async move {
            work.await;
            Ok(())
        });
        self.tasks.insert(handle.id(), Task { name, has_end: true });
    }

    /// Waits for the first loop that ends. Without any loop it waits for ever.
    ///
    /// # Cancel safety
    /// If this is dropped, no end is lost.
    pub async fn first_end(&mut self) -> LoopEnded {
        while let Some(ended) = self.set.join_next_with_id().await {
            let (id, ended) = match ended {
                Ok((id, returned)) => (id, Ok(returned)),
                Err(error) => (error.id(), Err(error)),
            };
            let task = self.tasks.remove(&id).expect("each task is noted as it is spawned");
            if !(task.has_end && matches!(ended, Ok(Ok(())))) {
                return LoopEnded::of(task.name, ended);
            }
        }
        std::future::pending().await
    }
}

fn panic_of(error: JoinError) -> String {
    match error.try_into_panic() {
        Ok(panic) => panic_message(&*panic),
        Err(error) => error.to_string(),
    }
}

/// Returns the message of a panic, as `catch_unwind` has it.
pub fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}

#[cfg(test)]
mod tests {
    use std::{io, time::Duration};

    use super::*;
    use crate::in_words;

    async fn end_of(loops: &mut Loops) -> String {
        in_words(&loops.first_end().await)
    }

    #[tokio::test]
    async fn loops_name_the_one_that_ended_and_why() {
        let mut loops = Loops::default();
        loops.spawn_endless("the watch", std::future::pending());
        loops.spawn_endless("the hooks' listener", async { panic!("index {} out of range", 7) });
        assert_eq!(end_of(&mut loops).await, "the hooks' listener panicked: index 7 out of range");
        loops.spawn("the endpoint", async { Err(io::Error::other("gone")) });
        assert_eq!(end_of(&mut loops).await, "the endpoint failed: gone");
        loops.spawn_endless("the audit", async {});
        assert_eq!(end_of(&mut loops).await, "the audit ended by itself");
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_with_an_end_of_its_own_is_missed_only_if_it_panics() {
        let mut loops = Loops::default();
        loops.spawn_once("a warning", async {});
        let ended = tokio::time::timeout(Duration::from_secs(60), loops.first_end()).await;
        assert!(ended.is_err(), "a task that has done its work ends nothing: {ended:?}");
        loops.spawn_once("a warning", async { panic!("no words") });
        assert_eq!(end_of(&mut loops).await, "a warning panicked: no words");
    }
}
