"""Application services that nobody here wrote, each a process."""

import asyncio
import json
import secrets
import subprocess
import urllib.error
import urllib.request

from servers import free_ports
from tools import HERE

SECONDS = 60


class Service:
    """A process with a registration file."""

    def __init__(self, name, folder, python):
        self.name = name
        self.folder = folder / name
        self.folder.mkdir()
        self.python = python
        (self.port,) = free_ports(1)
        self.registration = self.folder / "registration.yaml"
        self.log = self.folder / "log"
        self.process = None

    def command(self, server):
        """The command line of the process."""
        raise NotImplementedError

    async def start(self, server):
        """Starts the process and waits until it listens."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                list(map(str, self.command(server))),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder,
            )  # fmt: skip
        async with asyncio.timeout(SECONDS):
            while not await asyncio.to_thread(self._listens):
                if self.process.poll() is not None:
                    raise RuntimeError(f"{self.name} ended with {self.process.returncode}")
                await asyncio.sleep(0.2)

    def kill(self):
        """Ends the process, without asking."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def _listens(self):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{self.port}/", timeout=5)
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False
        return True


class Heisenbridge(Service):
    """A bridge to IRC. It writes its registration itself."""

    def __init__(self, folder, python):
        super().__init__("heisenbridge", folder, python)
        generate = ["--config", self.registration, "--listen-port", self.port, "--generate"]
        subprocess.run(
            list(map(str, [python, "-m", "heisenbridge", *generate])),
            check=True, stdout=subprocess.DEVNULL, cwd=self.folder,
        )  # fmt: skip

    def command(self, server):
        return [
            self.python, "-m", "heisenbridge", "--verbose", "--config", self.registration,
            "--listen-port", self.port, server.url,
        ]  # fmt: skip


class Echo(Service):
    """A bot on mautrix that reads and writes encrypted messages, as a bridge does."""

    def __init__(self, folder, python):
        super().__init__("echo", folder, python)
        # JSON is YAML.
        self.registration.write_text(
            json.dumps(
                {
                    "id": "echo",
                    "url": f"http://127.0.0.1:{self.port}",
                    "as_token": secrets.token_urlsafe(32),
                    "hs_token": secrets.token_urlsafe(32),
                    "sender_localpart": "echobot",
                    "namespaces": {"users": [{"exclusive": True, "regex": "@echo_.*"}]},
                    "de.sorunome.msc2409.push_ephemeral": True,
                    "receive_ephemeral": True,
                    "org.matrix.msc3202": True,
                    "io.element.msc4190": True,
                    "rate_limited": False,
                }
            )
        )

    def command(self, server):
        script = HERE / "echo_service.py"
        return [self.python, script, server.url, server.name, self.registration, self.folder]
