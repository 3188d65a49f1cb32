"""The servers under test: their configuration, their start and their stop."""

import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

START_SECONDS = 60
STOP_SECONDS = 30


class Server:
    """One homeserver process on loopback; a subclass knows how to configure and call it."""

    def __init__(self, letter, folder, certificates):
        self.letter = letter
        self.folder = folder / f"server-{letter}"
        self.folder.mkdir(parents=True)
        self.certificates = certificates
        self.client_port, self.federation_port = free_ports(2)
        self.name = f"localhost:{self.federation_port}"
        self.url = f"http://127.0.0.1:{self.client_port}"
        self.log = self.folder / "log"
        self.process = None

    def start(self):
        """Starts the process and waits until it answers clients."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder
            )
        deadline = time.monotonic() + START_SECONDS
        while not self.answers():
            if self.process.poll() is not None:
                raise RuntimeError(f"server {self.letter} ended with {self.process.returncode}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"server {self.letter} did not answer in {START_SECONDS} s")
            time.sleep(0.1)

    def stop(self):
        """Asks the process to end (SIGTERM) and returns its exit status; kills it if it stays."""
        if self.process is None:
            return None
        self.process.terminate()
        try:
            return self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise RuntimeError(f"server {self.letter} did not stop in {STOP_SECONDS} s") from None
        finally:
            self.process = None

    def answers(self):
        """Whether the client API is up."""
        try:
            self.request("GET", "/_matrix/client/versions")
            return True
        except OSError:
            return False

    def register(self, user, password):
        """Makes an account by open registration and returns an access token for it.

        The token is that of a device without keys, for the tests to look at what the server says.

        https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3register
        """
        path = "/_matrix/client/v3/register"
        body = {"username": user, "password": password}
        try:
            return self.request("POST", path, body)["access_token"]
        except urllib.error.HTTPError as error:
            if error.code != 401:
                raise
            session = json.load(error)["session"]
            auth = {"type": "m.login.dummy", "session": session}
            return self.request("POST", path, {**body, "auth": auth})["access_token"]

    def request(self, method, path, body=None, token=None):
        """One JSON request to the client API."""
        headers = {"Content-Type": "application/json"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.load(response)


class Sotto(Server):
    """The server of this repository."""

    def __init__(self, letter, folder, certificates, binary, database_url, appservices=()):
        super().__init__(letter, folder, certificates)
        self.binary = binary
        self.appservices = [str(path) for path in appservices]
        self.database_url = database_url and database_url.replace("{server}", letter)
        self.config = self.folder / "sotto.toml"
        self.config.write_text(self.configuration())

    def configuration(self):
        """The configuration file: the only place of these tests that knows its keys."""
        lines = [
            f'server_name = "{self.name}"',
            f'listen = "127.0.0.1:{self.client_port}"',
            f'data_dir = "{self.folder / "data"}"',
            *([f'database = "{self.database_url}"'] if self.database_url else []),
            'registration = "open"',
            "rate_limits = { enabled = false }",
            f"appservices = {json.dumps(self.appservices)}",
            "[federation]",
            f'listen = "127.0.0.1:{self.federation_port}"',
            f'certificate = "{self.certificates.certificate}"',
            f'private_key = "{self.certificates.private_key}"',
            f'ca_file = "{self.certificates.authority}"',
            'allow_networks = ["127.0.0.0/8", "::1/128"]',
        ]
        return "\n".join(lines) + "\n"

    def command(self):
        """The command line of the process."""
        return [self.binary, "--config", self.config]


def free_ports(count):
    """Loopback ports that nobody listens on now, all different."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [held.getsockname()[1] for held in sockets]
    for held in sockets:
        held.close()
    return ports


def files_with(folder, needle):
    """The files below `folder` that hold these bytes."""
    paths = [path for path in Path(folder).rglob("*") if path.is_file()]
    return [path for path in paths if needle in path.read_bytes()]
