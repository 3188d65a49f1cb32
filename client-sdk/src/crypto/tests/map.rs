//! What the encryption has to do, row by row: the tests that show it, and each attack with the test in
//! which it fails and the run in which the same succeeds.

#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::collections::BTreeSet;

use super::coverage;

/// How many tests there are of each family; a family with none has one test without a number.
const FAMILIES: [(&str, u32); 30] = [
    ("T-DEV", 2),
    ("T-DL", 5),
    ("T-OTK", 4),
    ("T-OLM", 15),
    ("T-TD", 1),
    ("T-XS", 6),
    ("T-ID", 5),
    ("T-4153", 4),
    ("T-VER", 9),
    ("T-SAS", 4),
    ("T-QR", 4),
    ("T-4S", 6),
    ("T-SEC", 2),
    ("T-MEG", 5),
    ("T-SHR", 5),
    ("T-ROT", 9),
    ("T-LATCH", 0),
    ("T-WH", 1),
    ("T-GHOST", 2),
    ("T-4268", 6),
    ("T-FWD", 2),
    ("T-BK", 2),
    ("T-EXP", 1),
    ("T-ATT", 3),
    ("T-EDIT", 2),
    ("T-ST", 2),
    ("T-STO", 4),
    ("T-MP", 4),
    ("T-TR", 2),
    ("T-UTD", 0),
];

/// A row begins with its number. Below it are tests that show it (`+`), and attacks:
/// `- name | attack | test | control`. The control is `=` if it is a part of the test. Where two tests
/// have one name, both have to be there.
const ROWS: &str = "
1.1 account and device keys
+ own_keys_verify_and_parse every_uploaded_key_is_signed_as_others_expect a_failed_upload_is_repeated_unchanged
+ a_store_belongs_to_one_device nothing_private_is_in_what_debug_prints
- T-DEV-1 | death between store and upload | t_dev_1_what_was_saved_and_not_uploaded_is_uploaded_unchanged | =
- T-DEV-2 | other keys for this very device | t_dev_2_a_server_that_serves_other_keys_for_this_device_stops_it | =
- | keys of wrong lengths | keys_of_wrong_lengths_are_errors | own_keys_verify_and_parse

1.2 device lists
+ an_outdated_list_is_remembered_by_a_restart many_users_are_asked_about_in_several_requests
+ pauses_grow_and_end_with_news_of_the_user what_nobody_waits_for_is_asked_again_at_once a_lost_token_makes_all_lists_outdated
- T-DL-1 | answers out of order | t_dl_1_a_late_answer_does_not_overwrite_a_newer_one | t_dl_2_a_change_while_asking_is_asked_about_again
- T-DL-2 | a change while asking | t_dl_2_a_change_while_asking_is_asked_about_again | =
- T-DL-3 | other keys for a known device | t_dl_3_the_keys_of_a_device_never_change | =
- T-DL-3 | deleted, and back with other keys | a_deleted_device_does_not_come_back_with_other_keys | =
- T-DL-3 | nobody signed the keys, or another | a_device_that_did_not_sign_its_keys_is_not_known | =
- T-DL-4 | a device with the id of a key | t_dl_4_a_device_whose_id_is_a_cross_signing_key_is_refused | =
- T-DL-4 | the same, while the identity is hidden | t_dl_4_a_device_whose_id_is_a_pinned_key_is_refused | =
- T-DL-5 | no answer | t_dl_5_a_server_that_does_not_answer_keeps_nobody_silent | =
- T-DL-5 | an empty list and a failure | t_dl_5_what_comes_with_a_failure_is_not_the_newest | =
- | left and back while asking | an_answer_from_before_a_parting_does_not_count_afterwards | =

1.3 one-time and fallback keys
+ claimed_keys_are_replaced an_unused_fallback_key_is_replaced_after_a_week
- T-OTK-1 | death before the answer | t_otk_1_a_lost_answer_to_an_upload_does_no_harm | =
- T-OTK-2 | a copied store | t_otk_2_a_copied_store_is_noticed | a_failed_upload_is_repeated_unchanged
- T-OTK-3 | a malformed pre-key message | t_otk_3_a_malformed_pre_key_message_burns_no_one_time_key | =
- T-OTK-4 | messages to a former key wait | t_otk_4_a_fallback_key_is_kept_while_messages_wait | =
- | the former key for ever | a_used_fallback_key_is_replaced_and_works_for_another_hour | =
- | a stale count | a_stale_sync_does_not_replace_a_fresh_fallback_key | a_used_fallback_key_is_replaced_and_works_for_another_hour

