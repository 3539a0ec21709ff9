//! The background tasks of `pinion serve`. Each runs until the server is told to stop; one that ends before ends the server.
//!
//! A task that is gone and missed by nobody is worse than a restart: registries.conf would no longer be followed, or the admin port be
//! silent. Tests end each task by a failpoint, `FAILPOINTS=task::admin=return` or `=panic`; release builds have none.

use std::collections::HashMap;
use std::fmt;

use anyhow::anyhow;
use tokio::task::{Id, JoinSet};

/// A task by its name. A new one goes into [`Task::ALL`], too, or it is not spawned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Answers Argo CD on the plugin socket.
    Plugin,
    /// Answers on the admin port.
    Admin,
    /// Follows registries.conf.
    Registries,
    /// Answers `pinion generate` on the pins socket.
    Pins,
    /// Waits for the threads of the store, which are none of tokio's: a store that is gone would keep nothing.
    Store,
}

impl Task {
    /// All there are.
    pub const ALL: [Self; 5] = [Self::Plugin, Self::Admin, Self::Registries, Self::Pins, Self::Store];
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plugin => "plugin",
            Self::Admin => "admin",
            Self::Registries => "registries",
            Self::Pins => "pins",
            Self::Store => "store",
        })
    }
}

/// Tasks that run. They are aborted when this is dropped.
#[derive(Debug, Default)]
pub struct Tasks {
    set: JoinSet<anyhow::Result<()>>,
    running: HashMap<Id, Task>,
}

impl Tasks {
    /// Starts a task.
    ///
    /// # Panics
    ///
    /// When it is not in [`Task::ALL`], and so not tested.
    pub fn spawn(&mut self, task: Task, work: impl Future<Output = anyhow::Result<()>> + Send + 'static) {
        assert!(Task::ALL.contains(&task), "`{task}` is in the list of all tasks");
        let work = async move {
            fail::fail_point!(&format!("task::{task}"), |_| Ok(()));
            work.await
        };
        self.running.insert(self.set.spawn(work).id(), task);
    }

    /// Waits for the next task that ends. An error says how: none should. Pending if none runs.
    pub async fn ended(&mut self) -> (Task, anyhow::Error) {
        let Some(joined) = self.set.join_next_with_id().await else { return std::future::pending().await };
        let (id, reason) = match joined {
            Ok((id, Ok(()))) => (id, anyhow!("it returned")),
            Ok((id, Err(error))) => (id, error),
            Err(error) => (error.id(), error.into()),
        };
        let task = self.running.remove(&id).expect("each is entered when it is spawned");
        (task, reason.context(format!("the task `{task}` ended before the server was told to stop")))
    }

    /// Waits for the end of one task, which was told to stop.
    pub async fn wait_for(&mut self, task: Task) {
        while self.running.values().any(|running| *running == task) {
            let (ended, error) = self.ended().await;
            if ended != task {
                tracing::error!("{error:#}");
            }
        }
    }
}
