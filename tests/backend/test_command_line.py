import socket
from pathlib import Path

import pytest

from backend.cli import listen, main
from backend.command_line import parser, read
from learning_at_home.errors import ConfigError

FOLDER = "/tmp/somewhere"


def settings(*arguments: str, **environment: str):
    return read(
        ["--data-dir", FOLDER, *arguments], {f"LAH_COORDINATOR_{k}": v for k, v in environment.items()}
    ).settings


def test_defaults():
    made = settings()

    assert (made.host, made.port, made.dht_port) == ("127.0.0.1", 8765, 8765)
    assert made.url == "http://127.0.0.1:8765"
    assert made.from_flags == ()


def test_the_dht_takes_the_number_of_the_web_port_unless_told():
    assert settings("--port", "9000").dht_port == 9000
    assert settings("--port", "9000", "--dht-port", "0").dht_port == 0


def test_a_flag_goes_before_its_variable_and_a_variable_before_the_default():
    assert settings(PORT="9000").port == 9000
    assert settings("--port", "9001", PORT="9000").port == 9001


def test_every_flag_has_a_variable():
    flags = {action.dest for action in parser()._actions} - {"help"}
    values = {
        "port": "9000", "dht_port": "9001", "data_dir": FOLDER, "public_url": "https://lah.example", "project": "p-1",
        "learning_rate": "0.1", "optimizer": "sgd", "layer": "a=2:mlp:8 b=3x3:ffn:4", "bootstrap": "a:1 b:2",
        "log_level": "info", "exit_with_parent": "1", "title": "T", "host": "::1",
        "database_url": "postgresql+asyncpg://u:p@h/d", "project_file": "",
    }  # fmt: skip
    assert set(values) == flags

    start = read([], {f"LAH_COORDINATOR_{name.upper()}": value for name, value in values.items()})
    made = start.settings
    assert (made.port, made.dht_port, made.host, made.bootstrap) == (9000, 9001, "::1", ("a:1", "b:2"))
    assert (start.log_level, start.exit_with_parent, made.url) == ("info", True, "https://lah.example")
    (record,) = made.from_flags
    assert (record.id, record.title) == ("p-1", "T")
    assert [(each.prefix, each.grid, each.architecture, each.hidden_size) for each in record.layers] == [
        ("a", (2,), "mlp", 8),
        ("b", (3, 3), "ffn", 4),
    ]
    assert {(each.optimizer.name, each.optimizer.learning_rate) for each in record.layers} == {("sgd", 0.1)}


def test_a_project_by_its_id_alone_has_two_layers_of_sixteen():
    (record,) = settings("--project", "digits").from_flags

    assert [(each.prefix, each.grid, each.architecture, each.hidden_size) for each in record.layers] == [
        ("ffn0", (4, 4), "ffn", 64),
        ("ffn1", (4, 4), "ffn", 64),
    ]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--port", "many"], "--port 'many' is not a whole number"),
        (["--port", "65536"], "65536 is no port"),
        (["--dht-port", "-1"], "-1 is no port"),
        (["--project", "Digits!"], "'Digits!' is not a project id"),
        (["--project", "digits", "--layer", "ffn0"], "not of the form"),
        (["--project", "digits", "--layer", "ffn0=0x4:ffn:64"], "at least one line each"),
        (["--project", "digits", "--optimizer", "magic"], "magic"),
        (["--project", "digits", "--learning-rate", "-1"], "learning_rate"),
        (["--project", "digits", "--learning-rate", "x"], "--learning-rate 'x' is not a number"),
        (["--title", "Digits"], "give its id with --project"),
        (["--bootstrap", "here"], "'here' is not host:port"),
        (["--public-url", "lah.example"], "not an address"),
        (["--database-url", "mysql://x"], "--database-url starts with"),
        (["--project-file", "/nowhere/at.toml"], "/nowhere/at.toml"),
    ],
)
def test_a_flag_that_cannot_be_used_is_named(arguments, words):
    with pytest.raises(ConfigError) as caught:
        settings(*arguments)

    assert words in str(caught.value)


def test_a_misspelt_variable_is_named():
    with pytest.raises(ConfigError, match="LAH_COORDINATOR_PROT"):
        settings(PROT="9000")


def test_a_taken_port_is_named_with_what_to_do(capsys, tmp_path: Path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]

        assert main(["--port", str(port), "--data-dir", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert f"port {port} of 127.0.0.1 cannot be used" in error
    assert "--port" in error
    assert "Traceback" not in error


def test_a_host_of_another_machine_is_named():
    with pytest.raises(ConfigError, match=r"no-such-host\.invalid"):
        listen("no-such-host.invalid", 0)
