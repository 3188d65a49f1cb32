//! A database that was put back from a backup: what was handed out since is not handed out again.

use std::{collections::BTreeSet, path::PathBuf};

use serde_json::{Value, json};
use sotto_homeserver::{Homeserver, clock::Clock, config::Config};
use sotto_tests::{Database, TestServer, User};
use sqlx::{AnyConnection, AssertSqlSafe, Connection};

use super::encryption::{UPLOAD, claim, one_time_key, upload_device};

/// A copy of the database, made while the server runs or stands. On `PostgreSQL` it is a copy of the tables
/// that matter here.
struct Backup {
    file: Option<PathBuf>,
}

impl Backup {
    async fn of(server: &TestServer) -> Self {
        let url = server.database_url();
        let file = url
            .starts_with("sqlite")
            .then(|| server.directory().join("backup.db"));
        if let Some(file) = &file {
            run(server, &[&format!("VACUUM INTO '{}'", file.display())]).await;
        } else {
            let tables = [
                "CREATE TABLE kept_keys AS SELECT * FROM one_time_keys",
                "CREATE TABLE kept_fallback_keys AS SELECT * FROM fallback_keys",
                "CREATE TABLE kept_facts AS SELECT * FROM facts",
            ];
            run(server, &tables).await;
        }
        Self { file }
    }

    /// Puts the copy in the place of the database of a server that does not run.
    async fn restore(self, server: &TestServer) {
        let Some(file) = self.file else {
            let tables = [
                "DELETE FROM one_time_keys",
                "INSERT INTO one_time_keys SELECT * FROM kept_keys",
                "DELETE FROM fallback_keys",
                "INSERT INTO fallback_keys SELECT * FROM kept_fallback_keys",
                "DELETE FROM facts",
                "INSERT INTO facts SELECT * FROM kept_facts",
            ];
            return run(server, &tables).await;
        };
        for ending in ["-wal", "-shm"] {
            let beside = server.data_dir().join(format!("sotto.db{ending}"));
            assert!(!beside.exists(), "a server that stopped has nothing open");
        }
        std::fs::rename(file, server.data_dir().join("sotto.db")).unwrap();
    }
}

async fn run(server: &TestServer, statements: &[&str]) {
    sqlx::any::install_default_drivers();
    let mut connection = AnyConnection::connect(&server.database_url())
        .await
        .unwrap();
    for statement in statements {
        // Of this file, with a path that we made.
        sqlx::query(AssertSqlSafe(*statement))
            .execute(&mut connection)
            .await
            .unwrap();
    }
    connection.close().await.unwrap();
}

/// A server on a port that it keeps, Alice with ten keys and a fallback key, Bob, and Alice's upload.
async fn server() -> (TestServer, User, User, Value) {
    let mut server = TestServer::start().await;
    server.restart().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let key = upload_device(&alice).await;
    let ten: serde_json::Map<_, _> = (0..10)
        .map(|n| (format!("signed_curve25519:{n}"), one_time_key(&alice, &key)))
        .collect();
    let last = json!({ "signed_curve25519:last": one_time_key(&alice, &key) });
    let body = json!({ "one_time_keys": ten, "fallback_keys": last });
    alice.post(UPLOAD, &body).await.ok();
    (server, alice, bob, body)
}

async fn id(claimed_by: &User, of: &User) -> String {
    claim(claimed_by, of).await.unwrap().0
}

/// How many keys the server has, and whether it asks for a fallback key.
async fn stock(user: &User) -> (Value, Value) {
    let sync = user.sync(None, 0).await;
    (
        sync["device_one_time_keys_count"]["signed_curve25519"].clone(),
        sync["device_unused_fallback_key_types"].clone(),
    )
}

fn full(count: u32) -> (Value, Value) {
    (count.into(), json!(["signed_curve25519"]))
}

fn nothing() -> (Value, Value) {
    (0.into(), json!([]))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_keeps_one_time_keys() {
    let (mut server, alice, bob, _) = server().await;
    let mut ids = BTreeSet::new();
    for left in [9, 8, 7] {
        assert!(ids.insert(id(&bob, &alice).await));
        server.restart().await;
        assert_eq!(stock(&alice).await, full(left));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_made_between_two_runs_has_no_keys() {
    let (mut server, alice, bob, _) = server().await;
    server.stop().await;
    let backup = Backup::of(&server).await;
    server.resume().await;
    assert_eq!(id(&bob, &alice).await, "signed_curve25519:0");
    server.stop().await;
    backup.restore(&server).await;
    server.resume().await;
    assert_eq!(stock(&alice).await, nothing());
    assert_eq!(id(&bob, &alice).await, "signed_curve25519:last");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_made_before_the_last_claim_has_no_keys() {
    let (mut server, alice, bob, upload) = server().await;
    let backup = Backup::of(&server).await;
    assert_eq!(id(&bob, &alice).await, "signed_curve25519:0");
    server.stop().await;
    backup.restore(&server).await;
    server.resume().await;
    assert_eq!(stock(&alice).await, nothing());
    alice.post(UPLOAD, &upload).await.ok();
    assert_eq!(stock(&alice).await, nothing(), "these may be known already");
    server.restart().await;
    assert_eq!(id(&bob, &alice).await, "signed_curve25519:last");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_made_after_the_last_claim_keeps_its_keys() {
    let (mut server, alice, bob, _) = server().await;
    assert_eq!(id(&bob, &alice).await, "signed_curve25519:0");
    let backup = Backup::of(&server).await;
    server.stop().await;
    backup.restore(&server).await;
    server.resume().await;
    assert_eq!(stock(&alice).await, full(9));
    assert_eq!(id(&bob, &alice).await, "signed_curve25519:1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_without_its_mark_has_no_keys() {
    let (mut server, alice, _, _) = server().await;
    server.stop().await;
    std::fs::remove_file(server.data_dir().join("otk-epoch")).unwrap();
    server.resume().await;
    assert_eq!(stock(&alice).await, nothing());
}

/// A file is locked with its folder; this is about databases that are servers themselves.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_alone_in_its_database() {
    let database = Database::fresh().await;
    let Some(url) = database.url() else {
        return;
    };
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let [one, other] = folders.each_ref().map(|folder| {
        let mut config = Config::new(ruma::owned_server_name!("alone.test"));
        config.data_dir = folder.path().to_owned();
        config.listen = ([127, 0, 0, 1], 0).into();
        config.database = Some(url.clone());
        config
    });
    Homeserver::start(one.clone(), Clock::system())
        .await
        .unwrap()
        .stop()
        .await;
    // What one that was killed has left: a commit that is still to come.
    let mut left = AnyConnection::connect(&url).await.unwrap();
    for sql in [
        "SET application_name = 'sotto'",
        "BEGIN",
        "INSERT INTO facts (name, value) VALUES ('left', 'over')",
    ] {
        sqlx::query(sql).execute(&mut left).await.unwrap();
    }
    let server = Homeserver::start(one, Clock::system()).await.unwrap();
    assert!(sqlx::query("COMMIT").execute(&mut left).await.is_err());
    let refused = Homeserver::start(other, Clock::system()).await;
    let refused = refused.err().unwrap().to_string();
    assert!(refused.contains("another sotto"), "{refused}");
    server.stop().await;
}
