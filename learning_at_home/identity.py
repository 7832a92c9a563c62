"""Who a peer is: one Ed25519 key, from which its id, its readable name and its CURVE transport key follow.

A peer's public key is enough to verify what it signed and to open an authenticated connection to it (libsodium
converts Ed25519 keys to the Curve25519 keys that ZeroMQ's CURVE uses). Every signature names its purpose, so that a
signature made for one thing can never be shown as another.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from functools import cached_property, lru_cache
from pathlib import Path

import zmq.utils.z85
from nacl.bindings import (
    crypto_scalarmult,
    crypto_sign_ed25519_pk_to_curve25519,
    crypto_sign_ed25519_sk_to_curve25519,
)
from nacl.exceptions import BadSignatureError, CryptoError
from nacl.signing import SigningKey, VerifyKey

from learning_at_home.errors import ConfigError, WireError
from learning_at_home.readable_names import readable_name

PUBLIC_KEY_BYTES = 32
SIGNATURE_BYTES = 64
PEER_ID_BYTES = 20  # Kademlia's key space: 160 bits


def peer_id(public_key: bytes) -> bytes:
    """A peer's 20-byte id: the start of its public key's SHA-256, so that nobody can choose a place in the DHT."""
    return hashlib.sha256(public_key).digest()[:PEER_ID_BYTES]


@lru_cache(maxsize=4096)
def curve_public_key(public_key: bytes) -> bytes:
    """The Curve25519 key (32 raw bytes) that belongs to an Ed25519 public key. Raises WireError when it is no point."""
    try:
        return crypto_sign_ed25519_pk_to_curve25519(public_key)
    except (CryptoError, ValueError, TypeError) as error:
        raise WireError("a peer's public key is not a valid Ed25519 key") from error


def z85(key: bytes) -> bytes:
    """The 40-character form that ZeroMQ's CURVE options take for a 32-byte key."""
    return zmq.utils.z85.encode(key)


def verify(public_key: bytes, purpose: str, message: bytes, signature: bytes) -> bool:
    """Whether this key made `signature` over this message for this purpose. Anything malformed is simply False."""
    if len(public_key) != PUBLIC_KEY_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    try:
        VerifyKey(public_key).verify(_tagged(purpose, message), signature)
    except (BadSignatureError, CryptoError, ValueError):
        return False
    return True


def _tagged(purpose: str, message: bytes) -> bytes:
    return b"learning-at-home/" + purpose.encode() + b"\0" + message


class Identity:
    """A peer's key pair, from a secret `seed` of 32 bytes; `public_key` are 32 raw bytes, Ed25519.

    The secret never leaves this object except into its key file (mode 0600).
    """

    def __init__(self, seed: bytes) -> None:
        self._signing_key = SigningKey(seed)
        self.public_key: bytes = bytes(self._signing_key.verify_key)

    @classmethod
    def generate(cls) -> Identity:
        """A new one, from the system's random numbers."""
        return cls(os.urandom(32))

    @classmethod
    def load_or_create(cls, path: Path) -> Identity:
        """The identity kept in a file, made on first use. Raises ConfigError when the file is not a key of ours."""
        try:
            text = path.read_text("ascii")
        except FileNotFoundError:
            return cls._create(path)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the key file {path} cannot be read: {error}") from error
        try:
            seed = bytes.fromhex(text.strip())
        except ValueError:
            seed = b""
        if len(seed) != 32:
            raise ConfigError(
                f"{path} is not a key file of Learning@home (64 hexadecimal digits); move it away or restore it"
            )
        return cls(seed)

    @classmethod
    def _create(cls, path: Path) -> Identity:
        identity = cls.generate()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=path.name) as file:  # its mode is 0600
                file.write(bytes(identity._signing_key).hex() + "\n")
                file.flush()
                os.link(file.name, path)  # whole or not at all, and never over a key that is there
        except FileExistsError:  # another process was faster; its key is the one that counts
            return cls.load_or_create(path)
        except OSError as error:
            raise ConfigError(f"the key file {path} cannot be made: {error}") from error
        return identity

    @property
    def peer_id(self) -> bytes:
        """20 bytes: its place in the DHT."""
        return peer_id(self.public_key)

    @cached_property
    def name(self) -> str:
        """An adjective and an animal that follow from the key, for people."""
        return readable_name(self.public_key)

    @cached_property
    def curve_public(self) -> bytes:
        """32 raw bytes; z85() of it is what zmq.CURVE_PUBLICKEY takes."""
        return curve_public_key(self.public_key)

    @cached_property
    def curve_secret(self) -> bytes:
        """32 raw bytes, the other half of `curve_public`: not to be shown to anybody."""
        return crypto_sign_ed25519_sk_to_curve25519(bytes(self._signing_key) + self.public_key)

    def pair_key(self, public_key: bytes, purpose: str) -> bytes:
        """32 bytes that this peer and the holder of that key can make, and nobody else; for this purpose only.

        The same on either side. Takes about 0.1 ms. Raises WireError when it is no key. Source: X25519, RFC 7748.
        """
        shared = crypto_scalarmult(self.curve_secret, curve_public_key(public_key))
        both = min(self.public_key, public_key) + max(self.public_key, public_key)
        return hashlib.blake2b(_tagged(purpose, both), key=shared, digest_size=32).digest()

    def sign(self, purpose: str, message: bytes) -> bytes:
        """64 bytes that only this key can make, for this purpose only."""
        return self._signing_key.sign(_tagged(purpose, message)).signature
