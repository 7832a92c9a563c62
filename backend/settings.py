"""All settings of the coordinator, in one value, checked in one place.

Where they come from: flags, then the environment (LAH_COORDINATOR_...), then the defaults here. See cli.py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from backend.live.reachability import own_address
from learning_at_home.errors import ConfigError
from learning_at_home.project import ProjectRecord

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8765
DATABASE_FILE = "coordinator.sqlite3"
KEY_FILE = "coordinator.key"
PEER_CACHE_FILE = "coordinator.peers.json"
_ADDRESS = re.compile(r"(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One coordinator. `port` is the one that is really listened on: cli.py binds it first."""

    data_dir: Path
    host: str = DEFAULT_HOST
    port: int = DEFAULT_PORT
    dht_port: int = 0  # UDP; 0: any
    database_url: str = ""  # empty: SQLite in data_dir
    public_url: str = ""  # empty: http://host:port
    bootstrap: tuple[str, ...] = ()  # other DHT peers, "host:port"
    from_flags: tuple[ProjectRecord, ...] = ()  # made when they do not exist yet
    from_files: tuple[ProjectRecord, ...] = ()  # made or brought up to date
    max_sockets_per_address: int = 512  # telemetry and browsers together; a university may sit behind one address

    def __post_init__(self) -> None:
        for name, port in (("--port", self.port), ("--dht-port", self.dht_port)):
            if not 0 <= port <= 65_535:
                raise ConfigError(f"{name} {port} is no port: 0 to 65535")
        for address in self.bootstrap:
            match = _ADDRESS.fullmatch(address)
            if match is None or not 0 < int(match[1]) <= 65_535:
                raise ConfigError(f"--bootstrap {address!r} is not host:port")
        if self.public_url:
            parts = urlsplit(self.public_url)
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
                raise ConfigError(f"--public-url {self.public_url!r} is not an address such as https://lah.example")
        if self.database_url and not re.match(r"(sqlite\+aiosqlite|postgresql\+asyncpg)://", self.database_url):
            raise ConfigError("--database-url starts with sqlite+aiosqlite:// or postgresql+asyncpg://")
        if self.max_sockets_per_address < 1:
            raise ConfigError("max_sockets_per_address is at least 1")

    @property
    def database(self) -> URL:
        """The URL that SQLAlchemy takes. Raises ConfigError when it is none."""
        if not self.database_url:
            return URL.create("sqlite+aiosqlite", database=str(self.data_dir / DATABASE_FILE))
        try:
            return make_url(self.database_url)
        except ArgumentError as error:
            raise ConfigError(
                "--database-url cannot be read: sqlite+aiosqlite:///FILE or postgresql+asyncpg://..."
            ) from error

    @property
    def key_file(self) -> Path:
        return self.data_dir / KEY_FILE

    @property
    def peer_cache_file(self) -> Path:
        return self.data_dir / PEER_CACHE_FILE

    @property
    def own_address(self) -> str:
        """At which peers reach us, if that is a number."""
        return own_address(self.host, self.public_url)

    @property
    def url(self) -> str:
        """Where people find the pages, without a slash at the end."""
        if self.public_url:
            return self.public_url.rstrip("/")
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"
