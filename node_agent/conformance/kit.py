"""All that a node expects of an expert's network, as one list of findings. See docs/custom-experts.md.

A network's own errors are findings, too: it may be anyone's code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from learning_at_home.errors import LearningAtHomeError
from learning_at_home.tools.checks import Check, Status, failed
from node_agent.conformance import backward_checks, estimates, forward_checks
from node_agent.conformance.subject import Subject

BASIC: tuple[Callable[[Subject], Check], ...] = (forward_checks.check_weights, forward_checks.check_shapes)
FURTHER: tuple[Callable[[Subject], Check], ...] = (
    forward_checks.check_input_is_left_alone,
    forward_checks.check_determinism,
    forward_checks.check_state,
    forward_checks.check_independence,
    backward_checks.check_recomputation,
    backward_checks.check_gradients,
    backward_checks.check_derivative,
    backward_checks.check_clipping,
    backward_checks.check_grouping,
    estimates.check_checkpoint,
    estimates.check_memory,
    estimates.check_flop,
)


def examine(subject: Subject) -> list[Check]:
    """Every finding; only the basic ones where a network cannot be made or computes no rows."""
    findings = [_find(check, subject) for check in BASIC]
    if not passes(findings):
        return findings
    return findings + [_find(check, subject) for check in FURTHER]


def passes(findings: Sequence[Check]) -> bool:
    """Whether nothing failed; there may be warnings."""
    return all(finding.status is not Status.FAILED for finding in findings)


def _find(check: Callable[[Subject], Check], subject: Subject) -> Check:
    with torch.random.fork_rng(devices=[]):  # checks seed it
        try:
            return check(subject)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - an expert's code, which may be anyone's: anything
            said = error.message if isinstance(error, LearningAtHomeError) else f"{type(error).__name__}: {error}"
            name = check.__name__.removeprefix("check_").replace("_", " ")
            return failed(name, said or type(error).__name__, "a node would answer its callers with this error")