1.4 outbound Olm sessions
+ two_devices_talk
- T-OLM-1 | low order, one-time key | t_olm_1_no_one_time_key_of_low_order_makes_a_session | =
- T-OLM-1 | low order, device | t_olm_1_no_device_with_a_key_of_low_order_gets_a_session | =
- T-OLM-1 | low order, pre-key message | t_olm_1_no_session_begins_with_a_key_of_low_order | =
- T-OLM-2 | a key signed by another, or nobody | t_olm_2_a_one_time_key_signed_by_another_device_makes_no_session | =
- T-OLM-15 | nothing but the fallback key | t_olm_15_a_server_that_keeps_one_time_keys_back_is_noticed | =
- | claims without answer | t_shr_5_a_server_that_never_answers_a_claim_keeps_nobody_silent | t_shr_5_a_lost_answer_costs_nobody_a_message

1.5 inbound Olm sessions
+ two_devices_talk
- T-OLM-3 | the same pre-key message twice | t_olm_3_a_repeated_pre_key_message_is_a_replay_and_makes_no_session | =
- | a pre-key message of another device | a_pre_key_message_of_another_device_is_refused | two_devices_talk
- | a normal message without session | what_is_not_olm_is_refused | =
- | no UTF-8 | a_payload_that_is_no_text_is_refused | =

1.6 checks of Olm payloads
+ the_device_keys_may_be_absent malformed_payloads_are_refused nested_and_unsolicited_messages_are_refused
- T-OLM-4 | sender inside | t_olm_4_the_sender_inside_is_the_sender_outside | =
- T-OLM-4 | sender outside | t_olm_4_the_sender_outside_is_the_sender_inside | t_olm_4_the_sender_inside_is_the_sender_outside
- T-OLM-5 | recipient | t_olm_5_the_recipient_is_this_user | =
- T-OLM-6 | recipient's key | t_olm_6_the_recipient_is_this_device | =
- T-OLM-7 | signing key | t_olm_7_the_signing_key_is_that_of_the_known_device | =
- T-OLM-8 | device keys unsigned | t_olm_8_the_device_keys_are_signed | =
- T-OLM-8 | device keys of another user | t_olm_8_the_device_keys_are_of_the_sending_user | t_olm_8_the_device_keys_are_signed
- T-OLM-8 | device keys with other keys | t_olm_8_the_device_keys_have_the_keys_that_sent_the_message | =
- T-OLM-8 | device keys under another name | t_olm_8_the_device_keys_have_the_pinned_name | t_olm_8_the_device_keys_are_signed
- T-OLM-13 | a room key inside Megolm | t_olm_13_a_room_key_inside_a_room_event_is_no_room_key | =
- T-OLM-14 | Megolm to a device | t_olm_14_a_megolm_message_is_no_message_to_a_device | two_devices_talk
- | keys in the clear | keys_and_secrets_in_the_clear_are_refused | two_devices_talk
- | a new device with a known id | a_known_device_cannot_be_taken_over_by_a_new_one | two_devices_talk

1.7 signed device keys in each message
+ t_olm_9_messages_of_a_device_that_is_gone_can_be_read
- T-OLM-9 | gone and vouched for, not, or forged | t_olm_9_what_the_identity_has_signed_counts_when_the_device_is_gone | =

1.8 choice and healing of sessions
+ sessions_that_are_used_least_go_first a_session_that_broke_heals
- T-OLM-10 | a lost session | t_olm_10_a_broken_session_is_replaced_and_the_lost_key_sent_again | =
- T-OLM-11 | replay for wedge | t_olm_11_a_replay_does_not_make_a_new_session | t_olm_10_a_broken_session_is_replaced_and_the_lost_key_sent_again
- | a flood of garbage | a_session_is_replaced_once_an_hour | =
- | garbage of nobody | garbage_of_unknown_devices_costs_nothing | a_session_is_replaced_once_an_hour

1.9 skipped messages
- T-OLM-12 | sixty in reverse | t_olm_12_of_sixty_messages_in_reverse_order_forty_one_are_read | =

