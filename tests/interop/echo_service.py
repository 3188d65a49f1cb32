"""An application service on mautrix that repeats encrypted messages, encrypted.

    echo_service.py HOMESERVER SERVER_NAME REGISTRATION FOLDER

It has no token but that of the service: it makes its device by `PUT /devices/{deviceId}` and gets its messages
between devices, device lists and counts of keys with the transactions of the server.
"""

import asyncio
import json
import logging
import sys
from pathlib import Path
from urllib.parse import urlparse

from mautrix.appservice import AppService
from mautrix.appservice.state_store import FileASStateStore
from mautrix.client import Client
from mautrix.crypto import OlmMachine, PgCryptoStore, StateStore
from mautrix.errors import EncryptionError, SessionNotFound
from mautrix.types import EventType, Membership, MessageType, TextMessageEventContent
from mautrix.util.async_db import Database


class States(StateStore):
    """What the encryption asks of rooms: the server knows it."""

    def __init__(self, intent):
        self.intent = intent

    async def is_encrypted(self, room_id):
        return await self.get_encryption_info(room_id) is not None

    async def get_encryption_info(self, room_id):
        return await self.intent.get_state_event(room_id, EventType.ROOM_ENCRYPTION)

    async def find_shared_rooms(self, user_id):
        rooms = await self.intent.get_joined_rooms()
        return [room for room in rooms if user_id in await self.intent.get_room_members(room)]


class Echo:
    """The service."""

    def __init__(self, homeserver, domain, registration, folder):
        self.folder = Path(folder)
        registration = json.loads(Path(registration).read_text())
        self.az = AppService(
            homeserver, domain, registration["as_token"], registration["hs_token"],
            registration["sender_localpart"], registration["id"],
            state_store=FileASStateStore(path=str(self.folder / "state.json"), binary=False),
            ephemeral_events=True, encryption_events=True,
        )  # fmt: skip
        self.port = urlparse(registration["url"]).port
        self.homeserver = homeserver

    async def start(self):
        """Makes or finds its device, and listens."""
        database = Database.create(
            f"sqlite:///{self.folder / 'crypto.db'}", upgrade_table=PgCryptoStore.upgrade_table
        )
        await database.start()
        store = PgCryptoStore("", "echo", database)
        await store.open()
        # Without retries of its own: what is told is told again until it is taken.
        await self.az.start("127.0.0.1", self.port)
        self.client = Client(self.az.bot_mxid, base_url=self.homeserver, sync_store=store)
        self.client.api.token = self.az.as_token
        device_id = await store.get_device_id()
        await self.client.create_device_msc4190(device_id or "", "echo")
        if not device_id:
            await store.put_device_id(self.client.device_id)
        self.crypto = OlmMachine(self.client, store, States(self.az.intent))
        await self.crypto.load()
        if not self.crypto.account.shared:
            await self.crypto.share_keys()
        self.az.otk_handler = self.crypto.handle_as_otk_counts
        self.az.device_list_handler = self.crypto.handle_as_device_lists
        self.az.to_device_handler = self.crypto.handle_as_to_device_event
        self.az.matrix_event_handler(self.handle)
        logging.info("ready as %s", self.client.device_id)

    async def handle(self, event):
        """Joins where it is invited, and repeats what it reads."""
        mine = event.sender == self.az.bot_mxid
        if event.type == EventType.ROOM_MEMBER:
            invited = event.content.membership == Membership.INVITE
            if invited and event.state_key == self.az.bot_mxid:
                await self.az.intent.join_room_by_id(event.room_id)
        elif event.type == EventType.ROOM_ENCRYPTED and not mine:
            try:
                plain = await self.decrypt(event)
            except EncryptionError:
                logging.exception("cannot read %s", event.event_id)
                return
            await self.repeat(event.room_id, plain.content.body)

    async def decrypt(self, event):
        """Reads a message; its key may come later."""
        try:
            return await self.crypto.decrypt_megolm_event(event)
        except SessionNotFound as error:
            await self.crypto.wait_for_session(event.room_id, error.session_id, timeout=20)
            return await self.crypto.decrypt_megolm_event(event)

    async def repeat(self, room_id, text):
        """Says it again."""
        content = TextMessageEventContent(msgtype=MessageType.TEXT, body=f"echo: {text}")
        try:
            encrypted = await self.crypto.encrypt_megolm_event(
                room_id, EventType.ROOM_MESSAGE, content
            )
        except EncryptionError:
            members = await self.az.intent.get_room_members(room_id)
            await self.crypto.share_group_session(room_id, members)
            encrypted = await self.crypto.encrypt_megolm_event(
                room_id, EventType.ROOM_MESSAGE, content
            )
        await self.az.intent.send_message_event(room_id, EventType.ROOM_ENCRYPTED, encrypted)


async def main():
    logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)
    await Echo(*sys.argv[1:]).start()
    await asyncio.Event().wait()


asyncio.run(main())
