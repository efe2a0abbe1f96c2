//! Tasks that run beside a program's own work for as long as it does. This is the one place where tasks are made, and
//! each is awaited: a status that nobody writes any more must not stand still under a lease that somebody renews.

use std::collections::HashMap;
use std::future::Future;

use tokio::task::{Id, JoinError, JoinSet};

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
        none.beside(async { Ok::<_, Ended>(tokio::task::yield_now().await) }).await.unwrap();
    }

    #[tokio::test]
    async fn tasks_go_with_whoever_holds_them() {
        let (kept, hears) = tokio::sync::oneshot::channel::<()>();
        let mut tasks = Tasks::default();
        tasks.spawn("lease", async move {
            let _kept = kept;
            pending().await
        });
        drop(tasks);
        assert!(hears.await.is_err());
    }
}
