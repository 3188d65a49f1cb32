//! `sotto admin`: asks the server that runs, and prints what it says.

use std::{
    error::Error,
    io::{BufRead, Write},
    path::PathBuf,
};

use serde_json::{Map, Value};
use sotto_homeserver::{
    admin::{self, Ask, Command},
    config::{Config, Overrides},
};

/// Administer the server that runs on this machine
#[derive(Debug, clap::Args)]
pub(super) struct Admin {
    /// The configuration of the server, to find its data
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// Where its data lives
    #[arg(long, value_name = "DIR", global = true)]
    data_dir: Option<PathBuf>,
    /// Print JSON, for scripts
    #[arg(long, global = true)]
    json: bool,
    /// Read a new password from the standard input
    #[arg(long, global = true)]
    password_stdin: bool,
    #[command(subcommand)]
    command: Command,
}

/// Does what the arguments say.
pub(super) async fn run(arguments: Admin) -> Result<(), Box<dyn Error + Send + Sync>> {
    let overrides = Overrides {
        data_dir: arguments.data_dir,
        ..Overrides::default()
    };
    let config = Config::load(arguments.config.as_deref(), overrides)?;
    let mut password = None;
    if arguments.password_stdin {
        let mut line = String::new();
        std::io::stdin().lock().read_line(&mut line)?;
        password = Some(line.trim_end_matches(['\r', '\n']).to_owned());
    }
    let ask = Ask {
        command: arguments.command,
        password,
    };
    let answer = admin::ask(&config.data_dir, &ask).await?;
    let text = if arguments.json {
        format!("{answer:#}\n")
    } else {
        readable(&answer)
    };
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

/// A list as a table, anything else as lines.
fn readable(answer: &Value) -> String {
    match answer {
        Value::Array(items) if items.iter().all(Value::is_object) => table(
            &items
                .iter()
                .filter_map(Value::as_object)
                .collect::<Vec<_>>(),
        ),
        Value::Object(fields) => {
            let line = |name: &str| {
                let (value, title) = (fields.get(name)?, name.replace('_', " "));
                let things = value
                    .as_array()
                    .is_some_and(|items| items.iter().any(Value::is_object));
                Some(if things {
                    format!("\n{title}\n{}", readable(value))
                } else {
                    format!("{title:<16} {}\n", cell(name, value))
                })
            };
            names(fields).into_iter().filter_map(line).collect()
        }
        other => format!("{}\n", cell("", other)),
    }
}

fn table(rows: &[&Map<String, Value>]) -> String {
    let Some(first) = rows.first() else {
        return "none\n".to_owned();
    };
    let names = names(first);
    let cells = |row: &&Map<String, Value>| -> Vec<String> {
        let value = |name: &&str| cell(name, row.get(*name).unwrap_or(&Value::Null));
        names.iter().map(value).collect()
    };
    let mut lines = vec![names.iter().map(|name| name.replace('_', " ")).collect()];
    lines.extend(rows.iter().map(cells));
    let widths: Vec<usize> = (0..names.len())
        .map(|column| {
            let cells = lines
                .iter()
                .filter_map(|line: &Vec<String>| line.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    for line in lines {
        let padded = line
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"));
        text.push_str(padded.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// What names a thing comes first.
fn names(fields: &Map<String, Value>) -> Vec<&str> {
    let names_it = |name: &str| ["user_id", "room_id", "device_id", "uri", "hash"].contains(&name);
    let mut names: Vec<&str> = fields.keys().map(String::as_str).collect();
    names.sort_by_key(|name| !names_it(name));
    names
}

fn cell(name: &str, value: &Value) -> String {
    let time = name.ends_with("_at") || name == "last_seen";
    match value {
        Value::Null => "-".to_owned(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) if items.is_empty() => "none".to_owned(),
        Value::Array(items) => {
            let items: Vec<_> = items.iter().map(|item| cell(name, item)).collect();
            items.join(", ")
        }
        Value::Number(number) if time => number.as_i64().map(date).unwrap_or_default(),
        other => other.to_string(),
    }
}

/// A time in milliseconds since the Unix epoch, as a date and a time of day in UTC.
fn date(milliseconds: i64) -> String {
    let minutes = milliseconds.div_euclid(60_000);
    let (days, minute) = (minutes.div_euclid(1440), minutes.rem_euclid(1440));
    // Years begin with March here, so that leap days come last; 719468 days before 1970 one of them began an
    // era of 400 years.
    let days = days + 719_468;
    let (era, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 {
        (month + 3, 0)
    } else {
        (month - 9, 1)
    };
    let year = era * 400 + year + next;
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02}",
        minute / 60,
        minute % 60
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn dates() {
        for (milliseconds, expected) in [
            (0, "1970-01-01 00:00"),
            (951_782_399_000, "2000-02-28 23:59"),
            (951_782_400_000, "2000-02-29 00:00"),
            (951_868_800_000, "2000-03-01 00:00"),
            (1_796_083_200_000, "2026-12-01 00:00"),
        ] {
            assert_eq!(date(milliseconds), expected);
        }
    }

    #[test]
    fn lists_are_tables() {
        let list = json!([
            { "locked": false, "user_id": "@a:b", "created_at": 0 },
            { "locked": true, "user_id": "@long:b", "created_at": null },
        ]);
        assert_eq!(
            readable(&list),
            "user id  created at        locked\n\
             @a:b     1970-01-01 00:00  no\n\
             @long:b  -                 yes\n"
        );
        assert_eq!(readable(&json!([])), "none\n");
        assert_eq!(readable(&json!({ "done": true })), "done             yes\n");
    }
}