1.10 messages to devices last
+ content_for_one_device_reaches_its_inbox a_conversation_survives_restarts_from_disk_between_any_two_steps everybody_reads_everything
- T-TD-1 | death at any commit | t_td_1_a_death_at_any_commit_loses_nothing | a_store_that_forgets_is_noticed
- | the same answer twice | a_repeated_sync_response_changes_nothing | t_olm_3_a_repeated_pre_key_message_is_a_replay_and_makes_no_session
- | a sync that is dropped | a_sync_that_nobody_waits_for_loses_and_repeats_nothing | =

1.11 the own identity
+ t_xs_1_signed_devices_talk_and_are_trusted
- T-XS-1 | made twice | t_xs_1_signed_devices_talk_and_are_trusted | =
- T-XS-2 | a lost answer | t_xs_2_an_upload_whose_answer_is_lost_is_repeated_with_the_same_keys | =
- T-XS-3 | another own identity | t_xs_3_another_own_identity_blocks_everything | =
- T-XS-4 | a self-signing key of the server | t_xs_4_keys_that_the_master_key_did_not_sign_are_not_taken | =
- T-XS-5 | malformed identities | t_xs_5_malformed_identities_are_errors | =
- T-XS-6 | no identity | t_xs_6_a_server_that_denies_an_identity_gets_no_second_one | t_xs_1_signed_devices_talk_and_are_trusted

1.12 pinned identities
- T-ID-1 | another identity | t_id_1_a_replaced_identity_alarms_and_gets_nothing | =
- T-ID-2 | back and forth | t_id_2_an_identity_that_comes_back_still_needs_a_person | =
- T-ID-2 | a former identity | t_id_2_a_former_identity_that_comes_back_is_a_change_as_well | =
- T-ID-3 | no identity any more | t_id_3_an_identity_that_goes_away_is_a_change | =
- T-ID-4 | another after verification | t_id_4_a_verified_user_stays_verified_and_a_change_is_a_violation | =
- T-ID-5 | another than was compared | t_id_5_only_what_was_compared_is_signed | =

1.13 signed devices only
+ neither_gives_keys_to_a_device_that_its_user_does_not_vouch_for a_new_device_reads_what_is_new
- T-4153-1 | a device of the server | t_4153_1_a_device_that_the_server_adds_gets_no_key | =
- T-4153-2 | it speaks | t_4153_2_what_an_unsigned_device_says_is_not_shown_until_it_is_signed | =
- T-4153-3 | a program without identity | t_4153_3_a_program_without_identity_gets_keys_by_an_exception_alone | =
- T-4153-3 | it speaks | t_4153_3_what_an_excepted_program_says_is_shown_and_marked | =
- T-4153-3 | a device that is not in its list | t_4153_3_a_device_that_is_not_in_the_list_of_the_excepted_is_not_heard | =
- T-4153-3 | a device of somebody else | t_4153_3_an_exception_for_one_is_none_for_others | =
- T-4153-4 | a device of the server, for who has an identity now | t_4153_4_an_exception_ends_with_the_first_identity | =
- T-4153-4 | an exception for who has one already | t_4153_4_no_exception_is_made_for_who_has_an_identity | =

1.14 verification
+ t_ver_8_people_verify_each_other_in_a_room people_verify_each_other_in_their_room a_person_verifies_a_new_device
- T-VER-1 | trust before both agree | t_ver_1_two_people_verify_each_other | =
- T-VER-2 | trust before the comparison | t_ver_2_a_new_device_is_verified_by_an_old_one | =
- T-VER-3 | keys change meanwhile | t_ver_3_an_identity_that_changes_meanwhile_is_not_signed | t_ver_1_two_people_verify_each_other
- T-VER-4 | a device without identity | t_ver_4_a_device_alone_does_not_verify_its_user | t_ver_1_two_people_verify_each_other
- T-VER-5 | out of turn | t_ver_5_messages_out_of_turn_end_it_and_late_ones_are_nothing | t_ver_1_two_people_verify_each_other
- T-VER-6 | a third person | t_ver_6_somebody_else_cannot_take_part | =
- T-VER-6 | a third person, another room or relation | t_ver_6_nobody_else_takes_part_in_a_room | =
- T-VER-7 | both at once, too late, too old | t_ver_7_both_may_start_and_it_takes_ten_minutes_at_most | =
- T-VER-8 | a step of somebody else, or of something else | t_ver_6_nobody_else_takes_part_in_a_room | =
- T-VER-9 | two verifications | t_ver_9_a_device_has_one_verification_at_a_time | =
- T-VER-9 | two devices answer | t_ver_9_the_devices_that_did_not_answer_are_told | =

