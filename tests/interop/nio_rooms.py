"""What a matrix-nio client does in rooms that are not encrypted: the requests of README.md under
"Rooms in the open"."""

import asyncio
import time

from nio import ErrorResponse, RoomPreset
from nio.api import PushRuleKind, RelationshipType
from nio.events.account_data import PushNotify, PushSetTweak

POLL_SECONDS = 0.1
FIRST_SYNC_SECONDS = 30


class Refused(Exception):
    """The server, or the library, answered with an error."""


def checked(response):
    """Passes a good response on, raises a bad one."""
    if isinstance(response, ErrorResponse):
        raise Refused(str(response))
    return response


class NioRooms:
    """Rooms in the open."""

    def __init__(self):
        self.client = None
        self.events = {}

    async def open_room(self, options):
        """Creates a room with these options of the specification."""
        kept = {"name", "topic", "room_version", "invite", "initial_state"}
        more = {key: value for key, value in options.items() if key in kept}
        if "preset" in options:
            more["preset"] = RoomPreset[options["preset"]]
        more["space"] = options.get("creation_content", {}).get("type") == "m.space"
        return {"room_id": checked(await self.client.room_create(**more)).room_id}

    async def send(self, room_id, type, content):
        """Sends an event of any type, once a sync has told of the room."""
        rooms = self.client.rooms
        await self._until(FIRST_SYNC_SECONDS, lambda: "no such room", lambda: room_id in rooms)
        return {"event_id": checked(await self.client.room_send(room_id, type, content)).event_id}

    async def set_state(self, room_id, type, content, state_key=""):
        """Sets a part of the state."""
        set_ = await self.client.room_put_state(room_id, type, content, state_key)
        return {"event_id": checked(set_).event_id}

    async def redact(self, room_id, event_id):
        """Redacts an event."""
        checked(await self.client.room_redact(room_id, event_id))
        return {}

    async def wait_text(self, event_id, body, timeout):
        """Waits until an event has this text, of the last edit if there is one."""

        def text():
            edits = [e.source["content"] for e in self.events.values()]
            edits = [c for c in edits if c.get("m.relates_to", {}).get("event_id") == event_id]
            edits = [c["m.new_content"]["body"] for c in edits if "m.new_content" in c]
            event = self.events.get(event_id)
            return edits[-1] if edits else event and event.source["content"].get("body")

        await self._until(timeout, lambda: f"the text is {text()}", lambda: text() == body)
        return {}

    async def wait_reactions(self, room_id, event_id, reactions, timeout):
        """Waits until an event has exactly these reactions."""
        related = await self._related(
            room_id, event_id, RelationshipType.annotation, len(reactions), timeout
        )
        keys = [event.source["content"]["m.relates_to"]["key"] for event in related]
        if sorted(keys) != sorted(reactions):
            raise Refused(f"the reactions are {keys}")
        return {}

    async def wait_thread(self, room_id, event_id, length, timeout):
        """Waits until an event has a thread of so many answers."""
        await self._related(room_id, event_id, RelationshipType.thread, length, timeout)
        return {}

    async def read(self, room_id, event_id):
        """Says that everything up to an event was read."""
        checked(await self.client.room_read_markers(room_id, event_id, event_id))
        return {}

    async def wait_read(self, room_id, user_id, event_id, timeout):
        """Waits until somebody has read up to an event."""

        def found():
            room = self.client.rooms[room_id]
            threads = room.threaded_read_receipts.get(user_id, {}).values()
            receipts = [room.read_receipts.get(user_id), *threads]
            return {receipt.event_id for receipt in receipts if receipt}

        failure = lambda: f"read up to {found()}"  # noqa: E731
        await self._until(timeout, failure, lambda: event_id in found())
        return {}

    async def type(self, room_id, typing):
        """Types, or stops."""
        checked(await self.client.room_typing(room_id, typing, 20_000))
        return {}

    async def wait_typing(self, room_id, user_id, typing, timeout):
        """Waits until somebody types, or does not."""

        def found():
            return user_id in self.client.rooms[room_id].typing_users

        await self._until(timeout, lambda: f"typing: {found()}", lambda: found() == typing)
        return {}

    async def set_presence(self, presence, message):
        """Sets the own presence."""
        checked(await self.client.set_presence(presence, message))
        return {}

    async def wait_presence(self, user_id, presence, message, timeout):
        """Waits until somebody says this of themselves."""

        def found():
            rooms = [room for room in self.client.rooms.values() if user_id in room.users]
            return {(room.users[user_id].presence, room.users[user_id].status_msg) for room in rooms}

        failure = lambda: f"is {found()}"  # noqa: E731
        await self._until(timeout, failure, lambda: (presence, message) in found())
        return {}

    async def point_out(self, word):
        """Makes a rule that points out messages with a word."""
        actions = [PushNotify(), PushSetTweak("highlight", True)]
        kind = PushRuleKind.content
        checked(await self.client.set_pushrule("global", kind, word, actions=actions, pattern=word))
        return {"patterns": [word]}

    async def wait_highlights(self, room_id, count, timeout):
        """Waits until so many messages of a room are pointed out."""

        def found():
            return self.client.rooms[room_id].unread_highlights

        await self._until(timeout, lambda: f"pointed out: {found()}", lambda: found() == count)
        return {}

    async def hierarchy(self, room_id):
        """The rooms of a space, and the space."""
        rooms = checked(await self.client.space_get_hierarchy(room_id)).rooms
        return {"rooms": [room["room_id"] for room in rooms]}

    async def upgrade(self, room_id, version):
        """Upgrades a room; the library does the steps itself."""
        upgraded = checked(await self.client.room_upgrade(room_id, version))
        return {"replacement_room": upgraded.room_id}

    async def wait_replaced(self, room_id, timeout):
        """Waits until a room says what replaced it."""
        deadline = time.monotonic() + timeout
        while True:
            tombstone = await self.client.room_get_state_event(room_id, "m.room.tombstone")
            if not isinstance(tombstone, ErrorResponse):
                return {"replacement_room": tombstone.content["replacement_room"]}
            if time.monotonic() > deadline:
                raise Refused("no tombstone")
            await asyncio.sleep(POLL_SECONDS)

    async def wait_membership(self, room_id, user_id, membership, timeout):
        """Waits until somebody is something to a room."""
        deadline = time.monotonic() + timeout
        while True:
            member = await self.client.room_get_state_event(room_id, "m.room.member", user_id)
            found = getattr(member, "content", {}).get("membership")
            if found == membership:
                return {}
            if time.monotonic() > deadline:
                raise Refused(f"is {found}")
            await asyncio.sleep(POLL_SECONDS)

    async def _related(self, room_id, event_id, kind, count, timeout):
        deadline = time.monotonic() + timeout
        while True:
            events = self.client.room_get_event_relations(room_id, event_id, kind)
            found = [event async for event in events]
            if len(found) == count:
                return found
            if time.monotonic() > deadline:
                raise Refused(f"{len(found)} events relate to it")
            await asyncio.sleep(POLL_SECONDS)

    async def _until(self, timeout, failure, condition):
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                raise Refused(failure())
            await asyncio.sleep(POLL_SECONDS)
