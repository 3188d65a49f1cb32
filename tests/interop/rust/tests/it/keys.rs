//! Backups, secret storage, key files and attachments: made by one, read by the other.

use std::io::Read as _;

use matrix_ruma::events::secret_storage::key::SecretStorageKeyEventContent;
use matrix_sdk_crypto::{
    AttachmentDecryptor, AttachmentEncryptor, MediaEncryptionInfo,
    backups::MegolmV1BackupKey,
    decrypt_room_key_export, encrypt_room_key_export,
    olm::{BackedUpRoomKey, ExportedRoomKey},
    secret_storage::SecretStorageKey,
    store::types::BackupDecryptionKey,
    types::RoomKeyBackupInfo,
};
use serde_json::{Value, json};
use sotto_client::{
    SystemEnvironment,
    attachment::{self, EncryptedFile},
    crypto::{KeyDescription, Secret, SenderTrust, StorageKey},
};
use sotto_interop::{Ours, ROOM, Server, Theirs};

use crate::{ALICE, BOB, messages::two};

/// An event that ours wrote and theirs has read, and one of the other direction.
async fn conversation() -> (Server, Ours, Theirs, [Value; 2]) {
    let (mut server, mut ours, mut theirs) = two().await;
    let one = ours.say(&mut server, &[ALICE, BOB], "ours").await;
    let two = theirs.say(&mut server, &[ALICE, BOB], "theirs").await;
    ours.sync(&mut server).await;
    theirs.sync(&mut server).await;
    (server, ours, theirs, [one, two])
}

/// All keys of ours, as the server keeps them.
async fn our_backup(ours: &Ours) -> (Secret, Value, Value) {
    let (secret, info) = ours.machine.new_backup().await.unwrap();
    ours.machine.use_backup("1", &info, &secret).await.unwrap();
    let mut rooms = json!({});
    while let Some(upload) = ours.machine.backup_upload().await.unwrap() {
        for (room, sessions) in &upload.rooms {
            rooms[room.as_str()]["sessions"] = json!(sessions);
        }
        ours.machine.backed_up(&upload).await.unwrap();
    }
    (secret, info, rooms)
}

#[tokio::test]
async fn theirs_restores_our_backup() {
    let (mut server, mut ours, _, events) = conversation().await;
    let (secret, info, rooms) = our_backup(&ours).await;
    let theirs = Theirs::new(&mut server, ALICE, "TABLET").await;
    ours.sync(&mut server).await;
    let key = BackupDecryptionKey::from_base64(secret.expose()).unwrap();
    let info: RoomKeyBackupInfo = serde_json::from_value(info).unwrap();
    assert!(key.backup_key_matches(&info));
    let mut keys = Vec::new();
    for (id, session) in rooms[ROOM]["sessions"].as_object().unwrap() {
        let data = serde_json::from_value(session["session_data"].clone()).unwrap();
        let data: BackedUpRoomKey = key.decrypt_session_data(data).unwrap();
        let room = ROOM.try_into().unwrap();
        keys.push(ExportedRoomKey::from_backed_up_room_key(
            room,
            id.clone(),
            data,
        ));
    }
    assert!(keys.len() >= 2);
    let imported = theirs
        .machine
        .store()
        .import_room_keys(keys, Some("1"), |_, _| {});
    assert!(imported.await.unwrap().imported_count >= 2);
    for (event, text) in events.iter().zip(["ours", "theirs"]) {
        assert_eq!(theirs.read(event).await.as_deref(), Some(text));
    }
}

#[tokio::test]
async fn theirs_knows_that_our_backup_is_of_the_same_user() {
    let mut server = Server::default();
    let mut ours = Ours::with_identity(&mut server, ALICE, "OURS").await;
    let mut theirs = Theirs::with_identity(&mut server, BOB, "THEIRS").await;
    ours.sync(&mut server).await;
    theirs.sync(&mut server).await;
    let (_, info, _) = our_backup(&ours).await;
    // A device of theirs that has our private keys.
    let tablet = Theirs::new(&mut server, ALICE, "TABLET").await;
    let secrets = ours.machine.secrets().await.unwrap();
    let secret = |name: &str| Some(secrets[name].expose().to_owned());
    let export = matrix_sdk_crypto::CrossSigningKeyExport {
        master_key: secret("m.cross_signing.master"),
        self_signing_key: secret("m.cross_signing.self_signing"),
        user_signing_key: secret("m.cross_signing.user_signing"),
    };
    tablet
        .machine
        .import_cross_signing_keys(export)
        .await
        .unwrap();
    assert!(tablet.machine.cross_signing_status().await.is_complete());
    let verify = async |theirs: &Theirs, info: &Value| {
        let info = serde_json::from_value(info.clone()).unwrap();
        let verified = theirs.machine.backup_machine().verify_backup(info, false);
        verified.await.unwrap().trusted()
    };
    assert!(verify(&tablet, &info).await);
    let mut forged = info.clone();
    let (_, foreign) = ours.machine.new_backup().await.unwrap();
    forged["auth_data"]["public_key"] = foreign["auth_data"]["public_key"].clone();
    assert!(!verify(&tablet, &forged).await, "control");
}