1.15 short strings
+ people_compare_short_strings
- T-SAS-1 | both servers in between | t_sas_1_who_speaks_to_both_sides_shows_each_something_else | =
- T-SAS-1 | the server in between | t_sas_1_who_comes_in_between_is_seen | t_ver_1_two_people_verify_each_other
- T-SAS-2 | another name for a key | t_sas_2_the_codes_cover_the_keys_and_not_their_names | t_ver_1_two_people_verify_each_other
- T-SAS-2 | another key for a name | t_sas_2_another_key_under_a_known_name_proves_nothing | =
- T-SAS-2 | a device named as a master key | t_sas_2_a_device_with_the_name_of_a_master_key_proves_nothing | =
- T-SAS-3 | a key that was not promised | t_sas_3_a_key_that_was_not_promised_is_refused | =
- T-SAS-3 | people see different things | t_sas_3_people_who_see_different_things_say_so | t_ver_1_two_people_verify_each_other
- T-SAS-4 | weaker methods | t_sas_4_nothing_weaker_is_agreed_to | =
- T-SAS-4 | low order | t_sas_4_a_key_with_which_nothing_is_secret_is_refused | =

1.16 QR codes
+ t_qr_2_an_old_device_shows_a_code_to_a_new_one t_qr_2_a_new_device_shows_a_code_to_an_old_one people_scan_codes
- T-QR-1 | trust before the person agrees | t_qr_1_two_people_verify_each_other_with_one_scan | =
- T-QR-2 | trust before the person agrees, own devices | t_qr_2_a_new_device_shows_a_code_to_an_old_one | =
- T-QR-3 | other keys, flow or user | t_qr_3_a_code_with_other_keys_is_refused | t_qr_1_two_people_verify_each_other_with_one_scan
- T-QR-3 | a guessed secret | t_qr_3_who_has_not_seen_the_code_cannot_say_so | t_qr_1_two_people_verify_each_other_with_one_scan
- T-QR-4 | any bytes | t_qr_4_anything_else_is_no_code | t_qr_4_the_format_is_that_of_the_specification

1.18 secret storage
+ each_opens_the_secret_storage_of_the_other a_new_device_recovers_with_a_key
- T-4S-1 | a mistyped key | t_4s_1_recovery_keys_round_trip_and_mistakes_are_noticed | =
- T-4S-2 | keys of others | t_4s_2_keys_of_other_clients_are_read | =
- T-4S-3 | another name, key or text | t_4s_3_secrets_open_with_their_key_and_under_their_name_only | =
- T-4S-4 | another description | t_4s_4_a_description_recognizes_its_key | =
- T-4S-5 | cheap or endless rounds | t_4s_5_the_server_cannot_make_a_passphrase_cheap_to_guess | =
- T-4S-6 | keys of another identity | t_4s_6_private_keys_of_another_identity_are_refused | =

1.19 secrets between devices
+ t_ver_2_a_new_device_is_verified_by_an_old_one our_device_verifies_theirs_and_gives_it_the_secrets
- T-SEC-1 | an unverified device asks | t_sec_1_an_unverified_device_gets_no_secrets | =
- T-SEC-2 | answers of others, or unasked | t_sec_2_only_a_verified_device_gives_what_was_asked_for | =

1.20 Megolm
+ each_reads_what_the_other_writes texts_are_not_special the_deprecated_fields_of_an_event_prove_nothing
- T-MEG-1 | another event with the same text | t_meg_1_a_repeated_message_is_refused | =
- T-MEG-2 | another room | t_meg_2_a_message_stays_in_its_room | =
- T-MEG-3 | another sender | t_meg_3_a_message_stays_with_its_sender | =
- T-MEG-4 | the same event again | t_meg_4_the_same_event_may_be_read_twice | =
- T-MEG-5 | a member gives another's key | t_meg_5_a_session_cannot_be_claimed_by_sending_its_key_first | =
- | malformed keys | malformed_room_keys_are_refused | =
- | malformed events | malformed_events_are_errors | =
- | a later copy | a_later_state_of_a_session_does_not_replace_an_earlier_one | an_earlier_state_of_a_session_replaces_a_later_one

