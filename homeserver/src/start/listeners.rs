//! Where a server listens.

use std::net::SocketAddr;

use axum::Router;
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::StartError;
use crate::{config::Config, listen};

/// Listens for other servers with TLS, if the configuration says so; where.
pub(super) async fn listen_tls(
    config: &Config,
    router: Router,
    stopping: &CancellationToken,
    tasks: &TaskTracker,
) -> Result<Option<SocketAddr>, StartError> {
    let settings = &config.federation;
    let (Some(at), Some(certificate), Some(private_key)) = (
        settings.listen,
        &settings.certificate,
        &settings.private_key,
    ) else {
        return Ok(None);
    };
    let tls = listen::tls_acceptor(certificate, private_key)?;
    let (listener, address) = bind(at).await?;
    tasks.spawn(listen::serve(listener, Some(tls), router, stopping.clone()));
    Ok(Some(address))
}

pub(super) async fn bind(address: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let failed = |source| StartError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
}
