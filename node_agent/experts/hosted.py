"""The experts of this node, by uid: which are served, and which were yielded to an older claim.

The event loop writes `yielded`, by replacing it whole; the data plane reads. Experts that were yielded stay in
memory, so that they can be served again when the other claim ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

import torch

from learning_at_home.errors import UnknownExpert
from learning_at_home.expert_uid import ExpertUid
from learning_at_home.project import ProjectRecord
from learning_at_home.wire.messages import Operation
from node_agent.experts.activations import Activations
from node_agent.experts.expert import Expert
from node_agent.experts.grouping import Group, Grouping, bytes_left, make_experts

MAX_SHOWN_UID_CHARS = 64
MAX_ACTIVATION_BYTES = 256 * 1024 * 1024  # an `ffn` of 1,024 keeps 151 MB of 2,048 rows


class HostedExperts:
    """Fixed for the life of the node, but for what it yields."""

    def __init__(
        self, experts: Iterable[Expert], groups: Iterable[Group] = (), activations: Activations | None = None
    ) -> None:
        """`activations`: where they remember their forwards, together."""
        self._groups = {uid: group for group in groups for uid in group.positions}
        self.by_uid: Mapping[str, Expert] = MappingProxyType({str(expert.uid): expert for expert in experts})
        if activations is not None:
            for expert in self.by_uid.values():
                expert.activations = activations
        self.yielded: Mapping[str, str] = {}  # uid -> why it is not served here

    @classmethod
    def create(
        cls,
        uids: Iterable[ExpertUid],
        project: ProjectRecord,
        device: torch.device,
        grouping: Grouping = "auto",
        spare_bytes: int | None = None,
    ) -> HostedExperts:
        """Make the experts of these cells on a device. Raises UnknownLayer or ConfigError.

        `spare_bytes` is what grouped products or remembered forwards may take of the device's memory; None: of what is
        left.
        """
        experts, groups = make_experts(list(uids), project, device, grouping, spare_bytes)
        spare_bytes = bytes_left(experts, device) if spare_bytes is None else spare_bytes
        # Not on a GPU, whose memory is scarcer and its time is not: nobody has measured what it would gain there.
        remembers = device.type == "cpu" and not groups
        limit_bytes = min(MAX_ACTIVATION_BYTES, max(0, spare_bytes) // 2) if remembers else 0
        return cls(experts, groups, Activations(limit_bytes))

    def __len__(self) -> int:
        return len(self.by_uid)

    def serving(self) -> list[Expert]:
        """Those that take work, in the order in which they were made."""
        yielded = self.yielded
        return [expert for uid, expert in self.by_uid.items() if uid not in yielded]

    @property
    def has_groups(self) -> bool:
        """Whether any expert may be computed together with others."""
        return bool(self._groups)

    def group_of(self, uid: str, operation: Operation) -> Group | None:
        """With whom an expert may be computed together; None when it is computed alone."""
        group = self._groups.get(uid)
        return group if group is not None and group.longest.get(operation) else None

    def find(self, uid: str) -> Expert:
        """Raises UnknownExpert with the reason."""
        expert = self.by_uid.get(uid)
        if expert is None:
            raise UnknownExpert(f"{uid[:MAX_SHOWN_UID_CHARS]!r} is not hosted by this node")
        reason = self.yielded.get(uid)
        if reason is not None:
            raise UnknownExpert(f"{uid} is not served by this node: {reason}")
        return expert
