"""What two federated servers must be able to do together, whoever begins."""

import asyncio
import base64
import secrets

from gatherings import Gatherings
from nacl.signing import SigningKey
from people import Person, Refused, quote, until
from signedjson.sign import sign_json


# Rooms of how many versions are tried at the same time.
AT_ONCE = 3


class Wrong(Exception):
    """Something came, and it is not what was sent."""


class Peers:
    """Two servers, and everything that people on them do with each other."""

    def __init__(self, report, servers, versions, lengths):
        self.report = report
        self.servers = servers
        self.wanted = versions
        # How long the history is in the last version at first, and how long all others are.
        self.events, self.brief = lengths
        self.turns = asyncio.Semaphore(AT_ONCE)

    async def run(self):
        """All of it, and once more after each of the servers was away."""
        people = await self.pair("person")
        if people is None:
            return
        versions = await self.versions(people)
        pairs = [await self.pair(f"v{version}") for version in versions]
        if None in pairs:
            return
        await self.everything(versions, pairs, self.events)
        for index, server in enumerate(self.servers):
            await self.absence(server, versions[-1], people[1 - index], people[index])
            when = f" after {type(server).__name__} was away"
            await self.everything(versions, pairs, self.brief, when)

    async def pair(self, name):
        """Two people of this name, one on each server."""
        people = [Person(f"{server.letter}-{name}", server) for server in self.servers]
        for person in people:
            await self.check(f"{person.name} registers", person.register())
        return None if any(person.token is None for person in people) else people

    async def everything(self, versions, pairs, events, when=""):
        """All that two people do, in rooms of every version and begun by either of them."""

        async def of(version, pair):
            async with self.turns:
                length = events if version == versions[-1] else self.brief
                for here, there in both_ways(pair):
                    way = f"v{version} {here.name} → {there.name}{when}"
                    await self.meet(way, version, here, there)
                    await Gatherings(self.check).run(way, version, versions[-1], here, there)
                    await self.around_the_room(way, version, here, there)
                    backfill = self.backfill(version, here, there, length)
                    await self.check(f"{way}: {length} events from before the join", backfill)

        await asyncio.gather(*(of(version, pair) for version, pair in zip(versions, pairs)))

    async def versions(self, people):
        """The room versions that are asked for and that both servers have."""
        offered = []
        for person in people:
            answer = (await person.get("/capabilities"))["capabilities"]["m.room_versions"]
            offered.append(answer["available"].keys())
        return [v for v in self.wanted if all(v in versions for versions in offered)]

    async def check(self, name, doing):
        """One line of the report."""
        return await self.report.check(name, doing)

    async def meet(self, way, version, here, there):
        """A room from its making to its end."""
        room_id = await self.check(f"{way}: create, invite, join", self.join(version, here, there))
        if room_id is None:
            return
        await self.check(f"{way}: messages both ways", self.talk(room_id, here, there))
        await self.check(f"{way}: state", self.state(room_id, here, there))
        await self.check(f"{way}: redactions", self.redact(room_id, here, there))
        await self.check(f"{way}: at the same time", self.at_once(room_id, here, there))
        await self.check(f"{way}: kick, invite, reject", self.kick(room_id, here, there))
        await self.check(f"{way}: ban, unban, join again", self.ban(room_id, here, there))
        await self.check(f"{way}: a public room, joined and left", self.public(version, here, there))

    async def join(self, version, here, there):
        """An invite that is accepted."""
        room_id = await here.create_room(version, name="Between")
        await here.act(room_id, "invite", user_id=there.user_id)
        await there.is_asked(room_id)
        await there.join(room_id)
        await here.sees_member(room_id, there, "join")
        await there.sees_state(room_id, "m.room.name", {"name": "Between"})
        return room_id

    async def talk(self, room_id, here, there):
        """Messages in both directions."""
        for sender, reader in both_ways((here, there)):
            for number in range(3):
                body = f"{sender.name} {number}"
                await reader.reads(room_id, await sender.send(room_id, body), body)

    async def state(self, room_id, here, there):
        """State both ways, with the power to set it."""
        await here.set_state(room_id, "m.room.topic", {"topic": "Rivers"})
        await there.sees_state(room_id, "m.room.topic", {"topic": "Rivers"})
        levels = await here.state(room_id, "m.room.power_levels")
        levels.setdefault("users", {})[there.user_id] = 50
        await here.set_state(room_id, "m.room.power_levels", levels)
        await there.sees_state(room_id, "m.room.power_levels", {"users": levels["users"]})
        await there.set_state(room_id, "m.room.topic", {"topic": "Lakes"})
        await here.sees_state(room_id, "m.room.topic", {"topic": "Lakes"})

    async def redact(self, room_id, here, there):
        """What one redacts is gone for the other."""
        for sender, reader in both_ways((here, there)):
            event_id = await sender.send(room_id, "regretted")
            await reader.reads(room_id, event_id, "regretted")
            await sender.redact(room_id, event_id)

            async def gone(reader=reader, event_id=event_id):
                event = await reader.event(room_id, event_id)
                return event and event["content"] == {}

            await until(gone, f"{reader.name} sees the redaction")

    async def at_once(self, room_id, here, there):
        """Both speak and set state at the same time, and end with the same."""
        said = []
        for number in range(5):
            bodies = [(p, f"{p.name} at once {number}") for p in (here, there)]
            ids = await asyncio.gather(
                *(p.send(room_id, body) for p, body in bodies),
                *(p.set_state(room_id, "m.room.topic", {"topic": body}) for p, body in bodies),
            )
            said += [(event_id, body) for event_id, (_, body) in zip(ids, bodies)]
        for event_id, body in said:
            for reader in (here, there):
                await reader.reads(room_id, event_id, body)
        for person in (here, there):
            await there.reads(room_id, await here.send(room_id, "after"), "after")
        # A last word from one side merges the branches for both.

        async def same():
            topics = [await p.state(room_id, "m.room.topic") for p in (here, there)]
            return topics[0] == topics[1]

        await until(same, "both have the same topic")

    async def kick(self, room_id, here, there):
        """Out by another's hand, asked in again, and no."""
        await here.act(room_id, "kick", user_id=there.user_id, reason="enough")
        await self.is_out(room_id, there)
        await here.act(room_id, "invite", user_id=there.user_id)
        await there.is_asked(room_id)
        await there.act(room_id, "leave")
        await here.sees_member(room_id, there, "leave")

    async def ban(self, room_id, here, there):
        """Banned, not let in, unbanned, invited, in again."""
        await here.act(room_id, "ban", user_id=there.user_id)
        await here.sees_member(room_id, there, "ban")
        try:
            await there.join(room_id, via=here.server)
        except Refused as refused:
            if refused.status != 403:
                raise
        else:
            raise Wrong("a banned user joined")
        await here.act(room_id, "unban", user_id=there.user_id)
        await here.act(room_id, "invite", user_id=there.user_id)
        await there.is_asked(room_id)
        await there.join(room_id, via=here.server)
        await here.sees_member(room_id, there, "join")
        await there.reads(room_id, await here.send(room_id, "back"), "back")
        await here.reads(room_id, await there.send(room_id, "again"), "again")

    async def public(self, version, here, there):
        """A public room, without an invite."""
        room_id = await here.create_room(version, preset="public_chat")
        await there.join(room_id, via=here.server)
        await here.sees_member(room_id, there, "join")
        await here.reads(room_id, await there.send(room_id, "hello"), "hello")
        await there.act(room_id, "leave")
        await here.sees_member(room_id, there, "leave")

    async def is_out(self, room_id, person):
        """Waits until somebody is no longer in a room."""

        async def out():
            return room_id not in (await person.get("/joined_rooms"))["joined_rooms"]

        await until(out, f"{person.name} is out")

    async def around_the_room(self, way, version, here, there):
        """Everything that is not an event."""
        room_id = await self.check(f"{way}: a room for the rest", self.join(version, here, there))
        if room_id is None:
            return
        await self.check(f"{way}: receipts", self.receipt(room_id, here, there))
        await self.check(f"{way}: typing", self.typing(room_id, here, there))
        await self.check(f"{way}: profile", self.profile(room_id, here, there))
        await self.check(f"{way}: media", self.media(here, there))
        await self.check(f"{way}: device list", self.devices(here, there))
        await self.check(f"{way}: keys are claimed once", self.claim(here, there))
        await self.check(f"{way}: to-device messages", self.to_device(here, there))
        await self.check(f"{way}: alias and public rooms", self.directory(version, here, there))

    async def receipt(self, room_id, here, there):
        """One reads what the other said."""
        event_id = await there.send(room_id, "read this")
        await here.reads(room_id, event_id, "read this")
        since = await there.place()
        await here.post(f"/rooms/{quote(room_id)}/receipt/m.read/{quote(event_id)}")

        def wanted(sync):
            for event in ephemeral(sync, room_id, "m.receipt"):
                if here.user_id in event["content"].get(event_id, {}).get("m.read", {}):
                    return True

        await there.hears(since, wanted, "a receipt")

    async def typing(self, room_id, here, there):
        """One types, and stops."""
        since = await there.place()
        path = f"/rooms/{quote(room_id)}/typing/{quote(here.user_id)}"
        await here.put(path, {"typing": True, "timeout": 20_000})

        def types(sync):
            events = ephemeral(sync, room_id, "m.typing")
            return any(here.user_id in event["content"]["user_ids"] for event in events)

        await there.hears(since, types, "typing")
        await here.put(path, {"typing": False})

    async def profile(self, room_id, here, there):
        """A new name is asked for, and comes into the rooms."""
        name = f"Name {secrets.token_hex(4)}"
        await here.put(f"/profile/{quote(here.user_id)}/displayname", {"displayname": name})

        async def known():
            answer = await there.get(f"/profile/{quote(here.user_id)}")
            return answer.get("displayname") == name

        # Servers remember for a while what others told them.
        await until(known, f"{there.name} is told the name", 75)
        member = {"membership": "join", "displayname": name}
        await there.sees_state(room_id, "m.room.member", member, here.user_id)

    async def media(self, here, there):
        """A file of one server, through the other."""
        content = secrets.token_bytes(200_003)
        answer = await here.raw(
            "POST", "/_matrix/media/v3/upload?filename=a.bin", content, "application/octet-stream"
        )
        uri = answer.decode().split("mxc://")[1].split('"')[0]
        found = await there.raw("GET", f"/_matrix/client/v1/media/download/{uri}", None, "*/*")
        if found != content:
            raise Wrong(f"{len(found)} other bytes")

    async def devices(self, here, there):
        """Keys of a device, and that they changed."""
        await here.take_new_device()
        since = await there.place()
        keys = device_keys(here)
        await here.post("/keys/upload", {"device_keys": keys})

        def changed(sync):
            return here.user_id in sync.get("device_lists", {}).get("changed", [])

        await there.hears(since, changed, "a changed device list")

        async def queried():
            answer = await there.post("/keys/query", {"device_keys": {here.user_id: []}})
            found = answer.get("device_keys", {}).get(here.user_id, {}).get(here.device_id)
            return found and found["keys"] == keys["keys"]

        await until(queried, "the keys of the device")

    async def claim(self, here, there):
        """A one-time key goes out once."""
        name = f"signed_curve25519:{secrets.token_hex(3)}"
        key = one_time_key(here)
        await here.post("/keys/upload", {"one_time_keys": {name: key}})
        want = {"one_time_keys": {here.user_id: {here.device_id: "signed_curve25519"}}}
        first = (await there.post("/keys/claim", want))["one_time_keys"]
        if first.get(here.user_id, {}).get(here.device_id, {}).get(name, {}).get("key") != key["key"]:
            raise Wrong(f"claimed {first}")
        second = (await there.post("/keys/claim", want))["one_time_keys"]
        if second.get(here.user_id, {}).get(here.device_id):
            raise Wrong("a key came twice")

    async def to_device(self, here, there):
        """Messages to a device, each once and in order."""
        since = await there.place()
        for number in range(5):
            body = {"messages": {there.user_id: {there.device_id: {"number": number}}}}
            await here.put(f"/sendToDevice/m.interop/{secrets.token_hex(4)}", body)
        got = []

        def wanted(sync):
            for event in sync.get("to_device", {}).get("events", []):
                if event["type"] == "m.interop" and event["sender"] == here.user_id:
                    got.append(event["content"]["number"])
            return len(got) >= 5

        await there.hears(since, wanted, "messages to the device")
        if got != list(range(5)):
            raise Wrong(f"got {got}")

    async def directory(self, version, here, there):
        """Found by its alias and in the list of public rooms."""
        local = f"alias-{secrets.token_hex(4)}"
        room_id = await here.create_room(
            version, preset="public_chat", visibility="public", room_alias_name=local, name=local
        )
        alias = f"#{local}:{here.server.name}"
        found = await there.get(f"/directory/room/{quote(alias)}")
        if found["room_id"] != room_id:
            raise Wrong(f"the alias is {found}")

        async def listed():
            answer = await there.get("/publicRooms", server=here.server.name)
            return room_id in [room["room_id"] for room in answer["chunk"]]

        # Synapse counts what is in a room later, and lists it after that.
        await until(listed, "the room is listed")
        await there.join(alias)
        await here.sees_member(room_id, there, "join")

    async def backfill(self, version, here, there, length):
        """A long history from before the join is read to its beginning."""
        room_id = await here.create_room(version, preset="public_chat")
        sent = [await here.send(room_id, f"{n}") for n in range(length)]
        await there.join(room_id, via=here.server)
        found = await there.history(room_id)
        ids = [event["event_id"] for event in found]
        if len(set(ids)) != len(ids):
            raise Wrong("events came twice")
        if missing := set(sent) - set(ids):
            raise Wrong(f"{len(missing)} of {len(sent)} events are missing")
        order = [event_id for event_id in reversed(ids) if event_id in set(sent)]
        if order != sent:
            raise Wrong("the events are not in their order")
        if found[-1]["type"] != "m.room.create":
            raise Wrong(f"the history begins with {found[-1]['type']}")

    async def absence(self, server, version, staying, leaving):
        """What was said while one server was away is there after its return."""
        kind = type(server).__name__
        room_id = await self.check(f"before {kind} is away", self.join(version, staying, leaving))
        if room_id is None:
            return

        async def away():
            await asyncio.to_thread(server.stop)
            sent = [(await staying.send(room_id, f"away {n}"), f"away {n}") for n in range(30)]
            body = {"messages": {leaving.user_id: {leaving.device_id: {"away": True}}}}
            await staying.put(f"/sendToDevice/m.away/{secrets.token_hex(4)}", body)
            await asyncio.sleep(1)
            await asyncio.to_thread(server.start)
            return sent

        sent = await self.check(f"{kind} is away for a while", away())
        if sent is None:
            return

        async def back():
            for event_id, body in sent:
                await leaving.reads(room_id, event_id, body)

            async def told():
                sync = await leaving.get("/sync", timeout=0)
                return any(e["type"] == "m.away" for e in sync.get("to_device", {}).get("events", []))

            await until(told, "a message to the device from the time of absence")
            await staying.reads(room_id, await leaving.send(room_id, "back"), "back")
            await leaving.reads(room_id, await staying.send(room_id, "welcome"), "welcome")

        await self.check(f"{kind} is back and has everything", back())


