"""The control: the same scenario on Synapse tells a failure of the tests from one of the server."""

import json
import subprocess

from servers import Server

UNLIMITED = {"per_second": 1_000_000, "burst_count": 1_000_000}
LIMITS = ["rc_message", "rc_registration", "rc_key_requests", "rc_room_creation"]


class Synapse(Server):
    """A Synapse from the package registry, with SQLite."""

    def __init__(self, letter, folder, certificates, python):
        super().__init__(letter, folder, certificates)
        self.python = python
        self.config = self.folder / "homeserver.yaml"
        self.config.write_text(json.dumps(self.configuration()))  # JSON is YAML
        with self.log.open("ab") as log:
            subprocess.run([*self.command(), "--generate-keys"], check=True, stdout=log, stderr=log)

    def configuration(self):
        """Open registration, no limits, federation on loopback with the tests' authority."""
        data = self.folder / "data"
        data.mkdir()
        client = {"names": ["client", "media"]}
        federation = {"names": ["federation"]}
        address = {"type": "http", "bind_addresses": ["127.0.0.1"]}
        return {
            "server_name": self.name,
            "report_stats": False,
            "listeners": [
                {**address, "port": self.client_port, "resources": [client]},
                {**address, "port": self.federation_port, "tls": True, "resources": [federation]},
            ],
            "tls_certificate_path": str(self.certificates.certificate),
            "tls_private_key_path": str(self.certificates.private_key),
            "federation_custom_ca_list": [str(self.certificates.authority)],
            "ip_range_blacklist": [],
            "database": {"name": "sqlite3", "args": {"database": str(data / "synapse.db")}},
            "media_store_path": str(data / "media"),
            "signing_key_path": str(data / "signing.key"),
            "macaroon_secret_key": "control",
            "form_secret": "control",
            "trusted_key_servers": [],
            # A peer that was away is tried again at once.
            "federation": {
                "destination_min_retry_interval": "1s",
                "destination_max_retry_interval": "2s",
            },
            "allow_public_rooms_over_federation": True,
            "room_list_publication_rules": [{"action": "allow"}],
            "presence": {"enabled": True},
            # Who asks twice wants to know what is new.
            "caches": {"sync_response_cache_duration": "0s"},
            "enable_registration": True,
            "enable_registration_without_verification": True,
            **dict.fromkeys(LIMITS, UNLIMITED),
            "rc_login": dict.fromkeys(["address", "account", "failed_attempts"], UNLIMITED),
            "rc_presence": {"per_user": UNLIMITED},
            "rc_joins": dict.fromkeys(["local", "remote"], UNLIMITED),
            "rc_invites": dict.fromkeys(["per_room", "per_user", "per_issuer"], UNLIMITED),
        }

    def command(self):
        """The command line of the process."""
        return [self.python, "-m", "synapse.app.homeserver", "--config-path", self.config]
