//! Where a server listens.

use std::{fs::Permissions, net::SocketAddr, os::unix::fs::PermissionsExt, path::Path};

use axum::Router;
use tokio::net::{TcpListener, UnixListener};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::StartError;
use crate::{admin, config::Config, listen};

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

/// Listens for whoever runs the server, where nobody else can come. Without it the server runs as well.
pub(super) fn listen_admin(
    data_dir: &Path,
    router: Router,
    stopping: &CancellationToken,
    tasks: &TaskTracker,
) {
    match bind_admin(data_dir) {
        Ok(listener) => {
            let stopping = stopping.clone().cancelled_owned();
            tasks.spawn(async move {
                let serve = axum::serve(listener, router).with_graceful_shutdown(stopping);
                drop(serve.await);
            });
        }
        Err(error) => tracing::warn!(%error, "`sotto admin` cannot reach this server"),
    }
}

fn bind_admin(data_dir: &Path) -> std::io::Result<UnixListener> {
    let socket = admin::socket(data_dir);
    let folder = socket.parent().unwrap_or(data_dir);
    std::fs::create_dir_all(folder)?;
    // Before there is a socket in it.
    std::fs::set_permissions(folder, Permissions::from_mode(0o700))?;
    match std::fs::remove_file(&socket) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        // The lock on the data says that nobody listens there.
        _ => UnixListener::bind(&socket),
    }
}

pub(super) async fn bind(address: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let failed = |source| StartError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
}
