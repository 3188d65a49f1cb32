"""People who use a server over HTTP, without encryption of their own: what they say is opaque anyway."""

import asyncio
import itertools
import json
import secrets
import time
import urllib.error
import urllib.parse
import urllib.request

SECONDS = 30
PASSWORD = secrets.token_urlsafe(16)
V3 = "/_matrix/client/v3"


class Refused(Exception):
    """The server refused a request."""

    def __init__(self, status, body):
        super().__init__(f"{status} {body}")
        self.status = status
        self.errcode = body.get("errcode") if isinstance(body, dict) else None


class Late(Exception):
    """Something did not come in time."""


class Person:
    """An account and a device."""

    numbers = itertools.count(1)

    def __init__(self, name, server):
        self.name = name
        self.server = server
        self.token = None
        self.user_id = f"@{name}:{server.name}"
        self.device_id = None

    async def register(self):
        """Makes the account."""
        self.token = await asyncio.to_thread(self.server.register, self.name, PASSWORD)
        self.device_id = (await self.get("/account/whoami"))["device_id"]

    async def take_new_device(self):
        """Logs in again; what the person does from now on is done on that device."""
        who = {"type": "m.id.user", "user": self.name}
        body = {"type": "m.login.password", "identifier": who, "password": PASSWORD}
        answer = await self.post("/login", body)
        self.token, self.device_id = answer["access_token"], answer["device_id"]

    async def get(self, path, **query):
        """`GET`"""
        return await self.request("GET", path, None, query)

    async def put(self, path, body, **query):
        """`PUT`"""
        return await self.request("PUT", path, body, query)

    async def post(self, path, body=None, **query):
        """`POST`"""
        return await self.request("POST", path, body or {}, query)

    async def request(self, method, path, body, query):
        """A request below the client API, or to a whole path."""
        path = path if path.startswith("/_matrix") else V3 + path
        if query:
            path += "?" + urllib.parse.urlencode(query, doseq=True)
        data = None if body is None else json.dumps(body).encode()
        answer = await self.raw(method, path, data, "application/json")
        return json.loads(answer)

    async def raw(self, method, path, data, kind):
        """A request with bytes, and bytes for an answer."""
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": kind}
        request = urllib.request.Request(self.server.url + path, data, headers, method=method)

        def send():
            try:
                with urllib.request.urlopen(request, timeout=60) as response:
                    return response.read()
            except urllib.error.HTTPError as error:
                text = error.read()
                try:
                    raise Refused(error.code, json.loads(text)) from None
                except ValueError:
                    raise Refused(error.code, text.decode(errors="replace")) from None

        return await asyncio.to_thread(send)

    async def create_room(self, version, **more):
        """Makes a room; its id."""
        body = {"room_version": version, "preset": "private_chat", **more}
        return (await self.post("/createRoom", body))["room_id"]

    async def join(self, room_id, via=None):
        """Joins, through another server if one is given."""
        query = {"server_name": via.name, "via": via.name} if via else {}
        await self.post(f"/join/{quote(room_id)}", {}, **query)

    async def act(self, room_id, verb, **body):
        """Invites, kicks, bans, leaves."""
        await self.post(f"/rooms/{quote(room_id)}/{verb}", body)

    async def send(self, room_id, body):
        """Sends a text; the event id."""
        content = {"msgtype": "m.text", "body": body}
        path = f"/rooms/{quote(room_id)}/send/m.room.message/{next(self.numbers)}"
        return (await self.put(path, content))["event_id"]

    async def set_state(self, room_id, kind, content, key=""):
        """Sets a part of the state; the event id."""
        path = f"/rooms/{quote(room_id)}/state/{kind}/{quote(key)}"
        return (await self.put(path, content))["event_id"]

    async def state(self, room_id, kind, key=""):
        """A part of the state; None if there is none."""
        try:
            return await self.get(f"/rooms/{quote(room_id)}/state/{kind}/{quote(key)}")
        except Refused as refused:
            if refused.status in (403, 404):
                return None
            raise

    async def redact(self, room_id, event_id):
        """Redacts an event."""
        path = f"/rooms/{quote(room_id)}/redact/{quote(event_id)}/{next(self.numbers)}"
        return (await self.put(path, {}))["event_id"]

    async def event(self, room_id, event_id):
        """An event; None if there is none."""
        try:
            return await self.get(f"/rooms/{quote(room_id)}/event/{quote(event_id)}")
        except Refused as refused:
            if refused.status in (403, 404):
                return None
            raise

    async def reads(self, room_id, event_id, body):
        """Waits until the event is here with this text."""

        async def here():
            event = await self.event(room_id, event_id)
            return event and event["content"].get("body") == body

        await until(here, f"{self.name} reads {body!r}")

    async def sees_state(self, room_id, kind, content, key=""):
        """Waits until a part of the state has this content."""

        async def here():
            found = await self.state(room_id, kind, key)
            return found is not None and all(found.get(k) == v for k, v in content.items())

        await until(here, f"{self.name} sees {kind} {content}")

    async def sees_member(self, room_id, person, membership):
        """Waits until somebody is what they should be."""
        await self.sees_state(room_id, "m.room.member", {"membership": membership}, person.user_id)

    async def is_asked(self, room_id):
        """Waits for an invite."""

        async def here():
            sync = await self.get("/sync", timeout=0)
            return room_id in sync.get("rooms", {}).get("invite", {})

        await until(here, f"{self.name} is invited")

    async def place(self):
        """A token for what comes from now on."""
        return (await self.get("/sync", timeout=0))["next_batch"]

    async def hears(self, since, wanted, what):
        """Syncs from a token on until `wanted` finds something."""
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            sync = await self.get("/sync", since=since, timeout=1000)
            since = sync["next_batch"]
            if found := wanted(sync):
                return found
        raise Late(f"{self.name} waited in vain: {what}")

    async def history(self, room_id, most=400):
        """All messages of a room, newest first, page by page until there is no more."""
        found, token = [], None
        for _ in range(most):
            query = {"dir": "b", "limit": 100, **({"from": token} if token else {})}
            page = await self.get(f"/rooms/{quote(room_id)}/messages", **query)
            found += page["chunk"]
            token = page.get("end")
            if token is None:
                return found
        raise Late(f"{self.name} never comes to the beginning of {room_id}")


async def until(found, what, seconds=SECONDS):
    """Asks again and again."""
    deadline = time.monotonic() + seconds
    while not (answer := await found()):
        if time.monotonic() > deadline:
            raise Late(what)
        await asyncio.sleep(0.2)
    return answer


def quote(text):
    """Percent-encodes all that a path segment must not have."""
    return urllib.parse.quote(text, safe="")
