"""Messages between Matrix and IRC, and an encrypted room with a service in it."""

import asyncio
import time

from irc import IrcClient
from people import Late, Person, quote

SECONDS = 60
CHANNEL = "#garden"


class Carrying:
    """The scenario."""

    def __init__(self, report, server, irc, services, nio):
        self.report = report
        self.server = server
        self.irc = irc
        self.heisenbridge, self.echo = services
        self.nio = nio
        self.ann = Person("ann", server)
        self.ida = IrcClient("ida", irc.port, CHANNEL)
        self.room_id = None

    async def run(self):
        """All checks, in order."""
        check = self.report.check
        await check("ida is on IRC", self.ida.join())
        await check("ann registers", self.ann.register())
        await check("ann lets the bridge connect", self.connect())
        await check("ann gets a room for the channel", self.enter())
        await check("messages go both ways", self.both_ways("at first"))
        await check("the server comes again", self.restart_server())
        await check("messages go both ways, the server anew", self.both_ways("server anew"))
        await check("the bridge comes again", self.restart_bridge())
        await check("messages go both ways, the bridge anew", self.both_ways("bridge anew"))
        await self.encrypted()

    async def connect(self):
        """Tells the bridge of the IRC server."""
        bot = f"@heisenbridge:{self.server.name}"
        control = await self.ann.create_room("11", invite=[bot], is_direct=True)
        await self.joined(control, bot)
        for command in (
            "ADDNETWORK garden", f"ADDSERVER garden 127.0.0.1 {self.irc.port}", "OPEN garden",
        ):  # fmt: skip
            await self.ann.send(control, command)
        network = await self.invited({control})
        await self.ann.join(network)
        for command in ("NICK ann", "CONNECT"):
            await self.ann.send(network, command)
        await self.reads("Welcome to the Internet Relay Network", network)
        await self.ann.send(network, f"JOIN {CHANNEL}")
        await self.ida.sees("ann")

    async def enter(self):
        """The bridge makes a room for the channel."""
        self.room_id = await self.invited(set())
        await self.ann.join(self.room_id)

    async def both_ways(self, when):
        """Somebody says something on either side; each message comes once."""
        await self.ann.send(self.room_id, f"from matrix {when}")
        await self.ida.hears(f"from matrix {when}")
        self.ida.say(f"from irc {when}")
        seen = await self.reads(f"from irc {when}")
        if seen["sender"] != f"@irc_garden_ida:{self.server.name}":
            raise Late(f"{seen['sender']} said it")
        heard = [line for line in self.ida.heard if f"from matrix {when}" in line]
        if len(heard) != 1:
            raise Late(f"it was heard {len(heard)} times")

    async def restart_server(self):
        """The server ends and comes again."""
        await asyncio.to_thread(self.server.stop)
        await asyncio.to_thread(self.server.start)

    async def restart_bridge(self):
        """The bridge is killed and comes again, and connects to IRC by itself."""
        self.heisenbridge.kill()
        await self.ann.send(self.room_id, "while nobody listens")
        self.ida.heard.clear()
        await self.heisenbridge.start(self.server)
        await self.ida.sees("ann")

    async def encrypted(self):
        """A bot that is an application service reads and writes in an encrypted room."""
        check, bot = self.report.check, f"@echobot:{self.server.name}"
        await asyncio.to_thread(self.server.register, "nio", "the password of nio")
        await check("nio logs in", self.nio.login("the password of nio"))
        made = await check(
            "nio makes an encrypted room", self.nio.call("create_room", name="e", invite=[bot])
        )
        room_id = made["room_id"]
        waits = self.nio.call(
            "wait_members", room_id=room_id, user_ids=[bot, self.nio.user_id], timeout=SECONDS
        )
        await check("the bot joins it", waits)
        await check("the bot reads and answers", self.echoed(room_id, "at first"))
        self.echo.kill()
        sent = await self.nio.call("send_text", room_id=room_id, body="while it was away")
        await check("the bot comes again", self.echo.start(self.server))
        await check("it reads what it missed", self.answered(room_id, sent, "while it was away"))
        await check("the server comes again", self.restart_server())
        await check("the bot reads and answers, anew", self.echoed(room_id, "server anew"))

    async def echoed(self, room_id, text):
        """What is said is repeated."""
        sent = await self.nio.call("send_text", room_id=room_id, body=text)
        await self.answered(room_id, sent, text)

    async def answered(self, room_id, sent, text):
        """Waits for the answer to a message, which must be encrypted."""
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            for event_id in (await self.nio.call("arrived"))["event_ids"]:
                if event_id == sent["event_id"]:
                    continue
                event = await self.nio.call("wait_event", event_id=event_id, timeout=SECONDS)
                if event["encrypted"] and event["body"] == f"echo: {text}":
                    return
            await asyncio.sleep(0.3)
        raise Late(f"nobody repeated {text!r}")

    async def joined(self, room_id, user_id):
        """Waits until somebody is in a room."""

        async def here():
            members = await self.ann.get(f"/rooms/{quote(room_id)}/joined_members")
            return user_id in members["joined"]

        await until(here, f"{user_id} did not join")

    async def invited(self, known):
        """Waits until ann is invited to a room."""

        async def here():
            rooms = (await self.ann.get("/sync", timeout=0))["rooms"].get("invite", {})
            return next(iter(set(rooms) - known), None)

        return await until(here, "nobody invited ann")

    async def reads(self, text, room_id=None):
        """Waits until ann reads a text, once, in a room; in that of the channel if none is named."""

        async def here():
            path = f"/rooms/{quote(room_id or self.room_id)}/messages"
            chunk = (await self.ann.get(path, dir="b", limit=50))["chunk"]
            found = [event for event in chunk if text in event["content"].get("body", "")]
            if len(found) > 1:
                raise Late(f"it was said {len(found)} times")
            return found[0] if found else None

        return await until(here, f"ann did not read {text!r}")


async def until(condition, failure):
    """Waits until something is there, and returns it."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        if found := await condition():
            return found
        await asyncio.sleep(0.2)
    raise Late(failure)
