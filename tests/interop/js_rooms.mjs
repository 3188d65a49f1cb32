// What a matrix-js-sdk client does in rooms that are not encrypted: the requests of README.md under
// "Rooms in the open".

import { setTimeout as sleep } from "node:timers/promises";

import { EventType, RelationType } from "matrix-js-sdk";

const POLL_MS = 100;

/** A client in rooms that are not encrypted. */
export class JsRooms {
    client = null;
    events = new Map();

    /** Creates a room with these options of the specification. */
    async open_room({ options }) {
        const { room_id } = await this.client.createRoom(options);
        return { room_id };
    }

    /** Sends an event of any type. */
    async send({ room_id, type, content }) {
        const { event_id } = await this.client.sendEvent(room_id, type, content);
        return { event_id };
    }

    /** Sets a part of the state. */
    async set_state({ room_id, type, content, state_key }) {
        const { event_id } = await this.client.sendStateEvent(room_id, type, content, state_key ?? "");
        return { event_id };
    }

    /** Redacts an event. */
    async redact({ room_id, event_id }) {
        await this.client.redactEvent(room_id, event_id);
        return {};
    }

    /** Waits until an event has this text, of the last edit if there is one. */
    async wait_text({ event_id, body, timeout }) {
        const text = () => this.#event(event_id)?.getContent().body;
        await until(timeout, () => `the text is ${text()}`, () => text() === body);
        return {};
    }

    /** Waits until an event has exactly these reactions. */
    async wait_reactions({ room_id, event_id, reactions, timeout }) {
        const found = () => {
            const relations = this.client.getRoom(room_id)?.relations;
            const children = relations?.getChildEventsForEvent(event_id, RelationType.Annotation, EventType.Reaction);
            const keys = (children?.getRelations() ?? []).filter((event) => !event.isRedacted());
            return keys.map((event) => event.getRelation().key).sort();
        };
        const same = () => JSON.stringify(found()) === JSON.stringify([...reactions].sort());
        await until(timeout, () => `the reactions are ${found()}`, same);
        return {};
    }

    /** Waits until an event has a thread of so many answers. */
    async wait_thread({ room_id, event_id, length, timeout }) {
        const found = () => this.client.getRoom(room_id)?.getThread(event_id)?.length;
        await until(timeout, () => `the thread has ${found()}`, () => found() === length);
        return {};
    }

    /** Says that everything up to an event was read. */
    async read({ event_id }) {
        await this.client.sendReadReceipt(this.#event(event_id));
        return {};
    }

    /** Waits until somebody has read up to an event. */
    async wait_read({ room_id, user_id, event_id, timeout }) {
        const found = () => this.client.getRoom(room_id)?.getEventReadUpTo(user_id, true);
        await until(timeout, () => `read up to ${found()}`, () => found() === event_id);
        return {};
    }

    /** Types, or stops. */
    async type({ room_id, typing }) {
        await this.client.sendTyping(room_id, typing, 20_000);
        return {};
    }

    /** Waits until somebody types, or does not. */
    async wait_typing({ room_id, user_id, typing, timeout }) {
        const found = () => this.client.getRoom(room_id)?.getMember(user_id)?.typing;
        await until(timeout, () => `typing: ${found()}`, () => found() === typing);
        return {};
    }

    /** Sets the own presence. */
    async set_presence({ presence, message }) {
        await this.client.setSyncPresence(presence); // or every sync says "online"
        await this.client.setPresence({ presence, status_msg: message });
        return {};
    }

    /** Waits until somebody says this of themselves. */
    async wait_presence({ user_id, presence, message, timeout }) {
        const user = () => this.client.getUser(user_id);
        const found = () => `${user()?.presence} ${user()?.presenceStatusMsg}`;
        await until(timeout, () => `is ${found()}`, () => found() === `${presence} ${message}`);
        return {};
    }

    /** Makes a rule that points out messages with a word. */
    async point_out({ word }) {
        const actions = ["notify", { set_tweak: "highlight" }];
        await this.client.addPushRule("global", "content", word, { pattern: word, actions });
        const { global } = await this.client.getPushRules();
        return { patterns: global.content.map((rule) => rule.pattern).filter(Boolean) };
    }

    /** Waits until so many messages of a room are pointed out. */
    async wait_highlights({ room_id, count, timeout }) {
        const found = () => this.client.getRoom(room_id)?.getUnreadNotificationCount("highlight");
        await until(timeout, () => `pointed out: ${found()}`, () => found() === count);
        return {};
    }

    /** The rooms of a space, and the space. */
    async hierarchy({ room_id }) {
        const { rooms } = await this.client.getRoomHierarchy(room_id);
        return { rooms: rooms.map((room) => room.room_id) };
    }

    /** Upgrades a room. */
    async upgrade({ room_id, version }) {
        const { replacement_room } = await this.client.upgradeRoom(room_id, version);
        return { replacement_room };
    }

    /** Waits until a room says what replaced it. */
    async wait_replaced({ room_id, timeout }) {
        const tombstone = () => this.client.getRoom(room_id)?.currentState.getStateEvents("m.room.tombstone", "");
        await until(timeout, () => "no tombstone", () => tombstone());
        return { replacement_room: tombstone().getContent().replacement_room };
    }

    /** Asks to be let into a room of another server. */
    async knock({ room_id, via }) {
        await this.client.knockRoom(room_id, { viaServers: [via], reason: "please" });
        return {};
    }

    /** Waits until somebody is something to a room. */
    async wait_membership({ room_id, user_id, membership, timeout }) {
        const found = () => this.client.getRoom(room_id)?.getMember(user_id)?.membership;
        await until(timeout, () => `is ${found()}`, () => found() === membership);
        return {};
    }

    /** Everything that is found, page by page, the newest first. */
    async search({ term, room_id, limit }) {
        const found = await this.client.searchRoomEvents({ term, filter: { rooms: [room_id], limit } });
        while (found.next_batch) await this.client.backPaginateRoomEventsSearch(found);
        const event_ids = found.results.map((result) => result.context.getEvent().getId());
        return { count: found.count, highlights: found.highlights, event_ids };
    }

    #event(event_id) {
        const events = this.client.getRooms().map((room) => room.findEventById(event_id));
        return events.find(Boolean);
    }
}

export async function until(timeout, failure, condition) {
    const deadline = Date.now() + timeout * 1000;
    while (!condition()) {
        if (Date.now() > deadline) throw new Error(failure());
        await sleep(POLL_MS);
    }
}
