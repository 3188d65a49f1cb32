//! The few real differences between SQLite and PostgreSQL, and the only place where SQL text is put
//! together at run time.

use std::time::Duration;

use futures_util::TryStreamExt;
use sqlx::{
    Any, AnyConnection, AssertSqlSafe, Either, Executor, SqlSafeStr,
    any::{AnyArguments, AnyQueryResult, AnyRow},
    migrate::Migrator,
    query::Query,
};

use super::StorageError;

/// How often it is tried to be alone in a database, and how long is waited in between: ten seconds in all.
const ATTEMPTS: u32 = 500;
const PAUSE: Duration = Duration::from_millis(20);

/// Which database this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// SQLite in WAL mode, one process.
    Sqlite,
    /// `PostgreSQL` 13 or newer.
    Postgres,
}

impl Dialect {
    /// The dialect that a database URL speaks.
    #[must_use]
    pub(crate) fn of(url: &str) -> Self {
        if url.starts_with("postgres") {
            Self::Postgres
        } else {
            Self::Sqlite
        }
    }

    /// What is said to a connection when it opens. Commits of both databases return after an fsync.
    pub(super) async fn prepare(self, connection: &mut AnyConnection) -> sqlx::Result<()> {
        let text = match self {
            Self::Sqlite => {
                "PRAGMA busy_timeout = 10000; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; \
                 PRAGMA foreign_keys = ON; PRAGMA cache_size = -4096; PRAGMA temp_store = MEMORY; \
                 PRAGMA wal_autocheckpoint = 4000"
            }
            Self::Postgres => {
                "SET synchronous_commit = on; SET TIME ZONE 'UTC'; SET application_name = 'sotto'"
            }
        };
        sqlx::raw_sql(text).execute(connection).await.map(drop)
    }

