//! What is promised, attacked, and tested: each promise with the tests that bear its name.
//!
//! A promise without a test stands in [`UNTESTED`], in plain sight.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::{collections::BTreeSet, fs, path::Path};

/// A promise that somebody attacks.
struct Promise {
    text: &'static str,
    /// How the names of its tests begin.
    prefix: &'static str,
    /// How many names there are at least.
    count: u32,
    /// The test in which the same succeeds without the attack: an attack that fails proves nothing where
    /// everything fails. It may be one of the above.
    control: &'static str,
}

const fn promise(
    text: &'static str,
    prefix: &'static str,
    count: u32,
    control: &'static str,
) -> Promise {
    Promise {
        text,
        prefix,
        count,
        control,
    }
}

const PROMISES: &[Promise] = &[
    promise(
        "device keys survive a failed upload and cannot be swapped",
        "t_dev",
        2,
        "t_dev_2",
    ),
    promise(
        "device lists are followed; keys never change",
        "t_dl",
        5,
        "t_dl_3",
    ),
    promise(
        "one-time keys are used once and survive crashes",
        "t_otk",
        4,
        "claimed_keys_are_replaced",
    ),
    promise(
        "Olm messages are from whom they say they are",
        "t_olm",
        15,
        "two_devices_talk",
    ),
    promise(
        "messages to devices arrive once, whatever dies",
        "t_td",
        1,
        "two_devices_talk",
    ),
    promise(
        "an identity is made, kept, and not replaced by a server",
        "t_xs",
        6,
        "t_xs_1",
    ),
    promise("the identities of others are pinned", "t_id", 5, "t_id_1"),
    promise(
        "only signed devices give and get keys",
        "t_4153",
        4,
        "t_4153_1",
    ),
    promise("verifications follow the rules", "t_ver", 9, "t_ver_1"),
    promise(
        "short strings reveal who is in between",
        "t_sas",
        4,
        "t_ver_1",
    ),
    promise("QR codes verify with one scan", "t_qr", 4, "t_qr_1"),
    promise(
        "secret storage opens for its owner alone",
        "t_4s",
        6,
        "a_new_device_recovers_with_a_key",
    ),
    promise(
        "secrets are shared among verified devices alone",
        "t_sec",
        2,
        "t_ver_2",
    ),
    promise(
        "room messages stay with their sender, room and index",
        "t_meg",
        5,
        "t_meg_4",
    ),
    promise(
        "nobody who should read is left out",
        "t_shr",
        5,
        "all_devices_of_all_members_read_also_the_senders_others",
    ),
    promise(
        "sessions rotate",
        "t_rot",
        9,
        "nothing_happens_without_reason",
    ),
    promise(
        "a room that was encrypted stays encrypted",
        "t_latch",
        1,
        "a_room_that_is_not_encrypted_is_used_as_it_is",
    ),
    promise(
        "nobody edits the messages of others",
        "t_edit",
        2,
        "an_edit_is_read_and_a_reaction_seen",
    ),
    promise(
        "withheld keys explain and do nothing else",
        "t_wh",
        1,
        "t_wh_1",
    ),
    promise(
        "nobody is put into a room unnoticed",
        "t_ghost",
        2,
        "t_ghost_1",
    ),
    promise(
        "history is shared where its authors allow it",
        "t_4268",
        6,
        "t_4268_1",
    ),
    promise(
        "keys are passed on to verified devices alone",
        "t_fwd",
        2,
        "t_fwd_0",
    ),
    promise(
        "backups are believed as little as they deserve",
        "t_bk",
        2,
        "t_bk_0",
    ),
    promise("key files can be exchanged", "t_exp", 1, "t_exp_1"),
    promise(
        "attachments hide everything",
        "t_att",
        3,
        "what_is_encrypted_is_decrypted",
    ),
    promise(
        "the store shows nothing and is opened once",
        "t_sto",
        4,
        "keeps_the_contract_when_sealed",
    ),
    promise(
        "several processes use one store, one after the other",
        "t_mp",
        4,
        "t_mp_3_one_turn_ends_before_the_next_begins",
    ),
    promise(
        "the length of a message tells little",
        "t_pad",
        1,
        "t_pad_1",
    ),
    promise(
        "senders are trusted as far as is known",
        "t_tr",
        2,
        "t_tr_1",
    ),
    promise(
        "encrypted state is neither moved nor opened",
        "t_st",
        2,
        "t_st_1",
    ),
];

