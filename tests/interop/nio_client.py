"""A matrix-nio client driven by JSON lines: one request a line in, one answer a line out.

The requests and answers are described in README.md and are the same for every client of the
interoperability tests, so the scenario does not know which of them it talks to.
"""

import asyncio
import base64
import io
import json
import sys
import tempfile
import time
from pathlib import Path

from nio import (
    AsyncClient,
    AsyncClientConfig,
    Event,
    MegolmEvent,
    RoomEncryptedFile,
    RoomMessageText,
)
from nio.crypto.attachments import decrypt_attachment
from nio.exceptions import EncryptionError
from nio_rooms import POLL_SECONDS, NioRooms, Refused, checked

ENCRYPTION = {
    "type": "m.room.encryption",
    "state_key": "",
    "content": {"algorithm": "m.megolm.v1.aes-sha2"},
}
SYNC_TIMEOUT_MS = 10_000


class NioClient(NioRooms):
    """One logged-in matrix-nio client and everything it has seen in its timelines."""

    def __init__(self):
        super().__init__()
        self.syncing = None

    async def login(self, homeserver, user, password, store):
        """Logs in as a new device and keeps the session in `store` for a later `restore`."""
        self._open(homeserver, user, store)
        checked(await self.client.login(password, device_name="matrix-nio"))
        session = {
            "user_id": self.client.user_id,
            "device_id": self.client.device_id,
            "access_token": self.client.access_token,
        }
        Path(store, "session.json").write_text(json.dumps(session))
        return await self._start()

    async def restore(self, homeserver, store):
        """Goes on as the device that an earlier process logged in as."""
        session = json.loads(Path(store, "session.json").read_text())
        self._open(homeserver, session["user_id"], store)
        self.client.restore_login(**session)
        return await self._start()

    async def create_room(self, name, invite):
        """Creates an encrypted, invitation-only room."""
        response = await self.client.room_create(
            name=name, invite=invite, initial_state=[ENCRYPTION]
        )
        return {"room_id": checked(response).room_id}

    async def invite(self, room_id, user_id):
        """Invites a user to a room."""
        checked(await self.client.room_invite(room_id, user_id))
        return {}

    async def join(self, room_id, timeout):
        """Waits for the invitation to come with a sync, then accepts it."""
        invited = self.client.invited_rooms
        await self._until(timeout, lambda: "no invitation", lambda: room_id in invited)
        checked(await self.client.join(room_id))
        return {}

    async def wait_members(self, room_id, user_ids, timeout):
        """Waits until this client knows the room as encrypted and these users as joined to it."""

        def missing():
            room = self.client.rooms.get(room_id)
            if room is None or not room.encrypted:
                return {"encryption"}
            return set(user_ids) - (set(room.users) - set(room.invited_users))

        await self._until(timeout, lambda: f"missing: {missing()}", lambda: not missing())
        return {}

    async def send_text(self, room_id, body):
        """Sends an encrypted text message."""
        return await self._send(room_id, {"msgtype": "m.text", "body": body})

    async def send_file(self, room_id, name, mimetype, data):
        """Uploads an encrypted file and sends the message that describes it."""
        plaintext = base64.b64decode(data)
        response, keys = await self.client.upload(
            lambda *_: io.BytesIO(plaintext),
            content_type="application/octet-stream",
            encrypt=True,
            filesize=len(plaintext),
        )
        content = {
            "msgtype": "m.file",
            "body": name,
            "info": {"size": len(plaintext), "mimetype": mimetype},
            "file": {"url": checked(response).content_uri, **keys},
        }
        return await self._send(room_id, content)

    async def wait_event(self, event_id, timeout):
        """Waits until an event is here and decrypted, and tells what it says."""
        deadline = time.monotonic() + timeout
        failure = "the event did not arrive"
        while time.monotonic() < deadline:
            event = self.events.get(event_id)
            if isinstance(event, MegolmEvent):
                try:
                    event = self.client.decrypt_event(event)
                    self.events[event_id] = event
                except EncryptionError as error:
                    failure = f"undecryptable: {error}"
            if event is not None and not isinstance(event, MegolmEvent):
                return await self._described(event)
            await asyncio.sleep(POLL_SECONDS)
        raise Refused(failure)

    async def arrived(self):
        """Lists the messages that are here."""
        messages = (MegolmEvent, RoomMessageText)
        return {"event_ids": [i for i, e in self.events.items() if isinstance(e, messages)]}

    async def undecryptable(self):
        """Lists the events that no key has come for."""
        return {"event_ids": [i for i, e in self.events.items() if isinstance(e, MegolmEvent)]}

    async def export_keys(self, passphrase):
        """All room keys, as a file."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "keys")
            await self.client.export_keys(str(file), passphrase)
            return {"file": file.read_text()}

    async def import_keys(self, file, passphrase):
        """Takes the room keys of a file."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "keys")
            path.write_text(file)
            await self.client.import_keys(str(path), passphrase)
        return {}

    async def quit(self):
        """Stops syncing and closes the store."""
        if self.syncing:
            self.syncing.cancel()
        if self.client:
            await self.client.close()
        return {}

    def _open(self, homeserver, user, store):
        Path(store).mkdir(parents=True, exist_ok=True)
        config = AsyncClientConfig(store_sync_tokens=True, encryption_enabled=True)
        self.client = AsyncClient(homeserver, user, store_path=store, config=config)
        self.client.add_event_callback(self._seen, Event)

    async def _start(self):
        if self.client.should_upload_keys:
            checked(await self.client.keys_upload())
        self.syncing = asyncio.create_task(self._sync())
        await self.client.synced.wait()
        return {"user_id": self.client.user_id, "device_id": self.client.device_id}

    async def _sync(self):
        while True:
            try:
                await self.client.sync_forever(timeout=SYNC_TIMEOUT_MS, full_state=True)
            except Exception as error:  # a server that restarts is not the end of a client
                print(f"sync stopped: {error!r}", file=sys.stderr, flush=True)
                await asyncio.sleep(1)

    async def _seen(self, _room, event):
        self.events[event.event_id] = event

    async def _send(self, room_id, content):
        response = await self.client.room_send(
            room_id, "m.room.message", content, ignore_unverified_devices=True
        )
        return {"event_id": checked(response).event_id}

    async def _described(self, event):
        description = {"sender": event.sender, "encrypted": event.decrypted}
        if isinstance(event, RoomMessageText):
            return {**description, "body": event.body}
        if isinstance(event, RoomEncryptedFile):
            download = checked(await self.client.download(mxc=event.url))
            plaintext = decrypt_attachment(
                download.body, event.key["k"], event.hashes["sha256"], event.iv
            )
            data = base64.b64encode(plaintext).decode()
            return {**description, "body": event.body, "data": data}
        raise Refused(f"neither a text nor an encrypted file: {type(event).__name__}")


async def answer(client, request):
    """Carries one request out; an error becomes an answer too."""
    number, name = request.pop("id"), request.pop("do")
    try:
        if name.startswith("_"):
            raise Refused(f"unknown request {name}")
        result = await getattr(client, name)(**request)
        return {"id": number, "ok": True, **result}
    except Exception as error:
        return {"id": number, "ok": False, "error": f"{type(error).__name__}: {error}"}


async def main():
    """Reads requests until `quit` or the end of the input; they may overlap."""
    client = NioClient()
    reader = asyncio.StreamReader(limit=1 << 24)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    running = set()

    async def serve(request):
        print(json.dumps(await answer(client, request)), flush=True)

    while line := await reader.readline():
        request = json.loads(line)
        last = request["do"] == "quit"
        task = asyncio.create_task(serve(request))
        running.add(task)
        task.add_done_callback(running.discard)
        if last:
            await task
            return


asyncio.run(main())