1.21 sharing
+ all_devices_of_all_members_read_also_the_senders_others messages_that_are_sent_at_once_share_a_session
+ a_device_that_cannot_decrypt_gets_no_key what_is_settled_is_unsettled_by_any_change_of_devices
- T-SHR-1 | death while sharing | t_shr_1_no_message_before_all_keys_are_delivered | =
- T-SHR-2 | no one-time keys | t_shr_2_a_device_without_keys_is_told_once_and_gets_the_key_later | =
- T-SHR-3 | other keys for a known device | t_shr_3_a_device_whose_served_keys_changed_gets_nothing_under_the_new_keys | t_4153_1_a_device_that_the_server_adds_gets_no_key
- T-SHR-4 | more devices than fit | t_shr_4_many_devices_are_served_in_several_requests | =
- T-SHR-5 | lost answers | t_shr_5_a_lost_answer_costs_nobody_a_message | =
- | a request that is refused for ever | a_key_that_the_server_refuses_does_not_block_the_room_forever | =

1.22 rotation
+ nothing_happens_without_reason a_departure_between_sharing_and_encrypting_stops_the_message who_has_left_cannot_read_on
- T-ROT-1 | many messages | t_rot_1_after_a_hundred_messages | nothing_happens_without_reason
- T-ROT-2 | long time | t_rot_2_after_a_week | =
- T-ROT-3 | a departure | t_rot_3_when_a_member_leaves | =
- T-ROT-3 | a departure that a gap hides | t_rot_3_who_may_have_left_unseen_is_taken_for_gone | =
- T-ROT-4 | a device is gone | t_rot_4_when_a_device_is_removed | nothing_happens_without_reason
- T-ROT-5 | a device is blocked | t_rot_5_when_a_device_is_blocked | =
- T-ROT-6 | hostile settings | t_rot_6_hostile_settings_are_bounded | =
- T-ROT-7 | other settings | t_rot_7_when_the_settings_change | =
- T-ROT-8 | a departure that nobody tells | t_rot_8_when_somebody_has_the_key_who_is_no_member | =
- T-ROT-9 | a day in a conversation of two | t_rot_9_after_a_day_in_a_conversation_of_two | =
- T-ROT-9 | settings that make it longer | t_rot_9_a_room_may_make_the_day_shorter_and_not_longer | =
- T-ROT-9 | the same between two people | t_rot_9_two_people_get_a_new_key_each_day | =
- T-LATCH | encryption taken away | t_latch_a_room_that_was_encrypted_stays_encrypted | a_room_that_is_not_encrypted_is_used_as_it_is
- T-LATCH | an algorithm of tomorrow | t_latch_a_room_with_an_unknown_algorithm_is_not_sent_to | =
- T-LATCH | before the first sync | nothing_goes_out_in_the_clear_before_the_first_sync_of_a_room | a_room_that_is_not_encrypted_is_used_as_it_is

1.23 withheld keys
+ a_blocked_device_is_told_once_per_session t_shr_2_a_device_without_keys_is_told_once_and_gets_the_key_later
- T-WH-1 | a reason for a key that there is | t_wh_1_a_reason_explains_and_does_nothing_else | =

1.24 ghost members
- T-GHOST-1 | a third in a conversation of two | t_ghost_1_who_is_put_into_a_conversation_of_two_gets_no_key | =
- T-GHOST-1 | another in the place of the second | t_ghost_1_the_other_in_a_conversation_of_two_is_not_replaced | =
- T-GHOST-2 | a stranger in a group | t_ghost_2_a_group_sees_whom_nobody_has_invited | =

