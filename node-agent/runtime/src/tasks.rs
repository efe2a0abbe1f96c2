//! Tasks that run beside a program's own work for as long as it does. This is the one place where tasks and threads are
//! made, and each task is awaited: a status that nobody writes any more must not stand still under a lease that somebody
//! renews.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use tokio::task::{Id, JoinError, JoinSet};

/// Time between two beats of the tasks, and between two looks whether there was one.
const BEAT: Duration = Duration::from_secs(10);
/// So many looks in a row without a beat mean that the tasks stand still for good.
const STILL: usize = 6;
/// How long words about that may take: they may be what it stands still at.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Tasks that never end; dropping this aborts them.
#[derive(Debug, Default)]
pub struct Tasks {
    running: JoinSet<()>,
    names: HashMap<Id, &'static str>,
}

/// A task has ended, so the program must: without it, it only looks alive.
#[derive(Debug, thiserror::Error)]
#[error("the task {task:?} has ended, which it never should; this program ends with it, to be started anew")]
pub struct Ended {
    /// Its name.
    pub task: &'static str,
    /// How it panicked, if it did.
    pub source: Option<JoinError>,
}

impl Tasks {
    /// Starts `task`, which must not end before the program does.
    pub fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let id = self.running.spawn(task).id();
        self.names.insert(id, name);
    }

    /// Ends the process when its tasks stand still for a minute. Nobody else can tell: whoever asks from outside may be
    /// answered by somebody else.
    pub fn watch(&mut self) {
        let beats = Arc::new(AtomicU64::new(0));
        let beating = Arc::clone(&beats);
        self.spawn("beat", async move {
            loop {
                beating.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(BEAT).await;
            }
        });
        thread::spawn(move || {
            until_still(|| {
                thread::sleep(BEAT);
                beats.load(Ordering::Relaxed)
            });
            thread::spawn(|| {
                tracing::error!("the tasks stand still for a minute; this program ends, to be started anew");
            });
            thread::sleep(LAST_WORDS);
            std::process::abort();
        });
    }

    /// Waits for the first task that ends or panics; for ever while there is none. Cancel-safe.
    pub async fn ended(&mut self) -> Ended {
        let (id, source) = match self.running.join_next_with_id().await {
            Some(Ok((id, ()))) => (id, None),
            Some(Err(error)) => (error.id(), Some(error)),
            None => return std::future::pending().await,
        };
        Ended { task: self.names.remove(&id).unwrap_or_default(), source }
    }

    /// Does `work` beside the tasks.
    ///
    /// # Errors
    /// [`Ended`], and `work` is dropped where it stands, when a task ends before it; else what `work` fails with.
    pub async fn beside<T, E: From<Ended>>(&mut self, work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        tokio::select! {
            biased;
            outcome = work => outcome,
            ended = self.ended() => Err(ended.into()),
        }
    }
}

/// Looks at the beats until there was none for [`STILL`] looks. Not by the clock: a process that was stopped itself has missed
/// nothing.
fn until_still(mut look: impl FnMut() -> u64) {
    let (mut last, mut missed) = (look(), 0);
    while missed < STILL {
        let now = look();
        missed = if now == last { missed + 1 } else { 0 };
        last = now;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::panic, reason = "that is what is tested")]

    use std::error::Error as _;
    use std::future::{pending, ready};

    use super::*;

    /// Work that a program does for ever.
    async fn work() -> Result<(), Ended> {
        pending().await
    }

    #[tokio::test]
    async fn a_task_that_ends_or_panics_ends_the_program_by_its_name() {
        let mut tasks = Tasks::default();
        tasks.spawn("lease", pending());
        tasks.spawn("status", async {});
        let ended = tasks.beside(work()).await.unwrap_err();
        assert!(ended.to_string().starts_with("the task \"status\" has ended, which it never should"), "{ended}");
        assert!(ended.source().is_none());

        tasks.spawn("events", async { panic!("out of order") });
        let ended = tasks.beside(work()).await.unwrap_err();
        assert_eq!(ended.task, "events");
        assert!(ended.source().unwrap().to_string().contains("out of order"));
    }

    #[tokio::test]
    async fn work_that_is_done_is_done_whatever_the_tasks_do() {
        let mut tasks = Tasks::default();
        tasks.spawn("lease", pending());
        tasks.beside(ready(Ok::<_, Ended>(()))).await.unwrap();
        let mut none = Tasks::default();
        let work = async {
            tokio::task::yield_now().await;
            Ok::<_, Ended>(())
        };
        none.beside(work).await.unwrap();
    }

    #[test]
    fn tasks_stand_still_when_no_beat_was_seen_for_a_minute() {
        let seen = [1, 2, 2, 2, 2, 2, 2, 3, 3, 5, 5, 5, 5, 5, 5, 5, 6];
        let mut looks = seen.iter();
        until_still(|| *looks.next().unwrap());
        assert_eq!(looks.as_slice(), [6]);
    }

    #[tokio::test]
    async fn tasks_go_with_whoever_holds_them() {
        let (kept, hears) = tokio::sync::oneshot::channel::<()>();
        let mut tasks = Tasks::default();
        tasks.spawn("lease", async move {
            let _kept = kept;
            pending::<()>().await;
        });
        drop(tasks);
        assert!(hears.await.is_err());
    }
}
