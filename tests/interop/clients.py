"""The client processes, spoken to in JSON lines."""

import asyncio
import itertools
import json
from pathlib import Path

ANSWER_SECONDS = 180
QUIT_SECONDS = 30
LINE_BYTES = 1 << 24


class Refused(Exception):
    """A client answered that it could not do what was asked."""


class Client:
    """One person's client: a process that can end and come again with the same store.

    A client that `may_be_killed` promises to lose nothing without having been asked to quit; `can` says what not
    every library can.
    """

    def __init__(self, name, command, server, folder, may_be_killed=False, can=()):
        self.name = name
        self.may_be_killed = may_be_killed
        self.can = can
        self.command = command
        self.server = server
        self.store = folder / f"store-{name}"
        self.log = folder / f"client-{name}.log"
        self.session = None
        self._process = None
        self._reading = None
        self._numbers = itertools.count(1)
        self._waiting = {}

    @property
    def user_id(self):
        """The Matrix user id that this client is logged in as."""
        return self.session["user_id"]

    async def login(self, password):
        """Starts the process and logs in as a new device."""
        await self._spawn()
        self.session = await self.call(
            "login", homeserver=self.server.url, user=self.name, password=password,
            store=str(self.store),
        )  # fmt: skip

    async def restore(self):
        """Starts a new process that goes on with the store of the one before."""
        await self._spawn()
        session = await self.call("restore", homeserver=self.server.url, store=str(self.store))
        if session["device_id"] != self.session["device_id"]:
            raise Refused("another device came back")

    async def quit(self):
        """Lets the process end in good order."""
        await self.call("quit")
        await asyncio.wait_for(self._process.wait(), QUIT_SECONDS)
        self._process = None

    async def kill(self):
        """Ends the process, if there is one, without asking."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    async def call(self, request, **arguments):
        """Sends one request and waits for its answer; requests may overlap."""
        number = next(self._numbers)
        answer = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        line = json.dumps({"id": number, "do": request, **arguments}) + "\n"
        self._process.stdin.write(line.encode())
        await self._process.stdin.drain()
        result = await asyncio.wait_for(answer, ANSWER_SECONDS)
        if not result["ok"]:
            raise Refused(f"{self.name}: {result['error']}")
        return result

    async def _spawn(self):
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *map(str, self.command), stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE, stderr=log, limit=LINE_BYTES,
            )  # fmt: skip
        self._reading = asyncio.create_task(self._read(self._process))

    async def _read(self, process):
        while line := await process.stdout.readline():
            answer = json.loads(line)
            waiting = self._waiting.pop(answer["id"])
            if not waiting.done():
                waiting.set_result(answer)
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(Refused(f"{self.name}: the process ended"))
        self._waiting.clear()


def tail(path, lines=40):
    """The last lines of a log."""
    path = Path(path)
    if not path.exists():
        return ""
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
