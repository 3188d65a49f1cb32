"""Rooms with doors: knocking, restricted joins, upgrades, spaces; and who is there at all."""

import secrets

from people import quote, until


class Gatherings:
    """What two people do with rooms beyond talking in them."""

    def __init__(self, check):
        self.check = check

    async def run(self, way, version, newest, here, there):
        """All that rooms of a version can do, begun by one of the two."""
        if int(version) >= 7:
            await self.check(f"{way}: knock", self.knock(version, here, there))
        if int(version) >= 8:
            await self.check(f"{way}: restricted join", self.restricted(version, here, there))
        await self.check(f"{way}: upgrade", self.upgrade(version, newest, here, there))
        await self.check(f"{way}: alias", self.alias(version, here, there))
        await self.check(f"{way}: space", self.space(version, here, there))
        await self.check(f"{way}: presence", self.presence(version, here, there))

    async def knock(self, version, here, there):
        """One knocks, is let in, and talks."""
        room_id = await here.create_room(version)
        await here.set_state(room_id, "m.room.join_rules", {"join_rule": "knock"})
        via = here.server.name
        await there.post(f"/knock/{quote(room_id)}", {"reason": "please"}, via=via, server_name=via)
        await here.sees_member(room_id, there, "knock")
        await here.act(room_id, "invite", user_id=there.user_id)
        await there.is_asked(room_id)
        await there.join(room_id, via=here.server)
        await self.talk(room_id, here, there)

    async def restricted(self, version, here, there):
        """Who is in one room may join another."""
        lobby = await here.create_room(version, preset="public_chat")
        allow = [{"type": "m.room_membership", "room_id": lobby}]
        rules = {"join_rule": "restricted", "allow": allow}
        room_id = await here.create_room(version)
        await here.set_state(room_id, "m.room.join_rules", rules)
        await there.join(lobby, via=here.server)
        await here.sees_member(lobby, there, "join")
        await there.join(room_id, via=here.server)
        await self.talk(room_id, here, there)

    async def upgrade(self, version, newest, here, there):
        """A room is replaced, and both go on in the new one."""
        old = await here.create_room(version, preset="public_chat")
        await there.join(old, via=here.server)
        answer = await here.post(f"/rooms/{quote(old)}/upgrade", {"new_version": newest})
        new = answer["replacement_room"]
        await there.sees_state(old, "m.room.tombstone", {"replacement_room": new})
        await there.join(new, via=here.server)
        await self.talk(new, here, there)

    async def alias(self, version, here, there):
        """A room is found by its name."""
        name = f"door-{secrets.token_hex(4)}"
        room_id = await here.create_room(version, preset="public_chat", room_alias_name=name)
        await there.join(f"#{name}:{here.server.name}")
        await self.talk(room_id, here, there)

    async def space(self, version, here, there):
        """The rooms of a space are listed for one of another server."""
        child = await here.create_room(version, preset="public_chat", name="Kitchen")
        kind = {"type": "m.space"}
        space = await here.create_room(version, preset="public_chat", creation_content=kind)
        await here.set_state(space, "m.space.child", {"via": [here.server.name]}, child)
        await there.join(space, via=here.server)

        async def listed():
            path = f"/_matrix/client/v1/rooms/{quote(space)}/hierarchy"
            rooms = (await there.get(path))["rooms"]
            return child in [room["room_id"] for room in rooms]

        await until(listed, "the room of the space is listed")

    async def presence(self, version, here, there):
        """Who shares a room sees what the other says of being there."""
        room_id = await here.create_room(version, preset="public_chat")
        await there.join(room_id, via=here.server)
        await here.sees_member(room_id, there, "join")
        since = await there.place()
        said = f"says {secrets.token_hex(4)}"
        status = {"presence": "online", "status_msg": said}
        await here.put(f"/presence/{quote(here.user_id)}/status", status)

        def told(sync):
            events = sync.get("presence", {}).get("events", [])
            of_here = [e["content"] for e in events if e["sender"] == here.user_id]
            return any(content.get("status_msg") == said for content in of_here)

        await there.hears(since, told, "presence")

    async def talk(self, room_id, here, there):
        """A word each way."""
        await here.sees_member(room_id, there, "join")
        await there.reads(room_id, await here.send(room_id, "come in"), "come in")
        await here.reads(room_id, await there.send(room_id, "thanks"), "thanks")
