//! A database for one test server.

use std::path::Path;

use sqlx::{AssertSqlSafe, Connection, PgConnection};

/// Where the data of a server is; gone when the test ends.
#[derive(Debug)]
pub struct Database {
    url: Option<String>,
}

impl Database {
    /// A fresh database, of the kind that `SOTTO_TEST_DATABASE_URL` says.
    pub async fn fresh() -> Self {
        let Ok(base) = std::env::var("SOTTO_TEST_DATABASE_URL") else {
            return Self { url: None };
        };
        let name = format!("sotto_test_{:016x}", rand::random::<u64>());
        let mut connection = PgConnection::connect(&base)
            .await
            .expect("SOTTO_TEST_DATABASE_URL can be reached");
        // The name is made of our own letters and digits.
        sqlx::query(AssertSqlSafe(format!("CREATE DATABASE {name}")))
            .execute(&mut connection)
            .await
            .expect("the role may create databases");
        let at = base.rfind('/').expect("the URL names a database");
        Self {
            url: Some(format!("{}/{name}", &base[..at])),
        }
    }

    /// The URL for the configuration; `None` for SQLite in the data directory.
    #[must_use]
    pub fn url(&self) -> Option<String> {
        self.url.clone()
    }

    /// The URL under which a test can look into the database of a server.
    #[must_use]
    pub fn inspect_url(&self, data_dir: &Path) -> String {
        self.url
            .clone()
            .unwrap_or_else(|| format!("sqlite://{}", data_dir.join("sotto.db").display()))
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let Some(url) = self.url.take() else { return };
        // Dropping needs a runtime of its own: this may run inside of one that is ending.
        let dropped = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .ok()?;
            runtime.block_on(async {
                let (base, name) = url.rsplit_once('/')?;
                let mut connection = PgConnection::connect(&format!("{base}/postgres"))
                    .await
                    .ok()?;
                let sql = format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)");
                sqlx::query(AssertSqlSafe(sql))
                    .execute(&mut connection)
                    .await
                    .ok()
            })
        });
        drop(dropped.join());
    }
}
