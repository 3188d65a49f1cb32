"""A real IRC server, and somebody who uses it."""

import asyncio
import contextlib
import shutil
import subprocess

from servers import free_ports

SECONDS = 30


class IrcServer:
    """ngircd, the Debian package."""

    def __init__(self, folder):
        self.program = shutil.which("ngircd", path="/usr/sbin:/usr/bin:/usr/local/sbin")
        if self.program is None:
            raise SystemExit("ngircd is missing: apt-get install ngircd")
        (self.port,) = free_ports(1)
        self.log = folder / "ngircd.log"
        self.config = folder / "ngircd.conf"
        self.config.write_text(
            "[Global]\nName = irc.test\nInfo = test\nListen = 127.0.0.1\n"
            f"Ports = {self.port}\nMotdPhrase = hello\n"
            "[Limits]\nMaxNickLength = 30\nMaxConnectionsIP = 0\n"
            "[Options]\nDNS = no\nIdent = no\nPAM = no\n"
        )
        self.process = None

    async def start(self):
        """Starts the process and waits until it listens."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [self.program, "--nodaemon", "--config", self.config],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        async with asyncio.timeout(SECONDS):
            while True:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                    writer.close()
                    return
                await asyncio.sleep(0.1)

    def stop(self):
        """Ends the process."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()


class IrcClient:
    """Somebody in a channel."""

    def __init__(self, nick, port, channel):
        self.nick = nick
        self.port = port
        self.channel = channel
        self.heard = []
        self._news = asyncio.Condition()

    async def join(self):
        """Connects, and joins the channel."""
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self.port)
        self._reading = asyncio.create_task(self._read())
        self._send(f"NICK {self.nick}")
        self._send(f"USER {self.nick} 0 * :{self.nick}")
        await self.wait(lambda line: " 001 " in line)
        self._send(f"JOIN {self.channel}")
        await self.wait(lambda line: " 366 " in line)

    def say(self, text):
        """Says something in the channel."""
        self._send(f"PRIVMSG {self.channel} :{text}")

    async def hears(self, text):
        """Waits until somebody says this in the channel."""
        await self.wait(lambda line: f" PRIVMSG {self.channel} :" in line and text in line)

    async def sees(self, nick):
        """Waits until somebody is in the channel."""
        async with asyncio.timeout(SECONDS):
            while True:
                self.heard.clear()
                self._send(f"NAMES {self.channel}")
                names = await self.wait(lambda line: " 353 " in line)
                if nick in names.replace("@", " ").replace(":", " ").split():
                    return
                await asyncio.sleep(0.2)

    async def wait(self, wanted):
        """Waits for a line; it need not be new."""
        async with asyncio.timeout(SECONDS), self._news:
            while True:
                for line in self.heard:
                    if wanted(line):
                        return line
                await self._news.wait()

    async def leave(self):
        """Disconnects."""
        self._reading.cancel()
        self._writer.close()

    def _send(self, line):
        self._writer.write(f"{line}\r\n".encode())

    async def _read(self):
        while line := await self._reader.readline():
            line = line.decode(errors="replace").rstrip()
            if line.startswith("PING"):
                self._send(line.replace("PING", "PONG", 1))
                continue
            async with self._news:
                self.heard.append(line)
                self._news.notify_all()
