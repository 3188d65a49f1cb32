//! The few real differences between SQLite and PostgreSQL, and the only place where SQL text is put
//! together at run time.

use sqlx::{
    Any, AnyConnection, AssertSqlSafe, SqlSafeStr, any::AnyArguments, migrate::Migrator,
    query::Query,
};

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
            Self::Postgres => "SET synchronous_commit = on; SET TIME ZONE 'UTC'",
        };
        sqlx::raw_sql(text).execute(connection).await.map(drop)
    }

    /// The tables as this database wants them: on SQLite only an `INTEGER PRIMARY KEY` is the table
    /// itself, every other key is an index beside it, written with every row.
    pub(super) fn migrator(self) -> Migrator {
        let mut migrator = sqlx::migrate!("./migrations");
        if self == Self::Sqlite {
            for migration in migrator.migrations.to_mut() {
                let text = migration.sql.as_str();
                let text = text.replace(
                    "BIGINT NOT NULL PRIMARY KEY",
                    "INTEGER NOT NULL PRIMARY KEY",
                );
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

    /// One whole transaction in one trip: an update that must change one row, and then an insert of
    /// `values` that gives back `returning`. Nothing changes if the update finds no row.
    pub(super) fn update_then_insert(self, update: &str, insert: &Insert) -> String {
        let Insert {
            into,
            values,
            conflict,
            returning,
        } = insert;
        match self {
            Self::Sqlite => format!(
                "{}; {update}; INSERT INTO {into} SELECT {values} WHERE changes() = 1 {conflict} \
                 RETURNING {returning}; COMMIT",
                self.begin()
            ),
            Self::Postgres => format!(
                "WITH updated AS ({update} RETURNING 1) INSERT INTO {into} SELECT {values} \
                 FROM updated {conflict} RETURNING {returning}"
            ),
        }
    }
}

/// The parts of an `INSERT … SELECT`.
pub(super) struct Insert<'t> {
    /// The table and its columns.
    pub(super) into: &'t str,
    /// A value for each column.
    pub(super) values: &'t str,
    /// The `ON CONFLICT` clause.
    pub(super) conflict: &'t str,
    /// The column that is given back.
    pub(super) returning: &'t str,
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