1.25 shared history
+ t_4268_who_is_invited_reads_what_was_said_before theirs_takes_our_history ours_takes_their_history
- T-4268-1 | twice, and whose word it is | t_4268_1_who_is_invited_reads_what_was_said_before | =
- T-4268-2 | what is not for others | t_4268_2_what_was_not_for_others_stays_here | t_4268_1_who_is_invited_reads_what_was_said_before
- T-4268-3 | the visibility changes | t_4268_3_a_session_ends_when_the_visibility_changes | =
- T-4268-4 | keys of another room | t_4268_4_no_other_room_is_opened_by_a_bundle | =
- T-4268-5 | unsigned devices | t_4268_5_only_signed_devices_give_and_get | =
- T-4268-6 | an offer in the clear | t_4268_6_an_offer_in_the_clear_is_none | t_4268_1_who_is_invited_reads_what_was_said_before
- | who has not invited | t_4268_who_has_not_invited_gives_no_keys | =
- | who was not invited | t_4268_who_joins_uninvited_reads_nothing_of_it | t_4268_who_is_invited_reads_what_was_said_before

1.26 keys on request
+ t_fwd_0_a_verified_device_gets_the_keys_of_the_other
- T-FWD-1 | who is not verified asks | t_fwd_1_who_is_not_verified_gets_no_key | =
- T-FWD-1 | unasked, or not of whom was asked | t_fwd_1_a_key_that_nobody_asked_for_is_refused | =
- T-FWD-2 | another ratchet | t_fwd_2_a_key_with_another_ratchet_replaces_none | =

1.27 backup
+ t_bk_0_a_new_device_reads_what_the_backup_has theirs_restores_our_backup ours_restores_their_backup
- T-BK-1 | a session of the server | t_bk_1_a_key_that_the_server_puts_into_a_backup_replaces_none_and_proves_nothing | =
- T-BK-1 | another ratchet | t_bk_1_a_copy_with_another_ratchet_replaces_none | =
- T-BK-2 | a version of the server | t_bk_2_nothing_goes_into_a_backup_with_a_foreign_key | =
- T-BK-2 | a version of the server, later | t_bk_2_a_version_that_somebody_else_has_made_gets_no_keys | =

1.28 key files
+ each_reads_the_key_file_of_the_other a_key_from_a_file_wakes_who_waits_for_it
- T-EXP-1 | a wrong passphrase, a broken file | t_exp_1_keys_travel_in_a_file | =
- T-EXP-1 | endless rounds | t_exp_1_a_file_does_not_say_how_long_to_try | =

1.30 attachments
+ what_is_encrypted_is_decrypted pieces_of_any_size_are_the_same_file a_large_file_goes_from_disk_to_disk
+ each_file_has_a_key_and_a_vector_of_its_own_and_the_counter_starts_at_zero each_decrypts_the_attachments_of_the_other
- T-ATT-1 | one flipped bit | t_att_1_one_flipped_bit_gives_an_error_and_nothing_else | =
- T-ATT-1 | another file | t_att_1_of_a_large_file_that_was_changed_nothing_is_kept | =
- T-ATT-2 | where it was taken, JPEG | t_att_2_the_place_is_gone_from_a_jpeg_and_the_picture_is_not | =
- T-ATT-2 | PNG | t_att_2_the_texts_are_gone_from_a_png | t_att_2_the_place_is_gone_from_a_jpeg_and_the_picture_is_not
- T-ATT-2 | WebP | t_att_2_the_place_is_gone_from_a_webp | t_att_2_the_place_is_gone_from_a_jpeg_and_the_picture_is_not
- T-ATT-2 | on its way | a_picture_of_the_disk_goes_without_its_metadata | t_att_2_the_place_is_gone_from_a_jpeg_and_the_picture_is_not
- T-ATT-3 | the server looks | t_att_3_a_file_is_for_the_room_alone | a_file_in_an_open_room_is_open
- | malformed secrets | malformed_secrets_are_errors | what_is_encrypted_is_decrypted

1.31 edits
+ an_edit_is_read_and_a_reaction_seen a_relation_stays_outside_and_is_found_inside
- T-EDIT-1 | the server, or a member | t_edit_1_who_did_not_send_a_message_does_not_edit_it | =
- T-EDIT-1 | a device of the server | t_edit_1_a_device_that_the_server_adds_edits_nothing | =
- T-EDIT-2 | another relation | t_edit_2_the_server_cannot_say_what_a_message_relates_to | =

1.32 encrypted state
- T-ST-1 | another place | t_st_1_encrypted_state_stays_in_its_place | =
- T-ST-2 | openly again | t_st_2_state_that_was_encrypted_is_never_sent_openly_again | =
- | the server looks | the_name_of_a_room_can_be_hidden_from_servers | =

