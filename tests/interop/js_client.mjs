// A matrix-js-sdk client with its Rust cryptography, driven by JSON lines: one request a line in, one
// answer a line out. The requests are described in README.md and are the same for every client of the
// interoperability tests.

// The library logs to the console; standard output belongs to the answers.
for (const level of ["debug", "info", "log", "trace"]) console[level] = console.error;

import "fake-indexeddb/auto";

import { mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";

import { Attachment, EncryptedAttachment } from "@matrix-org/matrix-sdk-crypto-wasm";
import { createClient, RoomEvent } from "matrix-js-sdk";

import { until } from "./js_rooms.mjs";
import { load, save } from "./js_store.mjs";
import { JsTrust } from "./js_trust.mjs";

const ENCRYPTION = {
    type: "m.room.encryption",
    state_key: "",
    content: { algorithm: "m.megolm.v1.aes-sha2" },
};
const POLL_MS = 100;
const FIRST_SYNC_SECONDS = 60;

class JsClient extends JsTrust {
    databases = null;

    /** Logs in as a new device and keeps the session in `store` for a later `restore`. */
    async login({ homeserver, user, password, store }) {
        await mkdir(store, { recursive: true });
        const { user_id, device_id, access_token } = await createClient({ baseUrl: homeserver }).loginRequest({
            type: "m.login.password",
            identifier: { type: "m.id.user", user },
            password,
            initial_device_display_name: "matrix-js-sdk",
        });
        const session = { user_id, device_id, access_token };
        await writeFile(join(store, "session.json"), JSON.stringify(session));
        return await this.#start(homeserver, session, store);
    }

    /** Goes on as the device that an earlier process logged in as. */
    async restore({ homeserver, store }) {
        const session = JSON.parse(await readFile(join(store, "session.json"), "utf8"));
        await load(join(store, "databases"));
        return await this.#start(homeserver, session, store);
    }

    /** Creates an encrypted, invitation-only room. */
    async create_room({ name, invite }) {
        const room = { name, invite, preset: "private_chat", initial_state: [ENCRYPTION] };
        const { room_id } = await this.client.createRoom(room);
        return { room_id };
    }

    /** Invites a user to a room. */
    async invite({ room_id, user_id }) {
        await this.client.invite(room_id, user_id);
        return {};
    }

    /** Waits for the invitation to come with a sync, then accepts it. */
    async join({ room_id, timeout }) {
        const invited = () => this.client.getRoom(room_id)?.getMyMembership() === "invite";
        await until(timeout, () => "no invitation", invited);
        await this.client.joinRoom(room_id);
        return {};
    }

    /** Waits until this client knows the room as encrypted and these users as joined to it. */
    async wait_members({ room_id, user_ids, timeout }) {
        const missing = () => {
            const room = this.client.getRoom(room_id);
            if (!room?.hasEncryptionStateEvent()) return ["encryption"];
            return user_ids.filter((user) => room.getMember(user)?.membership !== "join");
        };
        await until(timeout, () => `missing: ${missing()}`, () => missing().length === 0);
        return {};
    }

    /** Sends an encrypted text message. */
    async send_text({ room_id, body }) {
        return await this.#send(room_id, { msgtype: "m.text", body });
    }

    /** Uploads an encrypted file and sends the message that describes it. */
    async send_file({ room_id, name, mimetype, data }) {
        const plaintext = Buffer.from(data, "base64");
        const encrypted = Attachment.encrypt(plaintext);
        const keys = JSON.parse(encrypted.mediaEncryptionInfo);
        const { content_uri } = await this.client.uploadContent(new Blob([encrypted.encryptedData]), {
            includeFilename: false,
            type: "application/octet-stream",
        });
        return await this.#send(room_id, {
            msgtype: "m.file",
            body: name,
            info: { size: plaintext.length, mimetype },
            file: { url: content_uri, ...keys },
        });
    }

    /** Waits until an event is here and decrypted, and tells what it says. */
    async wait_event({ event_id, timeout }) {
        const deadline = Date.now() + timeout * 1000;
        let failure = "the event did not arrive";
        while (Date.now() < deadline) {
            const event = this.events.get(event_id);
            if (event && !event.isBeingDecrypted() && event.getType() !== "m.room.encrypted") {
                if (!event.isDecryptionFailure()) return await this.#described(event);
                failure = `undecryptable: ${event.decryptionFailureReason}`;
            }
            await sleep(POLL_MS);
        }
        throw new Error(failure);
    }

    /** Lists the events that no key has come for. */
    async undecryptable() {
        const failed = [...this.events].filter(([, event]) => event.isDecryptionFailure());
        return { event_ids: failed.map(([event_id]) => event_id) };
    }

    /** Stops syncing and writes the key store to disk. */
    async quit() {
        if (this.client) {
            this.client.stopClient();
            await save(this.databases);
        }
        return {};
    }

    async #start(homeserver, session, store) {
        this.databases = join(store, "databases");
        this.client = createClient({
            baseUrl: homeserver,
            userId: session.user_id,
            deviceId: session.device_id,
            accessToken: session.access_token,
            cryptoCallbacks: this.cryptoCallbacks,
            verificationMethods: ["m.sas.v1"],
        });
        await this.client.initRustCrypto({ cryptoDatabasePrefix: "interop" });
        this.listen();
        this.client.on(RoomEvent.Timeline, (event) => this.events.set(event.getId(), event));
        await this.client.startClient({ initialSyncLimit: 50, threadSupport: true });
        await until(FIRST_SYNC_SECONDS, () => "no first sync", () => this.client.isInitialSyncComplete());
        return { user_id: session.user_id, device_id: session.device_id };
    }

    async #send(room_id, content) {
        const { event_id } = await this.client.sendMessage(room_id, content);
        return { event_id };
    }

    async #described(event) {
        const { msgtype, body, file } = event.getContent();
        const description = { sender: event.getSender(), encrypted: event.isEncrypted(), body };
        if (msgtype === "m.text") return description;
        if (msgtype !== "m.file" || !file) throw new Error("neither a text nor an encrypted file");
        const { url, ...keys } = file;
        const address = this.client.mxcUrlToHttp(url, undefined, undefined, undefined, false, true, true);
        const response = await fetch(address, {
            headers: { Authorization: `Bearer ${this.client.getAccessToken()}` },
        });
        if (!response.ok) throw new Error(`the download was answered ${response.status}`);
        const ciphertext = new Uint8Array(await response.arrayBuffer());
        const plaintext = Attachment.decrypt(new EncryptedAttachment(ciphertext, JSON.stringify(keys)));
        return { ...description, data: Buffer.from(plaintext).toString("base64") };
    }
}

/** Carries one request out; an error becomes an answer too. */
async function answer(client, { id, do: name, ...request }) {
    try {
        if (typeof client[name] !== "function") throw new Error(`unknown request ${name}`);
        return { id, ok: true, ...(await client[name](request)) };
    } catch (error) {
        return { id, ok: false, error: String(error) };
    }
}

const client = new JsClient();
process.on("unhandledRejection", (reason) => console.error("unhandled rejection:", reason));
for await (const line of createInterface({ input: process.stdin })) {
    const request = JSON.parse(line);
    const served = answer(client, request).then((result) => process.stdout.write(`${JSON.stringify(result)}\n`));
    if (request.do === "quit") {
        await served;
        process.exit(0);
    }
}
process.exit(0); // the input ended: whoever asked is gone
