//! The invariants of ARCHITECTURE.md and the limits of the style, as far as text shows them.

use std::path::{Path, PathBuf};

/// The most lines of a source file.
const MAX_LINES: usize = 500;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned()
}

/// All Rust files below a folder of the project.
fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut open = vec![root().join(folder)];
    while let Some(path) = open.pop() {
        if path.is_dir() {
            if path
                .file_name()
                .is_some_and(|name| name != "target" && name != "node_modules")
            {
                open.extend(
                    std::fs::read_dir(&path)
                        .unwrap()
                        .map(|entry| entry.unwrap().path()),
                );
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            found.push((path.strip_prefix(root()).unwrap().to_owned(), text));
        }
    }
    assert!(!found.is_empty(), "{folder} has no sources");
    found
}

/// Fails with every line of `sources` that `wrong` dislikes.
fn no_line(sources: &[(PathBuf, String)], wrong: impl Fn(&Path, &str) -> bool) {
    let bad: Vec<_> = sources
        .iter()
        .flat_map(|(path, text)| text.lines().map(move |line| (path, line)))
        .filter(|(path, line)| !line.trim_start().starts_with("//") && wrong(path, line))
        .map(|(path, line)| format!("{}: {}", path.display(), line.trim()))
        .collect();
    assert!(bad.is_empty(), "\n{}", bad.join("\n"));
}

fn all() -> Vec<(PathBuf, String)> {
    ["client-sdk", "federation", "homeserver", "tests"]
        .iter()
        .flat_map(|f| sources(f))
        .collect()
}

#[test]
fn files_stay_small() {
    let long: Vec<_> = all()
        .into_iter()
        .map(|(path, text)| (text.lines().count(), path))
        .filter(|(lines, path)| *lines > MAX_LINES && !path.ends_with("tests.rs"))
        .collect();
    assert!(long.is_empty(), "{long:?}");
}

#[test]
fn no_module_is_a_drawer() {
    for (path, _) in all() {
        let name = path.file_stem().unwrap().to_str().unwrap();
        assert!(
            !["utils", "util", "helpers", "common", "misc", "mod"].contains(&name),
            "{path:?}"
        );
    }
}

#[test]
fn no_sql_outside_of_storage() {
    let sources = sources("homeserver/src");
    no_line(&sources, |path, line| {
        !path.starts_with("homeserver/src/storage")
            && path != Path::new("homeserver/src/storage.rs")
            && (line.contains("sqlx::") || line.contains("\"SELECT ") || line.contains("\"INSERT "))
    });
}

/// Names the error of our edge, and not that of the client which speaks to other servers.
fn our_matrix_error(line: &str) -> bool {
    line.replace("client::MatrixError", "")
        .contains("MatrixError")
}

#[test]
fn no_http_status_outside_of_the_edge() {
    let sources = sources("homeserver/src");
    no_line(&sources, |path, line| {
        !path.starts_with("homeserver/src/api")
            && path != Path::new("homeserver/src/api.rs")
            && (line.contains("StatusCode") || our_matrix_error(line))
    });
}

#[test]
fn the_room_core_is_pure() {
    let sources = sources("federation/src/room");
    no_line(&sources, |_, line| {
        [
            "async fn",
            ".await",
            "SystemTime",
            "Instant::now",
            "tracing::",
            "tokio::",
            "reqwest",
        ]
        .iter()
        .any(|word| line.contains(word))
    });
}

#[test]
fn layers_point_down() {
    let sources = sources("homeserver/src");
    no_line(&sources, |path, line| {
        let storage = path.starts_with("homeserver/src/storage");
        let service = path.starts_with("homeserver/src/service");
        (storage && (line.contains("crate::service") || line.contains("crate::api")))
            || (service && (line.contains("crate::api") || line.contains("crate::worker")))
            || (path.starts_with("homeserver/src/api") && line.contains("crate::worker"))
    });
}

#[test]
fn no_global_state() {
    let sources: Vec<_> = all()
        .into_iter()
        .filter(|(path, _)| !path.starts_with("tests"))
        .collect();
    no_line(&sources, |_, line| {
        let line = line.trim_start();
        // The allocator of the binary holds nothing that two servers could share by mistake.
        (line.starts_with("static ") && !line.starts_with("static ALLOCATOR"))
            || line.starts_with("pub static ")
            || line.contains("thread_local!")
            || line.contains("static mut")
    });
}

#[test]
fn nothing_is_put_off() {
    no_line(&all(), |path, line| {
        !path.ends_with("tidy.rs")
            && ["#[ignore", "todo!(", "unimplemented!(", "FIXME"]
                .iter()
                .any(|w| line.contains(w))
    });
}
