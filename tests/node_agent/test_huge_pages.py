"""Whether a node's large tensors lie on huge pages: in a process of its own, since torch looks at the setting once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")
PROGRAM = """
import resource, sys
import node_agent.cli
import torch
from learning_at_home.tensors.huge_pages import use_huge_pages

use_huge_pages()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.zeros(64 << 20, dtype=torch.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults_of_64_mib(**environment: str) -> int:
    """After everything that a node imports: none of it may make a tensor before the setting is made."""
    inherited = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return int(ran.stdout)


@pytest.mark.skipif(
    not ENABLED.exists() or "[madvise]" not in ENABLED.read_text(),
    reason="this system gives huge pages to all or to nobody",
)
def test_a_large_tensor_takes_few_page_faults_unless_the_environment_says_otherwise() -> None:
    assert page_faults_of_64_mib() < 4_096
    assert page_faults_of_64_mib(THP_MEM_ALLOC_ENABLE="0") > 16_000