/// Promises, of the SDK and of the server, with the names of their tests.
const KEPT: &[(&str, &[&str])] = &[
    (
        "a sender who becomes known later is shown as known",
        &["the_sender_is_known_by_its_device_list", "t_4153_2"],
    ),
    (
        "what comes from a backup or a file is shown as such",
        &["t_bk_1", "t_exp_1"],
    ),
    (
        "every message that cannot be read says why, and is read when its key comes",
        &[
            "an_event_whose_key_comes_later_is_read_later",
            "a_key_from_a_file_wakes_who_waits_for_it",
            "t_wh_1",
        ],
    ),
    (
        "who is entitled reads everything, whoever dies, and nobody else reads anything",
        &[
            "everybody_reads_what_is_meant_for_them_and_nothing_else",
            "a_sync_that_nobody_waits_for_loses_and_repeats_nothing",
        ],
    ),
    (
        "a device that a person blocks gets nothing",
        &["a_blocked_device_is_told_once_per_session", "t_rot_5"],
    ),
    (
        "broken sessions heal, at most once an hour, and there are few",
        &[
            "t_olm_10",
            "a_session_is_replaced_once_an_hour",
            "garbage_of_unknown_devices_costs_nothing",
            "sessions_that_are_used_least_go_first",
        ],
    ),
    (
        "files of any size go from disk to disk, and are kept when they are whole",
        &[
            "pieces_of_any_size_are_the_same_file",
            "a_large_file_goes_from_disk_to_disk",
            "t_att_1_of_a_large_file_that_was_changed_nothing_is_kept",
        ],
    ),
    (
        "names, topics and pins can be encrypted",
        &["the_name_of_a_room_can_be_hidden_from_servers"],
    ),
    (
        "the server takes no keys that are none, and no wrong signatures",
        &[
            "bad_keys_are_refused",
            "what_nobody_can_take_for_a_key_is_kept_as_it_is",
            "malformed_keys_are_errors",
            "keys_with_which_nothing_is_secret",
            "the_verdict_on_a_signature_is_that_of_others",
        ],
    ),
    (
        "the server keeps cross-signing keys and signatures, and tells only whom they concern",
        &["cross_signing", "signatures_are_checked_and_kept_private"],
    ),
    (
        "the server hands out a one-time key once, whoever asks, whatever dies, whatever is restored",
        &[
            "each_one_time_key_is_handed_out_once",
            "uploading_again_changes_nothing",
            "a_key_that_went_does_not_come_back",
            "messages_come_once_and_keys_go_once",
            "a_restart_keeps_one_time_keys",
            "a_copy_made_between_two_runs_has_no_keys",
            "a_copy_made_before_the_last_claim_has_no_keys",
            "a_copy_made_after_the_last_claim_keeps_its_keys",
            "a_database_without_its_mark_has_no_keys",
        ],
    ),
    (
        "the server loses no change of a device list, also between servers",
        &[
            "who_shares_a_room_learns_of_changed_keys",
            "who_follows_ends_with_the_lists_of_the_owners",
            "a_stale_device_list_is_fetched_until_it_is_right",
            "a_server_learns_of_the_devices_of_who_joins",
            "who_is_not_known_is_not_said_to_have_no_devices",
        ],
    ),
    (
        "the server carries messages between devices once, in order, also between servers",
        &[
            "messages_between_devices_come_once",
            "messages_survive_a_restart_and_wake_who_waits",
            "a_message_to_a_device_waits_for_its_server",
            "a_sender_that_is_killed_sends_everything_in_the_end",
            "a_full_inbox_costs_nobody_the_messages_of_other_servers",
            "one_server_cannot_fill_the_disk_with_messages_that_nobody_reads",
            "deleting_a_device_takes_everything_with_it",
        ],
    ),
    (
        "the server keeps backups, and the better copy of a key",
        &[
            "versions",
            "the_better_copy_of_a_key_is_kept",
            "keys_by_room_and_session",
            "backups_go_with_the_account",
        ],
    ),
    (
        "services and sliding sync are told the same of keys",
        &[
            "messages_for_devices_of_a_service_come_once",
            "services_are_told_of_keys",
            "extensions_tell_the_rest",
        ],
    ),
];

/// Promises that nothing tests yet, because nothing keeps them yet.
const UNTESTED: &[(&str, &str)] = &[];

/// The names of all tests here, of those with whole servers, and of those with other clients.
pub(super) fn tests() -> BTreeSet<String> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut names = BTreeSet::new();
    for folder in [
        "src",
        "../tests/it",
        "../tests/interop/rust/tests",
        "../homeserver/src/service/e2e_keys",
    ] {
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
            let mut is_test = false;
            for line in text.lines().map(str::trim_start) {
                is_test |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
                let name = line.trim_start_matches("async ").strip_prefix("fn ");
                if let Some(name) = name.filter(|_| is_test) {
                    names.extend(name.split(['(', '<']).next().map(ToOwned::to_owned));
                    is_test = false;
                }
            }
        }
    }
}

fn is_of(name: &str, prefix: &str) -> bool {
    let rest = name.strip_prefix(prefix);
    rest.is_some_and(|rest| rest.starts_with('_'))
}

/// Whether there is a test of this name, or one whose name begins so.
fn exists(tests: &BTreeSet<String>, name: &str) -> bool {
    tests.contains(name) || tests.iter().any(|test| is_of(test, name))
}

#[test]
fn every_promise_has_its_tests() {
    let tests = tests();
    for promise in PROMISES {
        for number in 1..=promise.count {
            // A promise with a single test may do without a number.
            let found = exists(&tests, &format!("{}_{number}", promise.prefix));
            let only = promise.count == 1 && exists(&tests, promise.prefix);
            assert!(found || only, "{}: no test {number}", promise.text);
        }
        let control = exists(&tests, promise.control);
        assert!(control, "{}: no control", promise.text);
    }
    for (promise, names) in KEPT {
        for name in *names {
            assert!(exists(&tests, name), "{promise}: no test {name}");
        }
    }
}

#[test]
fn what_is_untested_is_named() {
    let tests = tests();
    for (promise, prefix) in UNTESTED {
        let tested = tests.iter().find(|name| is_of(name, prefix));
        assert_eq!(tested, None, "{promise}: it is tested by now");
    }
    let known: BTreeSet<&str> = PROMISES.iter().map(|promise| promise.prefix).collect();
    let unknown = tests.iter().filter(|name| {
        let mut parts = name.split('_');
        let is_named = parts.next() == Some("t") && parts.next().is_some();
        is_named && !known.iter().any(|prefix| is_of(name, prefix))
    });
    assert_eq!(unknown.collect::<Vec<_>>(), Vec::<&String>::new());
}
