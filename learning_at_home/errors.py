"""Every error that Learning@home raises, as one tree; the docs page `docs/errors.md` lists the same codes.

    LearningAtHomeError        100
    ├── UsageError             110   the caller's mistake, found here or by the node
    │   ├── InvalidUid         101   ├── SpecMismatch   102   ├── EmptyBatch      103   ├── BatchTooLarge  104
    │   └── NonFiniteTensor    105   ├── UnknownLayer   106   └── ConfigError     107
    ├── PeerError              210   what a node answered
    │   ├── UnknownExpert      201   ├── ExpertFailed   202   ├── NodeOverloaded  203   ├── DeadlinePassed 204
    │   └── NodeDraining       205   ├── StaleRequest   206   ├── VersionMismatch 207   └── GreetingRequired 208
    ├── WireError              301   bytes that break the wire format, whoever sent them
    ├── NetworkError           410   nobody's mistake: time, distance, machines that left
    │   ├── CallTimeout        401   ├── PeerUnreachable 402  ├── BootstrapFailed 403   └── CoordinatorUnreachable 404
    └── DirectoryError         510   what the swarm holds is not enough for what was asked
        ├── NotEnoughExperts   501   ├── AmbiguousProject 502 ├── UnknownProject  503   ├── RecordRefused 504
        └── ParametersMissing  505

A code is a number that crosses the wire; the class is what the caller catches. `from_wire` turns one into the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from learning_at_home.text import printable


class LearningAtHomeError(Exception):
    """Root of all errors of this project. `code` is the number that stands in docs/errors.md."""

    code: ClassVar[int] = 100

    def __init__(self, message: str, *, peer: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.peer = peer  # readable name of the peer that said so; None when it was found on this machine
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return f"{self.message} (from {self.peer})" if self.peer else self.message


class UsageError(LearningAtHomeError):
    """The caller's mistake: the same call will fail again until it is changed."""

    code = 110


class InvalidUid(UsageError):
    """A uid, prefix or pattern that does not follow the grammar, or lies outside its grid."""

    code = 101


class SpecMismatch(UsageError):
    """A tensor whose shape, dtype or number differs from what the expert takes."""

    code = 102


class EmptyBatch(UsageError):
    """A batch of no rows."""

    code = 103


class BatchTooLarge(UsageError):
    """A batch over the limit of rows or bytes."""

    code = 104


class NonFiniteTensor(UsageError):
    """NaN or infinity in an input or a gradient: it never reaches an expert."""

    code = 105


class UnknownLayer(UsageError):
    """A layer that the project record does not have."""

    code = 106


class ConfigError(UsageError):
    """A setting, flag or file that cannot be used; the message names it and says what would do."""

    code = 107


class PeerError(LearningAtHomeError):
    """An answer of a node that is not the result asked for."""

    code = 210


class UnknownExpert(PeerError):
    """The node does not host this uid."""

    code = 201


class ExpertFailed(PeerError):
    """The expert raised an exception on its host; the message carries the remote cause."""

    code = 202


class NodeOverloaded(PeerError):
    """The node's queue is full. `retry_after_s` says when to ask again."""

    code = 203


class DeadlinePassed(PeerError):
    """The node dropped the work because its deadline had passed before it was computed."""

    code = 204


class NodeDraining(PeerError):
    """The node finishes what it has and takes nothing new."""

    code = 205


class StaleRequest(PeerError):
    """A backward that may have been applied before, by this node or before its start: it was not applied (again)."""

    code = 206


class VersionMismatch(PeerError):
    """The two peers share no protocol version; the message has both ranges."""

    code = 207


class GreetingRequired(PeerError):
    """The node has forgotten this connection. It is closed; the next call opens and greets a new one."""

    code = 208


class WireError(LearningAtHomeError):
    """Bytes that break the wire format. Whoever sent them is at fault."""

    code = 301


class NetworkError(LearningAtHomeError):
    """Time or distance: the same call may succeed later or elsewhere."""

    code = 410


class CallTimeout(NetworkError):
    """No answer before the deadline."""

    code = 401


class PeerUnreachable(NetworkError):
    """The connection was refused, lost or could not be authenticated."""

    code = 402


class BootstrapFailed(NetworkError):
    """None of the bootstrap peers answered; the message lists each."""

    code = 403


class CoordinatorUnreachable(NetworkError):
    """The coordinator did not answer, or not as a coordinator does."""

    code = 404


class DirectoryError(LearningAtHomeError):
    """What the swarm holds is not enough for what was asked."""

    code = 510


class NotEnoughExperts(DirectoryError):
    """Fewer than k_min experts answered for some row. `causes` maps each uid that was asked to its error."""

    code = 501

    def __init__(self, message: str, *, causes: dict[str, LearningAtHomeError] | None = None) -> None:
        super().__init__(message)
        self.causes = causes or {}


class AmbiguousProject(DirectoryError):
    """Several coordinators publish a project of this id; name the key of the one that is meant."""

    code = 502


class UnknownProject(DirectoryError):
    """No project of this id."""

    code = 503


class RecordRefused(DirectoryError):
    """A DHT record that is invalid, expired, oversized, replayed or over quota."""

    code = 504


class ParametersMissing(DirectoryError):
    """Chunks of shared parameters whose hosts have nothing: new ones, or such that came back without their state."""

    code = 505


def _tree(root: type[LearningAtHomeError]) -> Iterator[type[LearningAtHomeError]]:
    yield root
    for child in root.__subclasses__():
        yield from _tree(child)


CATALOGUE: dict[int, type[LearningAtHomeError]] = {error.code: error for error in _tree(LearningAtHomeError)}

MAX_REMOTE_MESSAGE_CHARS = 2_000  # enough for a traceback's last lines; a hostile peer cannot fill a log


def from_wire(code: int, message: str, *, peer: str, retry_after_s: float | None = None) -> LearningAtHomeError:
    """The error that a peer's code and words stand for; an unknown code becomes a PeerError that names it."""
    error = CATALOGUE.get(code)
    words = "\n".join(printable(line, len(line)) for line in message[:MAX_REMOTE_MESSAGE_CHARS].split("\n"))
    if error is None:
        return PeerError(f"error code {code}, unknown to this version: {words}", peer=peer, retry_after_s=retry_after_s)
    if issubclass(error, NotEnoughExperts):
        return PeerError(words, peer=peer, retry_after_s=retry_after_s)
    return error(words, peer=peer, retry_after_s=retry_after_s)
