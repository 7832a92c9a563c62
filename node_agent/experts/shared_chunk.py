"""A chunk of parameters that trainers share: an expert whose forward is a look at it and whose backward is a write.

What a write means stands in its note (learning_at_home/shared_parameters.py): a change is a pseudo-gradient, by which
the optimizer steps as for any expert; a fill replaces what is older than it. `updates` is the version, 0 while there is
nothing. Not thread-safe, as any expert. Policy: docs/decisions/0009-shared-parameters.md.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from learning_at_home.errors import ExpertFailed, ParametersMissing, SpecMismatch
from learning_at_home.expert_uid import ExpertUid
from learning_at_home.project import LayerSpec
from learning_at_home.shared_parameters import HEADER_SIZE, MAX_FILL, NOTE_SIZE, Meaning, Note
from node_agent.experts.architectures import Parameters
from node_agent.experts.expert import Expert
from node_agent.experts.gathered import Gathered
from node_agent.experts.gradients import Gradients, total_norm
from node_agent.experts.optimizers import Optimizer

log = logging.getLogger(__name__)


class SharedChunk(Expert):
    """A chunk on its device. Its requests are never clipped: a part of a vector does not tell how long that is."""

    def __init__(self, uid: ExpertUid, layer: LayerSpec, module: nn.Module, device: torch.device) -> None:
        super().__init__(uid, layer, module, device)
        assert isinstance(self.module, Parameters), "the layer's architecture is that of shared parameters"
        self._parameters = self.module
        self.clip_norm = None

    def forward(self, rows: Tensor, *, remember: bool = False) -> Tensor:
        """The chunk behind a note of what it is, once per row. Raises SpecMismatch for notes of other parameters."""
        self._notes(rows)
        answer = super().forward(rows)
        with torch.inference_mode():
            answer[:, :NOTE_SIZE] = torch.tensor(self._held(self.updates).to_row(), dtype=self.dtype)
        return answer

    def gradients(self, rows: Tensor, output_gradient: Tensor) -> Gradients:
        """The sum of the changes; in place of each note the version that will contain what came with it.

        Fills are carried out here: no optimizer makes them. To try a batch twice does not fill twice, since the version
        is the fill's own then. Raises SpecMismatch, ParametersMissing for changes of what is not here, ExpertFailed.
        """
        total: Tensor | None = None
        answers = []
        for note, values in zip(self._notes(rows), output_gradient, strict=True):
            if note is None or note.meaning not in (Meaning.CHANGE, Meaning.FILL):
                raise SpecMismatch(f"{self.uid}: a backward of shared parameters needs a note that says what it means")
            values = values[HEADER_SIZE:]
            if note.meaning is Meaning.FILL:
                self._check_fill(note)
                if self._fill(note, values):
                    total = None  # what came before it was of other content
                answers.append(self._held(self.updates).to_row())
            elif not self.updates or note.origin != int(self._parameters.origin):
                raise ParametersMissing(
                    f"{self.uid}: this host has nothing, or other content than the change is of; fill it from a copy"
                )
            else:
                total = values.clone() if total is None else total.add_(values)
                answers.append(self._held(self.updates + 1).to_row())
        of_parameters = (total,) if self.trained else ()
        norm = total_norm(of_parameters)
        if not norm < float("inf"):
            raise ExpertFailed(f"{self.uid}: the sum of these changes is not finite; no step was taken")
        return Gradients(torch.tensor(answers, dtype=self.dtype, device=self.device), of_parameters, norm)

    def _check_fill(self, note: Note) -> None:
        """Raises SpecMismatch for a fill that would leave no room for updates, or that says not of what it is."""
        if note.version > MAX_FILL or not note.origin or not note.fingerprint:
            raise SpecMismatch(
                f"{self.uid}: a fill names its origin, its parameters and a version up to {MAX_FILL:,}, not "
                f"{note.origin}, {note.fingerprint:x} and {note.version:,}"
            )

    def _fill(self, note: Note, values: Tensor) -> bool:
        """Take the content of a copy that is newer than ours; whether it is."""
        if note.version <= self.updates:
            return False
        log.info("%s: filled with version %d of a trainer's copy, instead of %d", self.uid, note.version, self.updates)
        with torch.no_grad():
            self._parameters.values.copy_(values)
            self._parameters.origin.fill_(note.origin)
            self._parameters.fingerprint.fill_(note.fingerprint)
        self._optimizer = Optimizer(self.layer.optimizer, self.trained)  # its momentum was of other values
        self._optimizer.updates = note.version
        self.gathered = Gathered(self.layer.optimizer)  # and so were changes that wait
        return True

    def _held(self, version: int) -> Note:
        return Note(Meaning.HELD, version, int(self._parameters.origin), int(self._parameters.fingerprint))

    def _notes(self, rows: Tensor) -> Sequence[Note | None]:
        """What the rows say. Raises SpecMismatch when they are none, or of other parameters than these.

        A fill that is newer may be of others: a stranger who came first locks nobody out who has trained.
        """
        notes = [Note.from_row(row) for row in rows.tolist()]
        held = int(self._parameters.fingerprint) if self.updates else 0
        for note in notes:
            if note is None or not held or note.fingerprint == held:
                continue
            if note.meaning is not Meaning.FILL or note.version <= self.updates:
                raise SpecMismatch(
                    f"{self.uid}: the swarm holds parameters with other names or shapes (fingerprint {held:x}) than "
                    f"this trainer's ({note.fingerprint:x}): all trainers of a group need the same model"
                )
        return notes
