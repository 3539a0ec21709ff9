//! Answers a `pinion generate` on the same machine (see [`crate::resolve::peer`]).

use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::resolve::peer::{PeerPin, Request, line, read_line};
use crate::resolve::{Caller, Resolver};

/// Callers that are answered at a time; the others wait.
const AT_ONCE: usize = 64;

/// The longest that one may take: who asks has turned away by then.
const PATIENCE: Duration = Duration::from_secs(60);

/// Answers until it is dropped. `configuration` is a digest of what the registries' configuration is at the moment.
pub async fn answer(listener: UnixListener, resolver: Arc<Resolver>, configuration: impl Fn() -> String) {
    let turns = Arc::new(Semaphore::new(AT_ONCE));
    let mut callers = JoinSet::new();
    loop {
        let Ok(turn) = Arc::clone(&turns).acquire_owned().await else { return };
        let (stream, _) = match listener.accept().await {
            Ok(caller) => caller,
            Err(error) => {
                tracing::warn!(%error, "a pinion that asks for pins could not be let in");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        while callers.try_join_next().is_some() {}
        let (resolver, configuration) = (Arc::clone(&resolver), configuration());
        callers.spawn(async move {
            let _turn = turn;
            let _ = tokio::time::timeout(PATIENCE, one(stream, &resolver, &configuration)).await;
        });
    }
}

async fn one(mut stream: UnixStream, resolver: &Resolver, configuration: &str) -> std::io::Result<()> {
    let request: Request = serde_json::from_str(&read_line(&mut stream).await?)?;
    let question = request.question(configuration).filter(|question| resolver.key(question, &request.tenant) == request.key);
    let answer = match question {
        Some(question) => {
            let caller = Caller { tenant: &request.tenant, deadline: None };
            resolver.resolve(&[question], caller).await.remove(0).inspect_err(|error| {
                tracing::debug!(%error, "another pinion asked in vain");
            })
        }
        .ok(),
        None => None,
    };
    stream.write_all(&line(&answer.as_ref().and_then(PeerPin::of))?).await
}
