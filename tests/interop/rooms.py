"""What two people do in rooms that are not encrypted, each with the client of another, on two servers."""

from scenario import Mismatch

SECONDS = 30


class Rooms:
    """Edits, reactions, threads, receipts, typing, presence, rules, search, spaces, upgrades, knocks.

    Each is done by both: the one who `makes` a room, and the one who is its `guest`.
    """

    def __init__(self, report, maker, guest):
        self.report = report
        self.maker = maker
        self.guest = guest
        self.room_id = None

    async def run(self):
        """All of it, in one room."""
        maker, guest = self.maker, self.guest
        if maker.session is None or guest.session is None:
            return
        self.room_id = await self.check("makes a room, the other joins", self.make())
        if self.room_id is None:
            return
        for one, other in ((maker, guest), (guest, maker)):
            await self.check("edits", self.edit(one, other), one)
            await self.check("is reacted to, and not any more", self.react(one, other), one)
            await self.check("is answered in a thread", self.thread(one, other), one)
            await self.check("is read", self.receipt(one, other), one)
            await self.check("types", self.typing(one, other), one)
            await self.check("is present", self.presence(one, other), one)
            await self.check("has a word pointed out", self.rule(one, other), one)
        if "search" in maker.can:
            await self.check("searches", self.search(maker, guest))
        await self.check("makes a space, the other looks into it", self.space())
        await self.check("upgrades a room, the other follows", self.upgrade())
        if "knock" in guest.can:
            await self.check("is knocked at", self.knock())

    async def check(self, what, doing, who=None):
        """One line of the report."""
        return await self.report.check(f"in the open: {(who or self.maker).name} {what}", doing)

    async def make(self, **options):
        """A room that both are in."""
        invited = {"name": "Open", "preset": "private_chat", "invite": [self.guest.user_id]}
        made = await self.maker.call("open_room", options={**invited, **options})
        room_id = made["room_id"]
        await self.guest.call("join", room_id=room_id, timeout=SECONDS)
        await self.is_member(self.maker, room_id, self.guest, "join")
        return room_id

    async def say(self, person, body, room_id=None, **more):
        """Somebody says something; the event id."""
        content = {"msgtype": "m.text", "body": body, **more}
        room_id = room_id or self.room_id
        arguments = {"room_id": room_id, "type": "m.room.message", "content": content}
        return (await person.call("send", **arguments))["event_id"]

    async def wait(self, person, what, **arguments):
        """Somebody waits for something in the room."""
        await person.call(f"wait_{what}", timeout=SECONDS, **arguments)

    async def is_member(self, person, room_id, other, membership):
        """Somebody sees what another one is to a room."""
        arguments = {"user_id": other.user_id, "membership": membership}
        await self.wait(person, "membership", room_id=room_id, **arguments)

    async def edit(self, one, other):
        """A text becomes another one, twice."""
        event_id = await self.say(one, "first words")
        await self.wait(other, "text", event_id=event_id, body="first words")
        for body in ("second thoughts", "last words"):
            new = {"msgtype": "m.text", "body": body}
            relation = {"rel_type": "m.replace", "event_id": event_id}
            await self.say(one, f"* {body}", **{"m.new_content": new, "m.relates_to": relation})
            for person in (one, other):
                await self.wait(person, "text", event_id=event_id, body=body)

    async def react(self, one, other):
        """Reactions come and go."""
        event_id = await self.say(one, "applause, please")
        await self.wait(other, "text", event_id=event_id, body="applause, please")
        sent = []
        for person, key in ((one, "👍"), (other, "👏"), (other, "👍")):
            relation = {"rel_type": "m.annotation", "event_id": event_id, "key": key}
            arguments = {"type": "m.reaction", "content": {"m.relates_to": relation}}
            sent.append((await person.call("send", room_id=self.room_id, **arguments))["event_id"])
        for keys in (["👍", "👍", "👏"], ["👍", "👍"]):
            for person in (one, other):
                place = {"room_id": self.room_id, "event_id": event_id}
                await self.wait(person, "reactions", reactions=keys, **place)
            await other.call("redact", room_id=self.room_id, event_id=sent[1])

    async def thread(self, one, other):
        """A thread of two answers."""
        event_id = await self.say(one, "a root")
        await self.wait(other, "text", event_id=event_id, body="a root")
        for person in (other, one):
            relation = {"rel_type": "m.thread", "event_id": event_id}
            await self.say(person, "an answer", **{"m.relates_to": relation})
        for person in (one, other):
            await self.wait(person, "thread", room_id=self.room_id, event_id=event_id, length=2)

    async def receipt(self, one, other):
        """The other reads, and the one sees it."""
        event_id = await self.say(one, "read this")
        await self.wait(other, "text", event_id=event_id, body="read this")
        place = {"room_id": self.room_id, "event_id": event_id}
        await other.call("read", **place)
        await self.wait(one, "read", user_id=other.user_id, **place)

    async def typing(self, one, other):
        """Typing begins and ends."""
        for typing in (True, False):
            await one.call("type", room_id=self.room_id, typing=typing)
            place = {"room_id": self.room_id, "user_id": one.user_id}
            await self.wait(other, "typing", typing=typing, **place)

    async def presence(self, one, other):
        """Presence changes."""
        for presence, message in (("unavailable", "at lunch"), ("online", "back")):
            said = {"presence": presence, "message": message}
            await one.call("set_presence", **said)
            await self.wait(other, "presence", user_id=one.user_id, **said)

    async def rule(self, one, other):
        """A word of one's own is pointed out until it was read."""
        word = f"cake-{one.name}"
        patterns = (await one.call("point_out", word=word))["patterns"]
        if word not in patterns:
            raise Mismatch(f"the patterns are {patterns}")
        room_id = await self.make_silent()
        await self.say(other, "only bread", room_id)
        event_id = await self.say(other, f"there is {word.upper()}!", room_id)
        body = f"there is {word.upper()}!"
        await self.wait(one, "text", event_id=event_id, body=body)
        await self.wait(one, "highlights", room_id=room_id, count=1)
        await one.call("read", room_id=room_id, event_id=event_id)
        await self.wait(one, "highlights", room_id=room_id, count=0)

    async def make_silent(self):
        """Another room, in which nothing was said."""
        return await self.make(name="Silent")

    async def search(self, one, other):
        """What both said is found, page by page, in its newest words; what was redacted is not."""
        room_id = await self.make(name="Library")
        sent = []
        for number in range(7):
            body = f"Book number {number}"
            sent.append(await self.say((one, other)[number % 2], body, room_id))
            # What is found comes in the order in which it came to the server of the one who searches.
            await self.wait(one, "text", event_id=sent[-1], body=body)
        new = {"msgtype": "m.text", "body": "Volume three"}
        relation = {"rel_type": "m.replace", "event_id": sent[2]}
        more = {"m.new_content": new, "m.relates_to": relation}
        await self.say(one, "* Volume three", room_id, **more)
        await one.call("redact", room_id=room_id, event_id=sent[4])
        found = await one.call("search", term="BOOK number", room_id=room_id, limit=2)
        wanted = [sent[index] for index in (6, 5, 3, 1, 0)]
        if found["event_ids"] != wanted or found["count"] != len(wanted):
            raise Mismatch(f"found {found}")
        edited = await one.call("search", term="volume", room_id=room_id, limit=2)
        if edited["event_ids"] != [sent[2]]:
            raise Mismatch(f"found {edited}")

    async def space(self):
        """A space with a room."""
        creation = {"creation_content": {"type": "m.space"}}
        space_id = await self.make(name="Space", **creation)
        via = {"via": [self.maker.server.name]}
        child = {"type": "m.space.child", "content": via, "state_key": self.room_id}
        await self.maker.call("set_state", room_id=space_id, **child)
        for person in (self.maker, self.guest):
            rooms = []
            for _ in range(SECONDS):
                rooms = (await person.call("hierarchy", room_id=space_id))["rooms"]
                if rooms == [space_id, self.room_id]:
                    break
            else:
                raise Mismatch(f"{person.name} sees {rooms}")

    async def upgrade(self):
        """A room is replaced, and both find the new one."""
        old = await self.make(name="Old", room_version="10")
        made = await self.maker.call("upgrade", room_id=old, version="11")
        new = made["replacement_room"]
        seen = await self.guest.call("wait_replaced", room_id=old, timeout=SECONDS)
        if seen["replacement_room"] != new:
            raise Mismatch(f"another room: {seen}")
        await self.maker.call("invite", room_id=new, user_id=self.guest.user_id)
        await self.guest.call("join", room_id=new, timeout=SECONDS)
        event_id = await self.say(self.maker, "here we are", new)
        await self.wait(self.guest, "text", event_id=event_id, body="here we are")

    async def knock(self):
        """Somebody knocks and is let in."""
        rule = {"type": "m.room.join_rules", "state_key": "", "content": {"join_rule": "knock"}}
        options = {"name": "Closed", "initial_state": [rule]}
        room_id = (await self.maker.call("open_room", options=options))["room_id"]
        await self.guest.call("knock", room_id=room_id, via=self.maker.server.name)
        await self.is_member(self.maker, room_id, self.guest, "knock")
        await self.maker.call("invite", room_id=room_id, user_id=self.guest.user_id)
        await self.guest.call("join", room_id=room_id, timeout=SECONDS)
        await self.is_member(self.maker, room_id, self.guest, "join")
