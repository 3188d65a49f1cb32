//! What whoever holds a database can read in it: for the demonstration that it is not what people said.

use sqlx::{AnyConnection, Connection, Row};

use super::{
    StorageError,
    dialect::{self, Dialect},
};

/// Databases for a demonstration, on the `PostgreSQL` server at `url`; their URLs.
pub async fn create_databases(url: &str, names: &[String]) -> Result<Vec<String>, StorageError> {
    sqlx::any::install_default_drivers();
    let mut connection = AnyConnection::connect(url).await?;
    let base = url.rfind('/').map_or(url, |at| &url[..at]);
    let mut urls = Vec::new();
    for name in names {
        dialect::query(format!("CREATE DATABASE {name}"))
            .persistent(false)
            .execute(&mut connection)
            .await?;
        urls.push(format!("{base}/{name}"));
    }
    Ok(urls)
}

/// Removes what [`create_databases`] made.
pub async fn drop_databases(url: &str, names: &[String]) -> Result<(), StorageError> {
    let mut connection = AnyConnection::connect(url).await?;
    for name in names {
        let sql = format!("DROP DATABASE IF EXISTS {name}");
        dialect::query(sql)
            .persistent(false)
            .execute(&mut connection)
            .await?;
    }
    Ok(())
}

/// The newest events of a room as the database has them, oldest first.
pub async fn stored_events(url: &str, room_id: &str) -> Result<Vec<String>, StorageError> {
    sqlx::any::install_default_drivers();
    let mut connection = AnyConnection::connect(url).await?;
    let rows = sqlx::query(
        "SELECT events.json FROM events JOIN rooms ON rooms.room_nid = events.room_nid
         WHERE rooms.room_id = $1 AND events.position IS NOT NULL ORDER BY events.position",
    )
    .bind(room_id)
    .fetch_all(&mut connection)
    .await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

/// Every row of every table, as text; bytes as hexadecimal digits. Nothing for SQLite, whose database is a
/// file that can be searched as it is.
pub async fn all_rows(url: &str) -> Result<Vec<String>, StorageError> {
    if Dialect::of(url) == Dialect::Sqlite {
        return Ok(Vec::new());
    }
    let mut connection = AnyConnection::connect(url).await?;
    let tables: Vec<String> = sqlx::query_scalar(
        "SELECT CAST(table_name AS TEXT) FROM information_schema.tables WHERE table_schema = 'public'",
    )
    .fetch_all(&mut connection)
    .await?;
    let mut found = Vec::new();
    for table in tables {
        let rows: Vec<String> = sqlx::query_scalar(sqlx::AssertSqlSafe(format!(
            "SELECT CAST(t AS TEXT) FROM {table} AS t"
        )))
        .fetch_all(&mut connection)
        .await?;
        found.extend(rows);
    }
    Ok(found)
}
