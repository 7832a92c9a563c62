"""The project record: all that nodes and trainers must agree on to train one model together.

Knows layers, grids, architectures by name and optimizers by name; builds none of them (that is the node's, with torch).
Written by the project owner as TOML, kept by the coordinator, published in the DHT under the coordinator's signature.
"""

from __future__ import annotations

import math
import re
import tomllib
from pathlib import Path
from typing import Any, Literal

import msgspec

from learning_at_home.errors import ConfigError, InvalidUid, LearningAtHomeError, UnknownLayer, WireError
from learning_at_home.expert_uid import MAX_CELLS, Grid, check_prefix
from learning_at_home.schema import WHOLE_BYTES, DtypeName, Leaf, Schema, parse_schema
from learning_at_home.shared_parameters import ARCHITECTURE as SHARED
from learning_at_home.shared_parameters import HEADER_SIZE, NOTE_SIZE

FLOAT_BYTES: dict[DtypeName, int] = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
DTYPE_BYTES: dict[DtypeName, int] = {**FLOAT_BYTES, **WHOLE_BYTES}
PROJECT_ID_RULE = "2 to 40 small letters, digits or '-', starting with a letter"
_PROJECT_ID = re.compile(r"[a-z][a-z0-9-]{1,39}")
MAX_LAYERS = 256
MAX_ROWS_PER_REQUEST = 4_096
MAX_BYTES_PER_REQUEST = 64 * 1024 * 1024
BUILT_IN_OPTIMIZERS = ("adam", "adamw", "sgd", "frozen")
MAX_UPDATES = 1_000_000_000
MAX_OPTIONS = 32
MIN_UPDATE_SECONDS = 0.01  # below that a node would be busy looking at the time
_REGISTERED_NAME = re.compile(r"[a-z][a-z0-9_.:-]{0,63}")  # of an architecture or an optimizer


class OptimizerSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an expert's host does with a gradient. `frozen` computes gradients of the inputs and changes nothing.

    `learning_rate` and `weight_decay` mean what they do in torch.optim; `betas` are Adam's and AdamW's, `momentum` and
    `nesterov` SGD's.

    A schedule counts the expert's own updates. With `update_rows` or `update_seconds` gradients are added up, each
    clipped by itself, and one update is made when either is reached.
    """

    name: str = "adam"  # sgd, adam, adamw, frozen, or what a package that the hosts have registers
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float = 0.0
    nesterov: bool = False  # look ahead along the momentum
    options: dict[str, float] = {}  # what else a registered optimizer takes; msgspec copies it
    clip_norm: float | None = 1.0  # of an expert's whole gradient, per request; None: no clipping
    warmup_updates: int = 0  # the rate rises evenly to `learning_rate` with the last of these
    schedule: Literal["constant", "linear", "cosine"] = "constant"  # how it falls after that
    decay_updates: int = 0  # ... within so many updates
    final_learning_rate: float = 0.0  # ... to this
    update_rows: int | None = None  # one update for the gradients of so many rows or more
    update_seconds: float | None = None  # ... or of so long, from the first of them

    def __hash__(self) -> int:
        return hash((self.name, self.learning_rate, self.update_rows))  # `options` has no hash

    @property
    def gathers(self) -> bool:
        """Whether gradients wait for others before a step is made."""
        return self.update_rows is not None or self.update_seconds is not None

    def check(self, owner: str) -> None:
        """Nothing, when every value can be used. Raises ConfigError naming `owner` and the value."""
        ranges = {
            "name": _REGISTERED_NAME.fullmatch(self.name) is not None,
            "learning_rate": 0 <= self.learning_rate <= 100,
            "weight_decay": 0 <= self.weight_decay <= 100,
            "betas": all(0 <= beta < 1 for beta in self.betas),
            "momentum": 0 <= self.momentum < 1,
            "options": len(self.options) <= MAX_OPTIONS and all(map(math.isfinite, self.options.values())),
            "clip_norm": self.clip_norm is None or 0 < self.clip_norm < math.inf,
            "warmup_updates": 0 <= self.warmup_updates <= MAX_UPDATES,
            "decay_updates": 0 <= self.decay_updates <= MAX_UPDATES,
            "final_learning_rate": 0 <= self.final_learning_rate <= self.learning_rate,
            "update_rows": self.update_rows is None or 1 <= self.update_rows <= MAX_UPDATES,
            "update_seconds": self.update_seconds is None or MIN_UPDATE_SECONDS <= self.update_seconds <= 86_400,
        }
        for name, holds in ranges.items():
            if not holds:
                raise ConfigError(f"{owner}: optimizer {name} = {repr(getattr(self, name))[:80]} is out of range")
        if self.nesterov and not self.momentum:
            raise ConfigError(f"{owner}: optimizer nesterov = true needs a momentum above 0")
        if (self.schedule == "constant") != (self.decay_updates == 0):
            raise ConfigError(
                f"{owner}: optimizer schedule = {self.schedule!r} and decay_updates = {self.decay_updates} do not go "
                "together: linear and cosine take at least one update, constant takes none"
            )


class LayerSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One layer: a `grid` of experts of equal shape, [4, 4] for 16 of them, whose uids begin with `prefix`.

    `architecture` is the name of what an expert is made of, as nodes have it installed; `hidden_size` its features;
    `schema` what it takes and returns where that is not one tensor of them (schema.py);
    `optimizer` what its host does with gradients. `deadline_s`, `k_min` (answers that a row needs) and `grace_s` are
    the defaults of a trainer's DMoE.
    """

    prefix: str
    grid: tuple[int, ...]
    architecture: str = "ffn"
    hidden_size: int = 64
    sequence_length: int | None = None  # a row is [hidden_size], or [sequence_length, hidden_size] where this is given
    dtype: Literal["float32", "float64"] = "float32"  # what experts are trained in; the wire carries more
    schema: str | None = None  # "(float[64], mask=bool[64]) -> float[64]"; None: a row in, a row of its shape out
    optimizer: OptimizerSpec = OptimizerSpec()
    deadline_s: float = 10.0
    k_min: int = 1
    grace_s: float = 0.5  # how long the others may still answer once k_min have

    @property
    def cells(self) -> Grid:
        """The grid with its arithmetic: how many cells, which uid is which."""
        return Grid(self.grid)

    @property
    def is_shared(self) -> bool:
        """Whether the cells hold chunks of parameters that trainers share, not networks."""
        return self.architecture == SHARED

    @property
    def nested(self) -> Schema | None:
        """The schema, read; None where an expert takes one tensor and returns one like it. Raises ConfigError."""
        return None if self.schema is None else parse_schema(self.schema, self.dtype)

    @property
    def inputs(self) -> tuple[Leaf, ...]:
        """Every tensor that goes in, in the order in which they travel."""
        return (Leaf("0", self.dtype, self.input_shape),) if self.schema is None else self._schema.inputs

    @property
    def float_inputs(self) -> tuple[Leaf, ...]:
        """Those that get a gradient."""
        return tuple(leaf for leaf in self.inputs if leaf.is_float)

    @property
    def outputs(self) -> tuple[Leaf, ...]:
        """Every tensor that comes out, in the order in which they travel."""
        return (Leaf("0", self.dtype, self.row_shape),) if self.schema is None else self._schema.outputs

    @property
    def _schema(self) -> Schema:
        return parse_schema(self.schema or "", self.dtype)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one row that goes in: that of the output, or of a note where parameters are shared.

        With a schema, that of the first input.
        """
        if self.schema is not None:
            return self._schema.inputs[0].shape
        return (NOTE_SIZE,) if self.is_shared else self.row_shape

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one row of every expert's output, and of its input but for shared parameters.

        With a schema, that of the first output.
        """
        if self.schema is not None:
            return self._schema.outputs[0].shape
        if self.is_shared:
            return (HEADER_SIZE + self.hidden_size,)
        return (self.hidden_size,) if self.sequence_length is None else (self.sequence_length, self.hidden_size)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, uncompressed; with a schema of its inputs or of its outputs, whichever are more."""
        if self.schema is not None:
            return self._schema.row_bytes
        return math.prod(self.row_shape) * DTYPE_BYTES[self.dtype]

    @property
    def max_rows(self) -> int:
        """Most rows one request may carry: by count and by bytes. A change of shared parameters is one."""
        if self.is_shared:
            return 1
        return max(1, min(MAX_ROWS_PER_REQUEST, MAX_BYTES_PER_REQUEST // (2 * self.row_bytes)))

    def check(self) -> None:
        """Nothing, when every value can be used. Raises ConfigError with the layer's name and the value."""
        where = f"layer {self.prefix[:40]!r}"
        try:
            check_prefix(self.prefix)
            Grid(self.grid)
        except InvalidUid as error:
            raise ConfigError(f"{where}: {error.message}") from error
        if not _REGISTERED_NAME.fullmatch(self.architecture):
            raise ConfigError(f"{where}: architecture {self.architecture[:64]!r} is no name")
        if not 1 <= self.hidden_size <= 1_000_000:
            raise ConfigError(f"{where}: hidden_size {self.hidden_size} is out of range")
        if self.sequence_length is not None and not 1 <= self.sequence_length <= 1_000_000:
            raise ConfigError(f"{where}: sequence_length {self.sequence_length} is out of range")
        if self.schema is not None:
            try:
                parse_schema(self.schema, self.dtype)
            except ConfigError as error:
                raise ConfigError(f"{where}: {error.message}") from error
        if 2 * self.row_bytes > MAX_BYTES_PER_REQUEST:
            raise ConfigError(
                f"{where}: one row takes {self.row_bytes:,} bytes; a request holds input and gradient in 64 MiB"
            )
        if not 0 < self.deadline_s <= 3600 or not 0 <= self.grace_s <= 3600 or not 1 <= self.k_min <= 1024:
            raise ConfigError(f"{where}: deadline_s, grace_s or k_min is out of range")
        self.optimizer.check(where)
        if self.is_shared:
            self._check_shared(where)

    def _check_shared(self, where: str) -> None:
        if len(self.grid) != 1 or self.sequence_length is not None or self.schema is not None:
            raise ConfigError(
                f"{where}: shared parameters are chunks one after the other: a grid of one dimension, such as [4], and "
                "no sequence_length or schema"
            )
        if self.optimizer.clip_norm not in (None, OptimizerSpec().clip_norm):
            raise ConfigError(
                f"{where}: clip_norm does not apply to shared parameters, whose chunks are parts of one vector; leave "
                "it out"
            )


class ProjectRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One training effort: its `id`, as in the page's address, its `layers`, and `title` and `description` to read."""

    id: str
    title: str = ""
    description: str = ""
    layers: tuple[LayerSpec, ...] = ()
    revision: int = 1  # counts changes by the owner; the higher one wins

    def layer(self, prefix: str) -> LayerSpec:
        """The layer of this prefix. Raises UnknownLayer with the layers there are."""
        for layer in self.layers:
            if layer.prefix == prefix:
                return layer
        known = ", ".join(layer.prefix for layer in self.layers) or "none"
        raise UnknownLayer(f"project {self.id} has no layer {prefix[:64]!r}; its layers: {known}")

    def check(self) -> ProjectRecord:
        """The record itself. Raises ConfigError when it cannot be used."""
        if not _PROJECT_ID.fullmatch(self.id):
            raise ConfigError(f"{self.id[:64]!r} is not a project id: {PROJECT_ID_RULE}")
        if len(self.title) > 120 or len(self.description) > 4_000:
            raise ConfigError(f"project {self.id}: the title takes up to 120 characters, the description 4,000")
        if not (self.title + self.description.replace("\n", " ")).isprintable():
            raise ConfigError(f"project {self.id}: title or description has control characters")
        if len(self.layers) > MAX_LAYERS:
            raise ConfigError(f"project {self.id}: more than {MAX_LAYERS} layers")
        prefixes = [layer.prefix for layer in self.layers]
        if len(set(prefixes)) != len(prefixes):
            raise ConfigError(f"project {self.id}: two layers share a prefix")
        for layer in self.layers:
            layer.check()
        num_cells = sum(layer.cells.num_cells for layer in self.layers)
        if num_cells > MAX_CELLS:  # every peer keeps a place for each
            raise ConfigError(f"project {self.id}: {num_cells:,} experts in all layers; {MAX_CELLS:,} are allowed")
        return self

    def to_bytes(self) -> bytes:
        """Canonical bytes, for signing and for the DHT."""
        return msgspec.msgpack.encode(self, order="deterministic")

    @classmethod
    def from_bytes(cls, data: bytes) -> ProjectRecord:
        """The record that `to_bytes` wrote. Raises WireError on anything but a valid one."""
        try:
            return msgspec.msgpack.decode(data, type=cls).check()
        except (msgspec.DecodeError, RecursionError, ValueError, LearningAtHomeError) as error:  # ValueError: not UTF-8
            raise WireError(f"not a project record: {error}") from error

    @classmethod
    def from_builtins(cls, value: Any) -> ProjectRecord:
        """From parsed JSON or TOML. Raises ConfigError that names the field."""
        try:
            return msgspec.convert(value, type=cls, strict=True).check()
        except msgspec.ValidationError as error:
            raise ConfigError(f"project record: {error}") from error

    @classmethod
    def from_toml(cls, path: Path) -> ProjectRecord:
        """The record of a project file. Raises ConfigError that names the file."""
        try:
            return cls.from_builtins(tomllib.loads(path.read_text("utf-8")))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, ConfigError) as error:
            raise ConfigError(f"{path}: {error}") from error


class ProjectAccess(msgspec.Struct, frozen=True, kw_only=True):
    """What the coordinator answers to `GET /api/v1/projects/{id}/access`: all that a peer needs to join.

    The whole is not secret and not signed: it comes over the coordinator's TLS. What is at stake later (announcements,
    answers) is signed or encrypted by keys of its own.
    """

    record: ProjectRecord
    coordinator_public_key: str  # hex
    bootstrap: tuple[str, ...]  # "host:port" (UDP) of DHT peers, the coordinator first
    your_address: str  # the address that this request came from, as the coordinator saw it
    wall_s: float  # time hint
    dashboard_url: str
    agent: str = ""  # what the coordinator runs, as "learning-at-home/0.1.0"
