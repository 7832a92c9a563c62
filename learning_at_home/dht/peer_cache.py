"""The peers that a node knew when it ran last, in a file: a restart then needs no bootstrap peer. Blocks on the disk.

A few kilobytes of JSON, {"peers": ["host:port", ...]}, who answered last first; what cannot be read is no error, since
the file only saves time. Addresses alone: who is there now shows when it answers.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path

from learning_at_home.dht.contacts import parse_address
from learning_at_home.errors import ConfigError

log = logging.getLogger(__name__)

MAX_PEERS = 128  # after an hour of 2 % churn per minute thirty of them are left
MAX_BYTES = 16_384  # 128 IPv6 addresses take 7 kB


class PeerCache:
    """The file at `path`; it and its folder are made when there is something to keep."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> list[str]:
        """ "host:port" of each, who answered last first."""
        try:
            with self._path.open("rb") as file:
                content = json.loads(file.read(MAX_BYTES))
            peers = content["peers"][:MAX_PEERS]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            log.info("the DHT's peer cache %s cannot be read, it is made anew: %s", self._path, error)
            return []
        return list(dict.fromkeys(peer for peer in peers if isinstance(peer, str) and _is_address(peer)))

    def save(self, peers: Iterable[str]) -> None:
        """Keep these, who answered last first. A reader sees the old file or the new one, whole."""
        beside = self._path.with_name(f"{self._path.name}.{os.getpid()}.tmp")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            beside.write_text(json.dumps({"peers": list(peers)[:MAX_PEERS]}, indent=0))
            beside.replace(self._path)
        except OSError as error:
            log.warning("the DHT's peer cache %s cannot be written: %s", self._path, error)
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)


def _is_address(text: str) -> bool:
    try:
        parse_address(text)
    except ConfigError:
        return False
    return True
