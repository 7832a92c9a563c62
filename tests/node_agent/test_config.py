"""Flags, variables, defaults, and what is said of values that make no sense."""

from pathlib import Path

import pytest

from learning_at_home.errors import ConfigError
from node_agent.addresses import announced_host, endpoint
from node_agent.cli import build_parser
from node_agent.config import _READERS, NodeConfig, read_config

URL = "https://coordinator.example/p/digits"


def config_of(*flags: str, environment: dict[str, str] | None = None) -> NodeConfig:
    return read_config(vars(build_parser().parse_args(flags)), environment or {})


def test_every_flag_has_a_reader_and_every_reader_a_flag():
    assert set(vars(build_parser().parse_args([]))) == set(_READERS)


def test_flags_win_over_variables_and_variables_over_defaults():
    environment = {"LAH_NODE_COORDINATOR": URL, "LAH_NODE_MAX_EXPERTS": "7", "LAH_NODE_THREADS": "3"}

    config = config_of("--threads", "2", environment=environment)

    assert (config.coordinator, config.max_experts, config.threads, config.port) == (URL, 7, 2, 0)


def test_repeated_flags_and_lists_in_variables_are_the_same():
    flags = config_of("--coordinator", URL, "--experts", "ffn0.0.0", "--experts", "ffn1.[0:2].1")
    variables = config_of(environment={"LAH_NODE_COORDINATOR": URL, "LAH_NODE_EXPERTS": "ffn0.0.0, ffn1.[0:2].1"})

    assert flags == variables
    assert flags.experts == ("ffn0.0.0", "ffn1.[0:2].1")


def test_packages_may_be_allowed_by_flags_and_by_a_variable():
    flags = config_of("--coordinator", URL, "--allow-experts", "gated-experts", "--allow-experts", "Other.Pack")

    assert flags.allow_experts == ("gated-experts", "Other.Pack")
    assert flags == config_of("--coordinator", URL, environment={"LAH_NODE_ALLOW_EXPERTS": "gated-experts Other.Pack"})


def test_values_get_their_types():
    flags = ["--memory-limit", "4GB", "--data-dir", "here", "--join-timeout", "2.5", "--exit-with-parent"]
    config = config_of("--coordinator", URL, *flags)

    assert config.memory_limit_bytes == 4 * 10**9
    assert config.data_dir == Path("here").absolute()
    assert config.join_timeout_s == 2.5
    assert config.exit_with_parent is True


@pytest.mark.parametrize(
    "flags,words",
    [
        ([], "where is the project"),
        (["--bootstrap", "127.0.0.1:1"], "where is the project"),
        (["--coordinator", "coordinator.example"], "not the address of a project"),
        (["--coordinator", "https://host/p/"], "not the address of a project"),
        (["--coordinator", URL, "--project-file", "x.toml"], "without a coordinator"),
        (["--project-file", "x", "--bootstrap", "host"], "--bootstrap 'host' is not host:port"),
        (["--project-file", "x", "--bootstrap", "host:0"], "is not host:port"),
        (["--coordinator", URL, "--experts", "ffn0.[4:2].1"], "--experts: .*names no expert"),
        (["--coordinator", URL, "--name", "Brisk Heron"], "--name 'Brisk Heron': a name has"),
        (["--coordinator", URL, "--device", "tpu"], "none of auto, cpu, cuda"),
        (["--coordinator", URL, "--port", "70000"], "--port 70000 is out of range: 0 to 65,535"),
        (["--coordinator", URL, "--port", "http"], "--port 'http' is not a whole number"),
        (["--coordinator", URL, "--allow-experts", "../evil"], "--allow-experts '../evil' is no name of a package"),
        (["--coordinator", URL, "--threads", "0"], "--threads 0 is out of range"),
        (["--coordinator", URL, "--max-rows", "5000"], "--max-rows 5000 is out of range"),
        (["--coordinator", URL, "--memory-limit", "much"], "such as 4GB"),
        (["--coordinator", URL, "--join-timeout", "soon"], "is not a number"),
    ],
)
def test_what_cannot_be_used_is_named(flags, words):
    with pytest.raises(ConfigError, match=words):
        config_of(*flags)


def test_a_switch_in_a_variable_is_yes_or_no():
    with pytest.raises(ConfigError, match="LAH_NODE_EXIT_WITH_PARENT 'maybe' is neither yes nor no"):
        config_of("--coordinator", URL, environment={"LAH_NODE_EXIT_WITH_PARENT": "maybe"})


@pytest.mark.parametrize(
    "bind_host,your_address,bootstrap,expected",
    [
        ("127.0.0.1", None, [], "127.0.0.1"),
        ("0.0.0.0", "203.0.113.7", ["198.51.100.1:8338"], "203.0.113.7"),
        ("0.0.0.0", "127.0.0.1", ["127.0.0.1:8338"], "127.0.0.1"),
        ("0.0.0.0", "::ffff:203.0.113.7", [], "203.0.113.7"),
        ("0.0.0.0", None, ["127.0.0.1:8338"], "127.0.0.1"),
        ("0.0.0.0", None, ["localhost:8338"], "127.0.0.1"),
        ("::", "2001:db8::1", [], "2001:db8::1"),
    ],
)
def test_a_node_announces_where_others_can_reach_it(bind_host, your_address, bootstrap, expected):
    assert announced_host(bind_host, your_address, bootstrap) == expected


def test_an_endpoint_brackets_ipv6():
    assert (endpoint("203.0.113.7", 5), endpoint("2001:db8::1", 5)) == ("tcp://203.0.113.7:5", "tcp://[2001:db8::1]:5")
