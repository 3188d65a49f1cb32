// Verification, recovery and key files of the matrix-js-sdk client.

import { setTimeout as sleep } from "node:timers/promises";

import { OlmMachine } from "@matrix-org/matrix-sdk-crypto-wasm";
import { CryptoEvent, decodeRecoveryKey, VerificationPhase } from "matrix-js-sdk/lib/crypto-api/index.js";

import { JsRooms, until } from "./js_rooms.mjs";

const SECONDS = 30;
const SAS = "m.sas.v1";
// Few, for the tests: others take any number.
const ROUNDS = 10_000;

export class JsTrust extends JsRooms {
    #requests = new Map();
    #storageKey = null;
    #verifying = null;

    /** What the library asks for when it opens or makes a secret storage. */
    cryptoCallbacks = {
        getSecretStorageKey: async ({ keys }) => this.#storageKey && [Object.keys(keys)[0], this.#storageKey],
        cacheSecretStorageKey: (_id, _info, key) => (this.#storageKey = key),
    };

    /** Follows the requests of others. */
    listen() {
        this.client.on(CryptoEvent.VerificationRequestReceived, (request) => this.#keep(request));
    }

    /** All room keys, as a file. */
    async export_keys({ passphrase }) {
        const keys = await this.#crypto.exportRoomKeysAsJson();
        return { file: OlmMachine.encryptExportedRoomKeys(keys, passphrase, ROUNDS) };
    }

    /** Takes the room keys of a file. */
    async import_keys({ file, passphrase }) {
        await this.#crypto.importRoomKeysAsJson(OlmMachine.decryptExportedRoomKeys(file, passphrase));
        return {};
    }

    /** Makes an identity, a secret storage and a backup; tells the recovery key. */
    async set_up_recovery() {
        await this.#makeIdentity();
        const key = await this.#crypto.createRecoveryKeyFromPassphrase();
        await this.#crypto.bootstrapSecretStorage({
            createSecretStorageKey: async () => key,
            setupNewSecretStorage: true,
            setupNewKeyBackup: true,
        });
        return { key: key.encodedPrivateKey };
    }

    /** Opens the secret storage and takes identity and backup from it. */
    async recover({ key }) {
        this.#storageKey = decodeRecoveryKey(key);
        await this.#makeIdentity();
        await this.#crypto.loadSessionBackupPrivateKeyFromSecretStorage();
        await this.#crypto.restoreKeyBackup();
        const [user, device] = [this.client.getUserId(), this.client.getDeviceId()];
        const status = await this.#crypto.getDeviceVerificationStatus(user, device);
        return { verified: status.crossSigningVerified };
    }

    /** Asks somebody in a room for a verification. */
    async ask_verification({ room_id, user_id }) {
        await this.#makeIdentity();
        this.#keep(await this.#crypto.requestVerificationDM(user_id, room_id));
        return {};
    }

    /** Waits until somebody asks for a verification, and agrees. */
    async accept_verification({ user_id }) {
        await this.#makeIdentity();
        await until(SECONDS, () => "nobody asks", () => this.#requests.has(user_id));
        await this.#requests.get(user_id).accept();
        return {};
    }

    /** Tells what the person sees. */
    async compare({ user_id, start }) {
        const request = this.#requests.get(user_id);
        if (start) {
            await until(SECONDS, () => "they do not agree", () => request.phase === VerificationPhase.Ready);
            await request.startVerification(SAS);
        }
        await until(SECONDS, () => "it does not start", () => request.verifier);
        this.#verifying = request.verifier.verify();
        this.#verifying.catch((error) => console.error("verification:", error));
        await until(SECONDS, () => "nothing is shown", () => request.verifier.getShowSasCallbacks());
        const { sas } = request.verifier.getShowSasCallbacks();
        return { emoji: sas.emoji.map(([, name]) => name) };
    }

    /** The person says that it is the same. */
    async confirm({ user_id }) {
        await this.#requests.get(user_id).verifier.getShowSasCallbacks().confirm();
        await this.#verifying;
        return {};
    }

    /** Whether somebody is verified. */
    async is_verified({ user_id }) {
        const deadline = Date.now() + SECONDS * 1000;
        for (;;) {
            const status = await this.#crypto.getUserVerificationStatus(user_id);
            const verified = status.isCrossSigningVerified();
            if (verified || Date.now() > deadline) return { verified };
            await sleep(100);
        }
    }

    get #crypto() {
        return this.client.getCrypto();
    }

    #keep(request) {
        this.#requests.set(request.otherUserId, request);
    }

    async #makeIdentity() {
        // Private keys are taken only where the public ones are known.
        await this.#crypto.userHasCrossSigningKeys(undefined, true);
        await this.#crypto.bootstrapCrossSigning({ authUploadDeviceSigningKeys: (upload) => upload(null) });
    }
}
