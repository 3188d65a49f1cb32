"""Verification, recovery and key files: what one client made, another of another kind opens."""

import asyncio
import secrets

from clients import Client
from scenario import PASSWORD, SECONDS, Mismatch

POLL_SECONDS = 0.2


class Trust:
    """Goes on after the scenario, in a room in which everybody is."""

    def __init__(self, scenario, folder):
        self.scenario = scenario
        self.report = scenario.report
        self.room_id = next(iter(scenario.rooms.values()), None)
        self.folder = folder
        self.devices = 0

    async def run(self):
        """All of it, with one client of each kind and our own on both servers."""
        if self.room_id is None:
            return
        nio, js, sdk, sdk_too = self.scenario.people
        for giver, taker in [(nio, sdk), (sdk, nio), (js, sdk_too), (sdk_too, js), (nio, js)]:
            name = f"the key file of {giver.name} opens for a new device of {taker.name}"
            await self.report.check(name, self.key_file(giver, taker))
        for asking, asked in [(sdk_too, js), (js, sdk)]:
            name = f"{asking.name} verifies {asked.name} by emoji"
            await self.report.check(name, self.verify(asking, asked))
        for owner, other in [(js, sdk), (sdk_too, js)]:
            name = f"what {owner.name} has stored opens for a new {other.name} of the same person"
            await self.report.check(name, self.recover(owner, other))

    async def key_file(self, giver, taker):
        """A new device reads what was said before it came, with the keys of somebody else."""
        sender, body, event_id = await self.say(giver)
        device = await self.new_device(taker, taker)
        try:
            await self.unreadable(device, event_id)
            passphrase = secrets.token_urlsafe(8)
            file = (await giver.call("export_keys", passphrase=passphrase))["file"]
            await device.call("import_keys", file=file, passphrase=passphrase)
            # A client that waits for news looks for what it can read now when there are some. Not in
            # this room: for a key that opens less matrix-nio forgets the one that opens more.
            other = list(self.scenario.rooms.values())[-1]
            await sender.call("send_text", room_id=other, body=self.scenario.body(sender))
            await self.scenario.read(device, event_id, sender, body)
        finally:
            await device.kill()

    async def recover(self, owner, kind):
        """A new device of another kind gets identity and backup with the recovery key alone."""
        key = (await owner.call("set_up_recovery"))["key"]
        sender, body, event_id = await self.say(owner)
        device = await self.new_device(owner, kind)
        try:
            await self.unreadable(device, event_id)
            deadline = asyncio.get_running_loop().time() + SECONDS
            # The owner's client puts the key of the message into the backup when it likes.
            while True:
                recovered = await device.call("recover", key=key)
                if not recovered["verified"]:
                    raise Mismatch("the identity does not vouch for the new device")
                if event_id not in (await device.call("undecryptable"))["event_ids"]:
                    break
                if asyncio.get_running_loop().time() > deadline:
                    raise Mismatch("the key is not in the backup")
                await asyncio.sleep(1)
            await self.scenario.read(device, event_id, sender, body)
        finally:
            await device.kill()

    async def verify(self, asking, asked):
        """Both show the same, both say so, both know each other afterwards."""
        other, one = {"user_id": asking.user_id}, {"user_id": asked.user_id}
        await asking.call("ask_verification", room_id=self.room_id, **one)
        await asked.call("accept_verification", **other)
        seen, shown = await asyncio.gather(
            asking.call("compare", start=True, **one), asked.call("compare", start=False, **other)
        )
        if seen["emoji"] != shown["emoji"] or len(seen["emoji"]) != 7:
            raise Mismatch(f"{seen['emoji']} is not {shown['emoji']}")
        await asyncio.gather(asking.call("confirm", **one), asked.call("confirm", **other))
        for person, about in [(asking, one), (asked, other)]:
            if not (await person.call("is_verified", **about))["verified"]:
                raise Mismatch(f"{person.name} has not verified {about['user_id']}")

    async def say(self, reader):
        """Somebody says something that the reader can read."""
        sender = self.scenario.others(reader)[-1]
        body = self.scenario.body(sender)
        sent = await sender.call("send_text", room_id=self.room_id, body=body)
        await self.scenario.read(reader, sent["event_id"], sender, body)
        return sender, body, sent["event_id"]

    async def new_device(self, person, kind):
        """Logs a person in once more, with a client of some kind."""
        self.devices += 1
        folder = self.folder / f"device-{self.devices}"
        folder.mkdir()
        device = Client(person.name, kind.command, person.server, folder)
        await device.login(PASSWORD)
        return device

    async def unreadable(self, device, event_id):
        """Control: without the keys the event is there and cannot be read."""
        deadline = asyncio.get_running_loop().time() + SECONDS
        while event_id not in (await device.call("undecryptable"))["event_ids"]:
            if asyncio.get_running_loop().time() > deadline:
                raise Mismatch("the new device reads, or does not see, what was said before it came")
            await asyncio.sleep(POLL_SECONDS)
