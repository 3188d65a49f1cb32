//! What is promised, attacked, and tested: each promise with the tests that bear its name.
//!
//! A promise without a test stands in [`UNTESTED`], in plain sight.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::{collections::BTreeSet, fs, path::Path};

/// A promise, the name of its tests, and how many names there are at least.
const PROMISES: &[(&str, &str, u32)] = &[
    (
        "device keys survive a failed upload and cannot be swapped",
        "t_dev",
        2,
    ),
    ("device lists are followed; keys never change", "t_dl", 5),
    (
        "one-time keys are used once and survive crashes",
        "t_otk",
        3,
    ),
    ("Olm messages are from whom they say they are", "t_olm", 14),
    ("messages to devices arrive once, whatever dies", "t_td", 1),
    (
        "an identity is made, kept, and not replaced by a server",
        "t_xs",
        6,
    ),
    ("the identities of others are pinned", "t_id", 5),
    ("only signed devices give and get keys", "t_4153", 2),
    ("verifications follow the rules", "t_ver", 9),
    ("short strings reveal who is in between", "t_sas", 3),
    ("QR codes verify with one scan", "t_qr", 4),
    ("secret storage opens for its owner alone", "t_4s", 6),
    (
        "secrets are shared among verified devices alone",
        "t_sec",
        2,
    ),
    (
        "room messages stay with their sender, room and index",
        "t_meg",
        5,
    ),
    ("nobody who should read is left out", "t_shr", 5),
    ("sessions rotate", "t_rot", 8),
    ("a room that was encrypted stays encrypted", "t_latch", 1),
    ("nobody edits the messages of others", "t_edit", 2),
    ("withheld keys explain and do nothing else", "t_wh", 1),
    ("nobody is put into a room unnoticed", "t_ghost", 2),
    ("history is shared where its authors allow it", "t_4268", 6),
    ("keys are passed on to verified devices alone", "t_fwd", 2),
    ("backups are believed as little as they deserve", "t_bk", 2),
    ("key files can be exchanged", "t_exp", 1),
    ("attachments hide everything", "t_att", 3),
    ("the store shows nothing and is opened once", "t_sto", 3),
    ("the length of a message tells little", "t_pad", 1),
    ("senders are trusted as far as is known", "t_tr", 1),
    ("encrypted state is neither moved nor opened", "t_st", 2),
];

/// Promises that nothing tests yet, because nothing keeps them yet.
const UNTESTED: &[(&str, &str)] = &[];

/// All functions of the tests here and of those with whole servers.
fn functions() -> BTreeSet<String> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut names = BTreeSet::new();
    for folder in ["src", "../tests/it"] {
        collect(&here.join(folder), &mut names);
    }
    names
}

fn collect(folder: &Path, names: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, names);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(path).unwrap();
            let after = text.split("fn ").skip(1);
            let name = |part: &str| part.split(['(', '<']).next().map(ToOwned::to_owned);
            names.extend(after.filter_map(name));
        }
    }
}

fn is_of(name: &str, prefix: &str) -> bool {
    let rest = name.strip_prefix(prefix);
    rest.is_some_and(|rest| rest.starts_with('_'))
}

#[test]
fn every_promise_has_its_tests() {
    let functions = functions();
    for (promise, prefix, count) in PROMISES {
        for number in 1..=*count {
            // A promise with a single test may do without a number.
            let numbered = format!("{prefix}_{number}");
            let found = functions.iter().any(|name| is_of(name, &numbered));
            let only = *count == 1 && functions.iter().any(|name| is_of(name, prefix));
            assert!(found || only, "{promise}: no test {numbered}");
        }
    }
}

#[test]
fn what_is_untested_is_named() {
    let functions = functions();
    for (promise, prefix) in UNTESTED {
        let tested = functions.iter().find(|name| is_of(name, prefix));
        assert_eq!(tested, None, "{promise}: it is tested by now");
    }
    let known: BTreeSet<&str> = PROMISES.iter().map(|(_, prefix, _)| *prefix).collect();
    let unknown = functions.iter().filter(|name| {
        let mut parts = name.split('_');
        let is_named = parts.next() == Some("t") && parts.next().is_some();
        is_named && !known.iter().any(|prefix| is_of(name, prefix))
    });
    assert_eq!(unknown.collect::<Vec<_>>(), Vec::<&String>::new());
}
