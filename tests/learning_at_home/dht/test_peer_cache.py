"""The file of peers: what is kept, and what a file that somebody broke does."""

from pathlib import Path

import pytest

from learning_at_home.dht.peer_cache import MAX_PEERS, PeerCache


def test_what_is_saved_is_loaded_in_its_order(tmp_path: Path):
    cache = PeerCache(tmp_path / "new" / "peers.json")
    cache.save(["192.0.2.1:7070", "[2001:db8::1]:7070"])

    assert cache.load() == ["192.0.2.1:7070", "[2001:db8::1]:7070"]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["peers.json"]


def test_no_file_is_no_peers(tmp_path: Path):
    assert PeerCache(tmp_path / "peers.json").load() == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x04",
        b"{",
        b"[]",
        b"{}",
        b"null",
        b'{"peers": 3}',
        b'{"peers": {"a": 1}}',
        b'{"peers": [3, null, "nonsense", "host:99999", ["192.0.2.1", 1]]}',
        b"[" * 100_000,
        b'{"peers": ["' + b"a" * 1_000_000,
    ],
)
def test_garbage_is_no_peers(tmp_path: Path, content: bytes):
    (tmp_path / "peers.json").write_bytes(content)

    assert PeerCache(tmp_path / "peers.json").load() == []


def test_it_is_bounded_and_holds_each_once(tmp_path: Path):
    cache = PeerCache(tmp_path / "peers.json")
    cache.save(f"192.0.2.1:{port}" for port in range(1, 1_000))
    assert len(cache.load()) == MAX_PEERS

    cache.save(["192.0.2.1:1", "192.0.2.1:1"])
    assert cache.load() == ["192.0.2.1:1"]


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path):
    (tmp_path / "file").write_text("")
    cache = PeerCache(tmp_path / "file" / "peers.json")
    cache.save(["192.0.2.1:7070"])

    assert cache.load() == []