#[tokio::test]
async fn ours_restores_their_backup() {
    let (mut server, mut ours, theirs, events) = conversation().await;
    let key = BackupDecryptionKey::new();
    let public: MegolmV1BackupKey = key.megolm_v1_public_key();
    public.set_version("1".to_owned());
    let machine = theirs.machine.backup_machine();
    let mut info = key.to_backup_info();
    machine.sign_backup(&mut info).await.unwrap();
    machine.enable_backup_v1(public).await.unwrap();
    let (_, request) = machine.backup().await.unwrap().unwrap();
    let rooms = json!(request.rooms);
    let phone = Ours::new(&mut server, BOB, "PHONE").await;
    ours.sync(&mut server).await;
    let secret = Secret::new(key.to_base64());
    let info = json!(info);
    phone.machine.use_backup("1", &info, &secret).await.unwrap();
    assert!(phone.machine.take_backup(&rooms).await.unwrap() >= 2);
    for (event, text) in events.iter().zip(["ours", "theirs"]) {
        let event = phone.decrypt(event).await.unwrap();
        assert_eq!(event.content["body"], text);
        assert_eq!(event.sender.trust, SenderTrust::Imported);
    }
}

#[tokio::test]
async fn each_reads_the_key_file_of_the_other() {
    let (mut server, ours, theirs, events) = conversation().await;
    let passphrase = "correct horse battery staple";
    let secret = Secret::new(passphrase);
    let file = ours.machine.export_room_keys(&secret).await.unwrap();
    let tablet = Theirs::new(&mut server, ALICE, "TABLET").await;
    let keys = decrypt_room_key_export(file.as_bytes(), passphrase).unwrap();
    let imported = tablet
        .machine
        .store()
        .import_exported_room_keys(keys, |_, _| {});
    imported.await.unwrap();
    let all = theirs
        .machine
        .store()
        .export_room_keys(|_| true)
        .await
        .unwrap();
    let file = encrypt_room_key_export(&all, passphrase, 1000).unwrap();
    let phone = Ours::new(&mut server, BOB, "PHONE").await;
    let wrong = phone
        .machine
        .import_room_keys(&file, &Secret::new("wrong"))
        .await;
    assert!(wrong.is_err());
    phone
        .machine
        .import_room_keys(&file, &secret)
        .await
        .unwrap();
    for (event, text) in events.iter().zip(["ours", "theirs"]) {
        assert_eq!(tablet.read(event).await.as_deref(), Some(text));
        assert_eq!(phone.read(event).await.as_deref(), Some(text));
    }
}

#[tokio::test]
async fn each_opens_the_secret_storage_of_the_other() {
    let name = "m.cross_signing.master";
    let (ours, description) =
        StorageKey::new_from_passphrase(&SystemEnvironment, &Secret::new("a passphrase")).unwrap();
    let secret = Secret::new("the secret");
    let stored = ours
        .encrypt(&SystemEnvironment, "key", name, &secret)
        .unwrap();
    let content: SecretStorageKeyEventContent = read_key("key", &json!(description));
    let recovery_key = ours.recovery_key();
    for input in ["a passphrase", recovery_key.expose()] {
        let key = SecretStorageKey::from_account_data(input, content.clone()).unwrap();
        let data = stored["encrypted"]["key"].clone();
        let data = serde_json::from_value(data).unwrap();
        assert_eq!(key.decrypt(&data, &name.into()).unwrap(), b"the secret");
        assert!(key.decrypt(&data, &"m.other".into()).is_err(), "control");
    }
    assert!(SecretStorageKey::from_account_data("another", content).is_err());

    let theirs = SecretStorageKey::new_from_passphrase("a passphrase");
    let data = theirs.encrypt(b"the secret".to_vec(), &name.into());
    let stored = json!({ "encrypted": { theirs.key_id(): data } });
    let description = json!(theirs.event_content());
    let description: KeyDescription = serde_json::from_value(description).unwrap();
    let by_key = StorageKey::from_recovery_key(&Secret::new(theirs.to_base58())).unwrap();
    let passphrase = Secret::new("a passphrase");
    let by_passphrase = StorageKey::from_passphrase(&passphrase, &description).unwrap();
    for key in [by_key, by_passphrase] {
        key.check(&description).unwrap();
        let stored = stored.as_object().unwrap();
        let secret = key.decrypt(theirs.key_id(), name, stored).unwrap();
        assert_eq!(secret.expose(), "the secret");
    }
}

fn read_key(id: &str, description: &Value) -> SecretStorageKeyEventContent {
    use matrix_ruma::events::EventContentFromType;
    let raw = serde_json::value::to_raw_value(description).unwrap();
    let kind = format!("m.secret_storage.key.{id}");
    SecretStorageKeyEventContent::from_parts(&kind, &raw).unwrap()
}

#[test]
fn each_decrypts_the_attachments_of_the_other() {
    let file: Vec<u8> = (0..100_000_u32).map(|byte| byte.to_le_bytes()[0]).collect();
    let url = "mxc://example.org/file";
    let (ciphertext, secrets) = attachment::encrypt(file.clone(), &SystemEnvironment).unwrap();
    let described = json!(secrets.at(url.into()));
    let info: MediaEncryptionInfo = serde_json::from_value(described).unwrap();
    let mut reader = &ciphertext[..];
    let mut read = Vec::new();
    let mut decryptor = AttachmentDecryptor::new(&mut reader, info).unwrap();
    decryptor.read_to_end(&mut read).unwrap();
    assert_eq!(read, file);

    let mut reader = &file[..];
    let mut encryptor = AttachmentEncryptor::new(&mut reader);
    let mut ciphertext = Vec::new();
    encryptor.read_to_end(&mut ciphertext).unwrap();
    let mut described = json!(encryptor.finish());
    described["url"] = url.into();
    let described: EncryptedFile = serde_json::from_value(described).unwrap();
    let mut broken = ciphertext.clone();
    broken[5000] ^= 1;
    assert!(attachment::decrypt(broken, &described).is_err(), "control");
    assert_eq!(attachment::decrypt(ciphertext, &described).unwrap(), file);
}
