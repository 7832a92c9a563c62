"""`lah node` as a volunteer meets it: what it prints, how it ends."""

import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from learning_at_home.project import LayerSpec, ProjectRecord
from node_agent.agent import SERVING_LINE
from node_agent.cli import build_parser, main
from node_agent.testing.project_files import project_toml

TIMEOUT_S = 40.0  # torch takes seconds to import on a busy machine
PROJECT = ProjectRecord(id="digits", layers=(LayerSpec(prefix="ffn0", grid=(2, 2), hidden_size=8),))


@pytest.fixture
def project_file(tmp_path: Path) -> str:
    path = tmp_path / "project.toml"
    path.write_text(project_toml(PROJECT), "utf-8")
    return str(path)


@pytest.fixture
def here(project_file: str, tmp_path: Path) -> list[str]:
    """Flags of a node that stays on this machine."""
    return ["--project-file", project_file, "--data-dir", str(tmp_path / "node"), "--host", "127.0.0.1"]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["SIGINT", "SIGTERM", "its parent's end"])
def test_a_node_tells_what_it_does_and_leaves_with_code_0(here, how):
    with subprocess.Popen(
        [sys.executable, "-m", "node_agent.cli", *here, "--exit-with-parent"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdin is not None
        lines = [process.stdout.readline().strip()]
        while lines[-1] and lines[-1] != SERVING_LINE:
            lines.append(process.stdout.readline().strip())
        if how == "its parent's end":
            process.stdin.close()
        else:
            process.send_signal(getattr(signal, how))
        rest = process.stdout.read().splitlines()
        problems = process.stderr.read()

    assert (process.wait(TIMEOUT_S), problems) == (0, "")
    assert lines[0] == "joined project digits"
    assert re.fullmatch(r"hosting 4 experts: [\d.]+ MB of [\d.]+ GB; [\d,]+ would fit", lines[1])
    assert lines[2].startswith("reachable at tcp://127.0.0.1:")
    assert lines[3] == SERVING_LINE
    assert rest == ["leaving: finishing the work that is queued", "left the swarm"]


def test_no_project_is_a_configuration_error(capsys):
    assert main([]) == 4
    assert "where is the project? Give --coordinator URL" in capsys.readouterr().err


def test_a_command_line_without_sense_is_a_usage_error(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--warp-speed"])

    assert end.value.code == 2


@pytest.mark.parametrize(
    "flags,words",
    [
        (["--experts", "ffn9.0.0"], "no layer 'ffn9'; its layers: ffn0"),
        (["--experts", "ffn0.[0:9].0"], "outside the grid 2x2"),
        (["--memory-limit", "1MB"], "but cpu has 1.0 MB for them; 0 fit"),
        (["--device", "cuda:7"], "--device cpu always works"),
    ],
)
def test_what_cannot_be_hosted_is_a_configuration_error(here, capsys, flags, words):
    assert main([*here, *flags]) == 4
    assert words in capsys.readouterr().err


def test_a_coordinator_that_does_not_answer_has_a_code_of_its_own(tmp_path, capsys):
    url = "http://127.0.0.1:9/p/digits"

    assert main(["--coordinator", url, "--join-timeout", "0", "--data-dir", str(tmp_path)]) == 5
    assert "is the coordinator running?" in capsys.readouterr().err


@pytest.mark.slow
def test_bootstrap_peers_that_do_not_answer_have_a_code_of_their_own(tmp_path, capsys, free_udp_port):
    peer = f"127.0.0.1:{free_udp_port}"
    flags = ["--project", "digits", "--bootstrap", peer, "--join-timeout", "0", "--host", "127.0.0.1"]

    assert main([*flags, "--data-dir", str(tmp_path)]) == 5
    assert peer in capsys.readouterr().err


@pytest.mark.parametrize("flag,kind", [("--port", socket.SOCK_STREAM), ("--dht-port", socket.SOCK_DGRAM)])
def test_a_port_that_is_taken_has_a_code_of_its_own(here, capsys, flag, kind):
    with socket.socket(socket.AF_INET, kind) as holder:
        holder.bind(("127.0.0.1", 0))
        if kind == socket.SOCK_STREAM:
            holder.listen()
        port = holder.getsockname()[1]

        assert main([*here, flag, str(port)]) == 6
    assert str(port) in capsys.readouterr().err


def test_tensorboard_without_its_package_says_what_to_install(here, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("node_agent.tensorboard.find_spec", lambda name: None)

    assert main([*here, "--tensorboard", str(tmp_path)]) == 3
    assert capsys.readouterr().err.strip().endswith("pip install 'learning-at-home[node,tensorboard]'")


def test_help_lists_every_exit_code():
    words = build_parser().format_help()

    assert all(f"\n  {code}  " in words for code in (0, 2, 3, 4, 5, 6, 7))


def test_a_key_file_that_is_none_is_not_overwritten(here, tmp_path, capsys):
    key = tmp_path / "node" / "node.key"
    key.parent.mkdir()
    key.write_text("my shopping list")

    assert main(here) == 4
    assert "is not a key file of Learning@home" in capsys.readouterr().err
    assert key.read_text() == "my shopping list"
