//! Keeps the index of the search up to date, a little behind the log so that it is written in large pieces.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::{
    service::search::{Search, is_wanted},
    storage::Storage,
};

/// How long the log goes on before its news are written to the index. Searches do not wait for that.
const PAUSE: Duration = Duration::from_millis(500);

/// Keeps the index.
pub(crate) struct SearchIndexer {
    storage: Storage,
    search: Search,
    stopping: CancellationToken,
}

impl SearchIndexer {
    pub(crate) fn new(storage: Storage, search: Search, stopping: CancellationToken) -> Self {
        Self {
            storage,
            search,
            stopping,
        }
    }

    /// Runs until the server stops.
    pub(crate) async fn run(self) {
        let work = async {
            let log = self.storage.log().follow(is_wanted);
            loop {
                match self.search.catch_up().await {
                    Ok(()) => log.woken().await,
                    Err(error) => {
                        tracing::error!(%error, "the index of the search cannot be kept");
                    }
                }
                tokio::time::sleep(PAUSE).await;
            }
        };
        tokio::select! {
            () = work => {}
            () = self.stopping.cancelled() => {}
        }
    }
}
