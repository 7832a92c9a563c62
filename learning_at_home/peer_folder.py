"""A peer's folder: its key, and a lock, because two peers with one key would be one peer to everybody else."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from learning_at_home.errors import ConfigError
from learning_at_home.identity import Identity

try:
    import fcntl
except ImportError:  # no such lock on Windows: there the folder is not guarded
    fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def open_peer_folder(folder: Path, kind: str) -> Iterator[Identity]:
    """The identity kept in the folder, made on first use; locked until the context ends.

    `kind` is what the peer is ("node", "dht"), and names its files. Raises ConfigError when the folder cannot be used,
    or another peer of this kind uses it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / f"{kind}.lock").open("w")
    except OSError as error:
        raise ConfigError(f"--data-dir {folder} cannot be used: {error}") from error
    with lock:
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise ConfigError(
                    f"another `lah {kind}` of this machine uses {folder};"
                    " give this one a folder of its own by --data-dir"
                ) from error
        yield Identity.load_or_create(folder / f"{kind}.key")
