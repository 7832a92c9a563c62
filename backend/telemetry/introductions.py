"""The challenge of a telemetry socket: who speaks is who holds the key, here and now. Pure.

The signature covers the nonce, the project, the role and this coordinator's key, so that what a peer signed for another
connection, project or coordinator is worth nothing here.
"""

from __future__ import annotations

import os

from learning_at_home.coordinator_messages import SIGNING_PURPOSE, Challenge, Introduction, introduction_bytes
from learning_at_home.errors import WireError
from learning_at_home.identity import verify

NONCE_BYTES = 32


def new_challenge(coordinator_public_key: str, wall_s: float) -> Challenge:
    """A challenge that nobody saw before."""
    return Challenge(nonce=os.urandom(NONCE_BYTES).hex(), coordinator_public_key=coordinator_public_key, wall_s=wall_s)


def check_introduction(introduction: Introduction, challenge: Challenge, project_id: str) -> bytes:
    """The peer's public key. Raises WireError when the signature was made by another key or for something else."""
    public_key = bytes.fromhex(introduction.public_key)
    signed = introduction_bytes(challenge.nonce, project_id, introduction.role, challenge.coordinator_public_key)
    if not verify(public_key, SIGNING_PURPOSE, signed, bytes.fromhex(introduction.signature)):
        raise WireError("the signature of the introduction does not fit this key, project, role and challenge")
    return public_key