1.33 the store
+ values_survive_reopening keeps_the_contract_when_sealed
- T-STO-1 | strings in the file | t_sto_1_a_sealed_file_shows_neither_values_nor_names | =
- T-STO-1 | another passphrase | t_sto_1_a_passphrase_opens_the_store_and_another_does_not | =
- T-STO-1 | another key | a_wrong_key_is_noticed_when_opening | =
- T-STO-2 | swapped rows | t_sto_2_a_swapped_row_is_refused | =

1.34 several processes
+ keeps_the_contract_when_shared two_that_open_a_new_store_at_once_have_one_key t_mp_3_the_generation_changes_when_another_had_a_turn
- T-MP-1 | ratchets in two memories | t_mp_1_two_machines_use_no_ratchet_twice | =
- T-MP-1 | what the other has decrypted | t_mp_1_what_one_machine_has_decrypted_the_other_knows | =
- T-MP-1 | a list that the other has in a newer state | t_mp_1_an_old_list_does_not_replace_the_newer_one_of_the_other | =
- T-MP-1 | one-time keys of both | t_mp_1_two_machines_offer_no_one_time_key_twice | =
- T-MP-1 | anything in any order | t_mp_1_two_machines_do_anything_in_any_order | t_mp_1_two_machines_use_no_ratchet_twice
- T-MP-2 | two processes, killed | t_mp_2_two_processes_use_one_device_whoever_is_killed | t_mp_2_without_turns_two_processes_use_keys_twice
- T-MP-3 | what is remembered is outdated | t_mp_3_what_another_has_written_is_seen_at_once | =
- T-MP-3 | two at once | t_mp_3_one_turn_ends_before_the_next_begins | =
- T-MP-3 | a turn that has not begun | t_mp_3_nobody_joins_a_turn_that_has_not_begun | =
- T-MP-3 | a commit that comes late | t_mp_3_what_comes_after_the_end_of_a_turn_is_not_written | =
- T-MP-3 | one that knows nothing of the others | t_mp_3_nobody_is_alone_where_others_are | =
- T-MP-4 | whole clients | t_mp_4_an_app_and_its_extension_use_one_device | =
- T-STO-3 | opened twice | t_sto_3_a_store_is_opened_once_at_a_time | =
- T-STO-4 | a commit of a process that is gone | t_sto_4_a_commit_that_nobody_waits_for_is_over_when_the_store_opens_again | =

1.35 required trust
- T-TR-1 | all states and requirements | t_tr_1_who_is_shown_under_which_requirement | =
- T-TR-2 | a later identity for earlier messages | t_tr_2_what_was_trusted_when_it_came_stays_so_and_nothing_else | =

1.36 warnings
+ each_doubt_about_a_sender_has_its_warning whoever_gave_a_key_is_named
- | speech in the clear where nobody speaks so | a_bot_does_not_answer_what_is_not_encrypted_in_an_encrypted_room | =

1.37 whose session
+ the_sender_is_known_by_its_device_list t_4153_2_what_an_unsigned_device_says_is_not_shown_until_it_is_signed
- | another's session | t_meg_5_a_session_cannot_be_claimed_by_sending_its_key_first | =

1.38 what cannot be read
+ an_event_whose_key_comes_later_is_read_later a_key_from_a_file_wakes_who_waits_for_it a_late_member_reads_from_then_on
- T-UTD | lost, repeated and killed | everybody_reads_what_is_meant_for_them_and_nothing_else | =

3.1 the server trusts nothing that it did not check
+ signatures the_verdict_on_a_signature_is_that_of_others
- | malformed keys | malformed_keys_are_errors | signatures
- | keys of low order | keys_with_which_nothing_is_secret | signatures

3.2 device keys
+ uploading_again_changes_nothing what_nobody_can_take_for_a_key_is_kept_as_it_is
- | malformed, of others, wrongly signed | bad_keys_are_refused | uploading_again_changes_nothing
- | other keys for the same device | only_a_device_that_signed_its_keys_keeps_them | =
- | a device id that is a key, and a key that is a device id | no_key_has_the_name_of_a_device | cross_signing

3.2 one-time and fallback keys
+ a_key_that_went_does_not_come_back
- | wrongly signed | bad_keys_are_refused | each_one_time_key_is_handed_out_once
- | wrongly signed, before the device is known | keys_that_came_before_their_device_are_looked_at_again | =
- | another key under the same id | uploading_again_changes_nothing | =

