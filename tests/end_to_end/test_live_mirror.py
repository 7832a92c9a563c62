"""The live mirror with a real coordinator and real nodes: how soon a trainer knows, and what it does without."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import torch

import learning_at_home as lah
from tests.end_to_end.processes import Processes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PROJECT = """
id = "digits"
title = "A test"

[[layers]]
prefix = "ffn0"
grid = [4, 4]
architecture = "ffn"
hidden_size = 16
"""
NAMES = ("brisk-heron", "calm-otter", "keen-robin", "shy-badger")
KILLED_OUT_IN_S = 3.0
SILENT_OUT_IN_S = 12.0
PROBED_IN_S = 25.0  # every node within 15 s and a fifth, and its second failure


def test_a_trainer_that_calls_nobody_knows_who_vanished_and_goes_on_without_the_coordinator(
    tmp_path: Path, free_tcp_port: int
) -> None:
    project_file = tmp_path / "digits.toml"
    project_file.write_text(PROJECT)
    with Processes(tmp_path) as processes:
        url = processes.coordinator(free_tcp_port, project_file)
        for line, name in enumerate(NAMES):
            processes.node(name, url, [f"ffn0.[{line}:{line + 1}].[0:4]"])
        with lah.Swarm.connect(url) as swarm:
            swarm.wait_until_alive(timeout_s=90)
            processes.until(lambda: swarm.directory_source().name == "mirror", "the mirror is live", 20)
            assert swarm.directory_source().age_s < 20

            def are_alive(count: int) -> bool:
                return swarm.layer("ffn0").num_alive == count

            processes.kill("brisk-heron")
            began_s = time.monotonic()
            processes.until(lambda: are_alive(12), "the killed node is out", KILLED_OUT_IN_S)
            print(f"killed: out after {time.monotonic() - began_s:.1f} s")

            os.kill(processes.pid("calm-otter"), signal.SIGSTOP)
            began_s = time.monotonic()
            processes.until(lambda: are_alive(8), "the silent node is out", SILENT_OUT_IN_S)
            print(f"silent: out after {time.monotonic() - began_s:.1f} s")
            os.kill(processes.pid("calm-otter"), signal.SIGCONT)
            processes.until(lambda: are_alive(12), "it speaks, and is back", 40)

            processes.kill("coordinator")
            processes.until(lambda: swarm.directory_source().name == "dht", "the mirror is known to be gone", 15)
            processes.kill("keen-robin")
            x = torch.randn(8, 16)
            assert lah.DMoE(swarm, layer="ffn0", k_best=2)(x).shape == x.shape
            processes.until(lambda: are_alive(8), "the DHT and failed calls tell what is left", 75)

            processes.coordinator(free_tcp_port, project_file)
            processes.until(lambda: swarm.directory_source().name == "mirror", "the mirror is back", 60)
            # It knew of the one, and finds the other silent.
            processes.until(lambda: are_alive(8), "and tells the same", PROBED_IN_S)
