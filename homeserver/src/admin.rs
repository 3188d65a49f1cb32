//! What `sotto admin` asks of a running server, and how.
//!
//! The server listens on a socket in its data directory, in a folder that only its own user can enter: whoever
//! can read the database may administer it, and nobody else. So everything goes through the services of the
//! server that runs, with its caches and its log; nothing is ever written beside it.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use clap::Subcommand;
use ruma::{OwnedMxcUri, OwnedRoomId, OwnedServerName};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What can be asked.
#[derive(Clone, Debug, Deserialize, Serialize, Subcommand)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// Accounts
    #[command(subcommand)]
    Users(Users),
    /// Rooms
    #[command(subcommand)]
    Rooms(Rooms),
    /// Files
    #[command(subcommand)]
    Media(Media),
    /// Tokens with which people register
    #[command(subcommand)]
    Tokens(Tokens),
}

/// Accounts. A user is named by a full id, or by the part before the colon.
#[derive(Clone, Debug, Deserialize, Serialize, Subcommand)]
#[serde(rename_all = "snake_case")]
pub enum Users {
    /// List accounts
    List {
        /// Only those whose names contain this
        #[arg(default_value = "")]
        name: String,
        /// At most so many
        #[arg(long, default_value_t = 100)]
        limit: u32,
    },
    /// Show an account with its devices
    Show {
        /// Who
        user: String,
    },
    /// Make an account, with a password that is shown, or that is read with --password-stdin
    Create {
        /// The name
        user: String,
        /// Whether it may administer the server from a client
        #[arg(long)]
        admin: bool,
    },
    /// Set another password, that is shown, or that is read with --password-stdin
    ResetPassword {
        /// Who
        user: String,
        /// Leave the user logged in where they are
        #[arg(long)]
        keep_devices: bool,
    },
    /// End an account for ever
    Deactivate {
        /// Who
        user: String,
        /// Also hide what they said from those who come later
        #[arg(long)]
        erase: bool,
    },
    /// Let a user administer the server from a client
    MakeAdmin {
        /// Who
        user: String,
        /// Take it back
        #[arg(long)]
        revoke: bool,
    },
    /// Lock an account: its user can do nothing but log out
    Lock {
        /// Who
        user: String,
        /// Unlock it
        #[arg(long)]
        undo: bool,
    },
    /// Log a user out: everywhere, or one device
    LogOut {
        /// Who
        user: String,
        /// The id of the device
        device: Option<String>,
    },
}

/// Rooms.
#[derive(Clone, Debug, Deserialize, Serialize, Subcommand)]
#[serde(rename_all = "snake_case")]
pub enum Rooms {
    /// List the rooms that users of this server are in, the largest first
    List {
        /// At most so many
        #[arg(long, default_value_t = 100)]
        limit: usize,
    },
    /// Show a room and who of this server is in it
    Show {
        /// Its id
        room: OwnedRoomId,
    },
    /// Let nobody of this server join a room
    Block {
        /// Its id
        room: OwnedRoomId,
        /// Let them again
        #[arg(long)]
        undo: bool,
    },
    /// Make everybody of this server leave a room, and take its addresses of this server away
    Delete {
        /// Its id
        room: OwnedRoomId,
        /// Also block it
        #[arg(long)]
        block: bool,
    },
}

/// Files.
#[derive(Clone, Debug, Deserialize, Serialize, Subcommand)]
#[serde(rename_all = "snake_case")]
pub enum Media {
    /// List files, the newest first
    List {
        /// Only those that this user uploaded
        #[arg(long)]
        user: Option<String>,
        /// Those of another server
        #[arg(long, conflicts_with = "user")]
        server: Option<OwnedServerName>,
        /// At most so many
        #[arg(long, default_value_t = 100)]
        limit: u32,
    },
    /// Throw away files of other servers; they are fetched again when somebody asks for them
    PurgeRemote {
        /// Those that nobody has asked for in so many days
        #[arg(long)]
        days: u32,
    },
    /// Let nobody see a file
    Quarantine {
        /// mxc://…
        uri: OwnedMxcUri,
        /// Let everybody see it again
        #[arg(long)]
        undo: bool,
    },
    /// Delete a file
    Delete {
        /// mxc://…
        uri: OwnedMxcUri,
    },
}

/// Registration tokens. Only hashes of them are kept, so that they can be listed but not read.
#[derive(Clone, Debug, Deserialize, Serialize, Subcommand)]
#[serde(rename_all = "snake_case")]
pub enum Tokens {
    /// List the tokens by the beginnings of their hashes
    List,
    /// Make a token
    Create {
        /// For so many accounts
        #[arg(long)]
        uses: Option<u32>,
        /// For so many days
        #[arg(long)]
        days: Option<u32>,
    },
    /// Make a token worthless
    Revoke {
        /// The token, or the beginning of its hash
        token: String,
    },
}

/// A question: a command, and the password that it needs.
#[derive(Deserialize, Serialize)]
pub struct Ask {
    /// What to do.
    pub command: Command,
    /// A new password; a random one if there is none.
    #[serde(default)]
    pub password: Option<String>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody listens.
    #[error("no server runs on {path}: {source}")]
    NotRunning {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: reqwest::Error,
    },
    /// No HTTP.
    #[error("no HTTP client can be made: {0}")]
    Http(#[from] rustls::Error),
    /// The server said no.
    #[error("{0}")]
    Refused(String),
}

/// The socket of the server with this data directory.
#[must_use]
pub fn socket(data_dir: &Path) -> PathBuf {
    data_dir.join("admin").join("socket")
}

/// Asks the server that runs with this data directory.
pub async fn ask(data_dir: &Path, ask: &Ask) -> Result<Value, AskError> {
    let path = socket(data_dir);
    let failed = |source| AskError::NotRunning {
        path: path.clone(),
        source,
    };
    // There is no TLS on a socket, but reqwest makes no client without.
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let client = reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .no_proxy()
        .unix_socket(path.clone())
        .build()
        .map_err(failed)?;
    let request = client.post("http://localhost/").json(ask);
    let answer = request.send().await.map_err(failed)?;
    let good = answer.status().is_success();
    let answer: Value = answer.json().await.map_err(failed)?;
    if good {
        return Ok(answer);
    }
    let said = answer.get("error").and_then(Value::as_str);
    Err(AskError::Refused(said.unwrap_or_default().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In a process where nobody else has set anything up for TLS.
    #[tokio::test]
    async fn where_no_server_runs_nobody_answers() {
        let command = Command::Tokens(Tokens::List);
        let asked = Ask {
            command,
            password: None,
        };
        let answer = ask(Path::new("/nonexistent"), &asked).await;
        assert!(matches!(answer, Err(AskError::NotRunning { .. })));
    }
}