    /// Makes sure that nobody else uses the database, as long as the connection lives. A file is locked with
    /// its folder. `PostgreSQL` goes on with what a server began that was killed since: had it committed
    /// after we read how far the log is, memory would miss it for good.
    pub(super) async fn take_over(
        self,
        connection: &mut AnyConnection,
    ) -> Result<(), StorageError> {
        if self == Self::Sqlite {
            return Ok(());
        }
        for sql in [
            // Any number, the same for each server.
            "SELECT CAST(pg_try_advisory_lock(495791141999) AS INTEGER)",
            "SELECT CAST(COUNT(pg_terminate_backend(pid)) = 0 AS INTEGER) FROM pg_stat_activity \
             WHERE datname = current_database() AND application_name = 'sotto' \
             AND pid <> pg_backend_pid()",
        ] {
            let mut attempts = 0;
            while sqlx::query_scalar::<_, i32>(sql)
                .fetch_one(&mut *connection)
                .await?
                == 0
            {
                attempts += 1;
                if attempts == ATTEMPTS {
                    return Err(StorageError::InUse);
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
        Ok(())
    }

    /// The tables as this database wants them: on SQLite only an `INTEGER PRIMARY KEY` is the table
    /// itself, every other key is an index beside it, written with every row, unless the table says
    /// `WITHOUT ROWID`.
    pub(super) fn migrator(self) -> Migrator {
        let mut migrator = sqlx::migrate!("./migrations");
        if self == Self::Sqlite {
            for migration in migrator.migrations.to_mut() {
                let text = migration.sql.as_str();
                let text = text.replace(
                    "BIGINT NOT NULL PRIMARY KEY",
                    "INTEGER NOT NULL PRIMARY KEY",
                );
                let text = text.replace("/* WITHOUT ROWID */", "WITHOUT ROWID");
                migration.sql = AssertSqlSafe(text).into_sql_str();
            }
        }
        migrator
    }

    /// How a write transaction begins: on SQLite it takes the write lock at once, because a read lock
    /// cannot be turned into one while somebody else writes.
    pub(super) fn begin(self) -> &'static str {
        match self {
            Self::Sqlite => "BEGIN IMMEDIATE",
            Self::Postgres => "BEGIN",
        }
    }

    /// What makes [`Dialect::update_then_insert`] possible on a connection: on SQLite a trigger, because
    /// there no statement changes two tables, and a statement that is not the last one of several wakes
    /// whoever waits for the answer.
    pub(super) async fn prepare_update_then_insert(
        self,
        connection: &mut AnyConnection,
        parts: &UpdateThenInsert<'_>,
    ) -> sqlx::Result<()> {
        let UpdateThenInsert {
            name,
            parameters,
            update,
            into,
            values,
            conflict,
        } = parts;
        if self == Self::Postgres {
            return Ok(());
        }
        let columns: Vec<_> = (1..=*parameters).map(|n| format!("0 AS p{n}")).collect();
        let text = format!(
            "CREATE TEMP VIEW IF NOT EXISTS {name} AS SELECT {}; \
             CREATE TEMP TRIGGER IF NOT EXISTS into_{name} INSTEAD OF INSERT ON {name} BEGIN {}; \
             SELECT RAISE(ABORT, 'no row to update') WHERE changes() = 0; \
             INSERT INTO {into} VALUES ({}) {conflict}; END",
            columns.join(","),
            update.replace('$', "NEW.p"),
            values.replace('$', "NEW.p"),
        );
        let text = AssertSqlSafe(text);
        sqlx::raw_sql(text).execute(connection).await.map(drop)
    }

    /// One whole transaction in one statement: an update that must change one row, and then an insert.
    /// Nothing changes if the update finds no row. It is run with [`Dialect::run_update_then_insert`].
    pub(super) fn update_then_insert(self, parts: &UpdateThenInsert<'_>) -> String {
        let UpdateThenInsert {
            name,
            parameters,
            update,
            into,
            values,
            conflict,
        } = parts;
        match self {
            Self::Sqlite => format!("INSERT INTO {name} VALUES ({})", numbered(1, *parameters)),
            Self::Postgres => format!(
                "WITH updated AS ({update} RETURNING 1) INSERT INTO {into} SELECT {values} \
                 FROM updated {conflict}"
            ),
        }
    }

    /// Runs the statement that [`Dialect::update_then_insert`] made; whether it found a row to update.
    pub(super) async fn run_update_then_insert(
        self,
        query: Query<'_, Any, AnyArguments>,
        connection: &mut AnyConnection,
    ) -> sqlx::Result<bool> {
        /// `SQLITE_CONSTRAINT_TRIGGER`: what a trigger raised.
        const RAISED: &str = "1811";
        match self.execute(query, connection).await {
            Ok(done) => Ok(self == Self::Sqlite || done.rows_affected() > 0),
            Err(sqlx::Error::Database(error)) if error.code().is_some_and(|c| c == RAISED) => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Runs one statement that gives no rows. SQLite has finished, and committed, when it tells the result:
    /// whoever waited for the end of the answers would be woken twice, and the second time while the thread
    /// of the connection holds their lock. `PostgreSQL` tells the result before it commits.
    pub(super) async fn execute(
        self,
        query: Query<'_, Any, AnyArguments>,
        connection: &mut AnyConnection,
    ) -> sqlx::Result<AnyQueryResult> {
        if self == Self::Postgres {
            return query.execute(connection).await;
        }
        let mut answers = connection.fetch_many(query);
        while let Some(answer) = answers.try_next().await? {
            if let Either::Left(result) = answer {
                return Ok(result);
            }
        }
        Ok(AnyQueryResult::default())
    }
}

/// The parts of an update that is followed by an insert.
pub(super) struct UpdateThenInsert<'t> {
    /// What the whole is called, unlike any table.
    pub(super) name: &'t str,
    /// How many values are bound to it: `$1`, `$2`, ….
    pub(super) parameters: usize,
    /// The `UPDATE`.
    pub(super) update: &'t str,
    /// The table to insert into, and its columns.
    pub(super) into: &'t str,
    /// A value for each column.
    pub(super) values: &'t str,
    /// The `ON CONFLICT` clause.
    pub(super) conflict: &'t str,
}

/// A query whose text was made by the functions below: placeholders and names from our own source, never
/// anything that came from outside.
pub(super) fn query<'q>(sql: String) -> Query<'q, Any, AnyArguments> {
    sqlx::query(AssertSqlSafe(sql))
}

/// `$first, …, $last` for an `IN` list of `count` values, numbered from `first`.
pub(super) fn numbered(first: usize, count: usize) -> String {
    let mut text = String::with_capacity(count * 5);
    for n in first..first + count {
        if n > first {
            text.push(',');
        }
        text.push('$');
        text.push_str(&n.to_string());
    }
    text
}

/// `($1, $2), ($3, $4) …` for `rows` rows of `columns` values.
pub(super) fn rows(rows: usize, columns: usize) -> String {
    let mut text = String::with_capacity(rows * columns * 6);
    for row in 0..rows {
        if row > 0 {
            text.push(',');
        }
        text.push('(');
        text.push_str(&numbered(1 + row * columns, columns));
        text.push(')');
    }
    text
}

/// Cuts `items` into pieces of few different lengths, so that few statements need preparing: powers of
/// two up to 64.
pub(super) fn pieces<T>(mut items: &[T]) -> Vec<&[T]> {
    let mut pieces = Vec::new();
    while !items.is_empty() {
        let size = (1 << items.len().ilog2()).min(64);
        let (piece, rest) = items.split_at(size);
        pieces.push(piece);
        items = rest;
    }
    pieces
}

/// The rows for keys, asked for in pieces. `query` makes a query from the list that goes into its `IN (…)`,
/// numbered from `first`, and binds what comes before that; `bind` adds one key.
pub(super) async fn rows_for<'q, K>(
    connection: &mut AnyConnection,
    keys: &'q [K],
    first: usize,
    query: impl Fn(String) -> Query<'q, Any, AnyArguments>,
    bind: impl Fn(Query<'q, Any, AnyArguments>, &'q K) -> Query<'q, Any, AnyArguments>,
) -> sqlx::Result<Vec<AnyRow>> {
    let mut found = Vec::with_capacity(keys.len());
    for piece in pieces(keys) {
        let query = query(numbered(first, piece.len()));
        let query = piece.iter().fold(query, &bind);
        found.extend(query.fetch_all(&mut *connection).await?);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders() {
        assert_eq!(numbered(3, 2), "$3,$4");
        assert_eq!(rows(2, 2), "($1,$2),($3,$4)");
        let sizes: Vec<_> = pieces(&[0; 101]).iter().map(|piece| piece.len()).collect();
        assert_eq!(sizes, [64, 32, 4, 1]);
    }
}