def both_ways(people):
    """Each of the two as the one who begins."""
    one, other = people
    return [(one, other), (other, one)]


def ephemeral(sync, room_id, kind):
    """The ephemeral events of a kind in a room."""
    room = sync.get("rooms", {}).get("join", {}).get(room_id, {})
    return [event for event in room.get("ephemeral", {}).get("events", []) if event["type"] == kind]


def device_keys(person):
    """Keys of a device, signed by itself."""
    key = SigningKey.generate()
    key.alg, key.version = "ed25519", person.device_id
    person.key = key
    public = encode(key.verify_key.encode())
    keys = {
        "user_id": person.user_id,
        "device_id": person.device_id,
        "algorithms": ["m.olm.v1.curve25519-aes-sha2", "m.megolm.v1.aes-sha2"],
        "keys": {
            f"curve25519:{person.device_id}": unpadded(32),
            f"ed25519:{person.device_id}": public,
        },
    }
    return sign_json(keys, person.user_id, key)


def one_time_key(person):
    """A one-time key, signed by its device."""
    return sign_json({"key": unpadded(32)}, person.user_id, person.key)


def unpadded(count):
    """Random bytes as Matrix writes them."""
    return encode(secrets.token_bytes(count))


def encode(data):
    """Base64 without padding."""
    return base64.b64encode(data).decode().rstrip("=")
