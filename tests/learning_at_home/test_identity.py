"""Keys: files, signatures with a purpose, and the CURVE keys derived from them."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import zmq

from learning_at_home.errors import ConfigError, WireError
from learning_at_home.identity import Identity, curve_public_key, peer_id, verify, z85
from learning_at_home.readable_names import is_valid_name, readable_name


def test_a_signature_holds_for_its_key_message_and_purpose_only() -> None:
    alice, bob = Identity.generate(), Identity.generate()
    signature = alice.sign("announcement", b"words")
    assert verify(alice.public_key, "announcement", b"words", signature)
    assert not verify(alice.public_key, "announcement", b"other words", signature)
    assert not verify(alice.public_key, "telemetry", b"words", signature)
    assert not verify(bob.public_key, "announcement", b"words", signature)


@pytest.mark.parametrize("key, signature", [(b"", b""), (b"\0" * 31, b"\0" * 64), (b"\xff" * 32, b"\0" * 64)])
def test_malformed_keys_and_signatures_are_simply_false(key: bytes, signature: bytes) -> None:
    assert not verify(key, "announcement", b"words", signature)


def test_the_curve_keys_are_a_pair_that_zeromq_accepts() -> None:
    identity = Identity.generate()
    assert zmq.curve_public(z85(identity.curve_secret)) == z85(identity.curve_public)
    assert curve_public_key(identity.public_key) == identity.curve_public


def test_what_is_no_key_is_a_wire_error() -> None:
    with pytest.raises(WireError):
        curve_public_key(b"\xff" * 32)


def test_an_identity_is_made_once_and_kept_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "identity.key"
    made = Identity.load_or_create(path)
    assert Identity.load_or_create(path).public_key == made.public_key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in path.parent.iterdir()] == ["identity.key"]


@pytest.mark.parametrize("content", [b"", b"zz" * 32, b"ab" * 31, b"\xff\xfe"])
def test_a_broken_key_file_is_named_and_never_overwritten(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "identity.key"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"identity\.key"):
        Identity.load_or_create(path)
    assert path.read_bytes() == content


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"identity\.key"):
        Identity.load_or_create(tmp_path / "file" / "identity.key")


def test_processes_that_make_one_key_at_once_end_with_the_same(tmp_path: Path) -> None:
    path = tmp_path / "identity.key"
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: Identity.load_or_create(path).public_key, range(8)))
    assert set(made) == {Identity.load_or_create(path).public_key}


def test_names_and_ids_follow_from_the_key() -> None:
    key = Identity(bytes(32)).public_key
    assert Identity(bytes(32)).name == readable_name(key)
    assert is_valid_name(readable_name(key))
    assert len(peer_id(key)) == 20
    assert not is_valid_name("<b>x</b>")