3.2 identity keys
+ cross_signing
- | one key for two purposes, two keys for one | each_identity_key_has_one_purpose_and_one_name | =
- | replaced with a stolen token | cross_signing | =
- | not signed by the master key | cross_signing | =

3.2 signatures
- | wrong | signatures_are_checked_and_kept_private | =
- | on something else, or by who may not sign | signatures_are_on_what_is_stored_and_by_who_may_sign | =
- | who trusts whom | signatures_are_checked_and_kept_private | =

3.2 keys of other servers
+ keys_of_users_of_other_servers
- | devices that nobody can use | devices_of_other_servers_whose_keys_nobody_can_use_are_dropped | =

3.3 limits
- | keys and messages without end | keys_and_messages_have_sizes | =
- | one-time keys without end | no_device_keeps_keys_without_end | =
- | a full inbox | a_full_inbox_costs_nobody_the_messages_of_other_servers | =
- | a server that fills the disk | one_server_cannot_fill_the_disk_with_messages_that_nobody_reads | =
- | large room keys | the_better_copy_of_a_key_is_kept | =

3.4 claims
- | many at once | each_one_time_key_is_handed_out_once | =
- | killed while claiming | messages_come_once_and_keys_go_once | =
- | a lost answer to an upload | a_key_that_went_does_not_come_back | =
- | a restored copy | a_copy_made_before_the_last_claim_has_no_keys | a_copy_made_after_the_last_claim_keeps_its_keys
- | a restored copy, made while it stood | a_copy_made_between_two_runs_has_no_keys | a_restart_keeps_one_time_keys
- | a database of somewhere else | a_database_without_its_mark_has_no_keys | a_restart_keeps_one_time_keys

3.5 device lists
+ who_shares_a_room_learns_of_changed_keys a_server_learns_of_the_devices_of_who_joins a_device_list_is_fetched_once_for_all_who_ask
- | lost and repeated news | who_follows_ends_with_the_lists_of_the_owners | =
- | news that were missed | a_stale_device_list_is_fetched_until_it_is_right | =
- | no list for an empty one | who_is_not_known_is_not_said_to_have_no_devices | =

3.6 messages to devices
+ messages_survive_a_restart_and_wake_who_waits messages_for_devices_of_a_service_come_once extensions_tell_the_rest
- | lost answers | messages_between_devices_come_once | =
- | killed while sending | messages_come_once_and_keys_go_once | =
- | a server in the name of others | nobody_speaks_for_users_of_others | =
- | repeated by another server | a_message_of_another_server_that_comes_twice_is_told_once | =
- | a server that is away | a_message_to_a_device_waits_for_its_server | =
- | a sender that is killed | a_sender_that_is_killed_sends_everything_in_the_end | =
- | a device that is gone | deleting_a_device_takes_everything_with_it | =
";

fn check(tests: &BTreeSet<String>, row: &str, test: &str) {
    assert!(tests.contains(test), "{row}: no test {test}");
}

#[test]
fn every_row_has_its_tests_and_every_attack_its_control() {
    let tests = coverage::tests();
    let mut names = BTreeSet::new();
    for row in ROWS.trim().split("\n\n") {
        let (head, lines) = row.split_once('\n').unwrap();
        for line in lines.lines() {
            if let Some(shown_by) = line.strip_prefix("+ ") {
                for test in shown_by.split(' ') {
                    check(&tests, head, test);
                }
                continue;
            }
            let parts = line.strip_prefix("- ").unwrap().split('|');
            let parts: Vec<&str> = parts.map(str::trim).collect();
            let [name, attack, test, control] = parts[..] else {
                panic!("{head}: {line}")
            };
            assert!(!attack.is_empty(), "{head}: {line}");
            names.insert(name);
            check(&tests, head, test);
            if control != "=" {
                check(&tests, head, control);
            }
        }
    }
    for (family, count) in FAMILIES {
        let all = match count {
            0 => vec![family.to_owned()],
            _ => (1..=count)
                .map(|number| format!("{family}-{number}"))
                .collect(),
        };
        for name in all {
            assert!(names.remove(name.as_str()), "no {name}");
        }
    }
    names.remove("");
    assert_eq!(names, BTreeSet::new(), "of no family");
}
