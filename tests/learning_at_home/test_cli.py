"""The `lah` command's dispatch, with commands that stand in for the real ones."""

import sys
import tomllib
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import pytest

from learning_at_home import cli

AddCommand = Callable[[str, str], None]


@pytest.fixture
def add_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AddCommand:
    """Makes `lah NAME` run the `main` of the given source code, as if a package had registered it."""
    registered: list[EntryPoint] = []
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(cli, "entry_points", lambda group: registered)

    def add(name: str, source: str) -> None:
        module = f"command_of_a_test_{tmp_path.name}_{name}".replace("-", "_")
        (tmp_path / f"{module}.py").write_text(source)
        registered.append(EntryPoint(name, f"{module}:main", cli.COMMANDS_GROUP))

    return add


def test_a_command_gets_the_remaining_arguments_and_gives_the_exit_code(
    add_command: AddCommand, capsys: pytest.CaptureFixture[str]
):
    add_command("sing", "def main(argv):\n    print(argv)\n    return 7")

    assert cli.main(["sing", "--loud", "twice"]) == 7
    assert capsys.readouterr().out == "['--loud', 'twice']\n"


@pytest.mark.parametrize("arguments", [["sing", "--help"], ["help", "sing"]])
def test_help_for_a_command_is_answered_by_the_command(
    add_command: AddCommand, arguments: list[str], capsys: pytest.CaptureFixture[str]
):
    add_command("sing", "def main(argv):\n    print(argv)\n    return 0")

    assert cli.main(arguments) == 0
    assert capsys.readouterr().out == "['--help']\n"


def test_an_unknown_command_is_refused_with_the_list_of_those_there_are(
    add_command: AddCommand, capsys: pytest.CaptureFixture[str]
):
    add_command("sing", "")
    add_command("dance", "")

    assert cli.main(["hum"]) == 2
    assert capsys.readouterr().err == "lah: there is no command 'hum'; there are: dance, sing\n"


@pytest.mark.parametrize("arguments", [["--help"], ["help"]])
def test_help_lists_every_command_without_loading_it(
    add_command: AddCommand, arguments: list[str], capsys: pytest.CaptureFixture[str]
):
    add_command("sing", "raise RuntimeError('loaded')")

    with pytest.raises(SystemExit) as left:
        cli.main(arguments)

    assert left.value.code == 0
    assert "  sing" in capsys.readouterr().out


def test_no_command_at_all_prints_the_help_as_an_error(add_command: AddCommand, capsys: pytest.CaptureFixture[str]):
    add_command("sing", "")

    assert cli.main([]) == 2
    assert "usage: lah COMMAND" in capsys.readouterr().err


def test_a_missing_third_party_package_is_one_sentence_that_names_what_to_install(
    add_command: AddCommand, capsys: pytest.CaptureFixture[str]
):
    add_command("sing", "import a_package_that_nobody_has")

    assert cli.main(["sing"]) == 3
    assert capsys.readouterr().err == (
        "lah sing needs the Python package a_package_that_nobody_has, which is not installed: "
        "pip install 'learning-at-home'\n"
    )


@pytest.mark.parametrize("command,extra", [("node", "node"), ("expert", "node"), ("dht", None)])
def test_a_command_is_installed_with_the_extra_that_it_needs(command: str, extra: str | None):
    (entry,) = entry_points(group=cli.COMMANDS_GROUP, name=command)

    assert cli._requirement(entry) == ("learning-at-home" if extra is None else f"learning-at-home[{extra}]")


@pytest.mark.parametrize(
    "source",
    [
        "import node_agent.a_module_that_is_not_there",  # a fault of ours
        "import pytest.a_module_that_is_not_there",  # the package is there, its version is wrong
        "from learning_at_home.errors import a_name_that_is_not_there",
    ],
)
def test_any_other_import_error_is_not_hidden(add_command: AddCommand, source: str):
    add_command("sing", source)

    with pytest.raises(ImportError):
        cli.main(["sing"])


def test_a_missing_module_while_the_command_runs_is_not_blamed_on_the_installation(add_command: AddCommand):
    add_command("sing", "def main(argv):\n    import a_package_that_nobody_has")

    with pytest.raises(ModuleNotFoundError):
        cli.main(["sing"])


def test_ctrl_c_ends_with_the_shells_code_and_without_a_traceback(
    add_command: AddCommand, capsys: pytest.CaptureFixture[str]
):
    add_command("sing", "def main(argv):\n    raise KeyboardInterrupt")

    assert cli.main(["sing"]) == 130
    assert capsys.readouterr().err == ""


def test_ctrl_c_while_a_command_is_still_imported_shows_no_traceback(
    add_command: AddCommand, capsys: pytest.CaptureFixture[str]
):
    add_command("sing", "raise KeyboardInterrupt")

    assert cli.main(["sing"]) == 130
    assert capsys.readouterr().err == ""


def test_the_packages_that_count_as_ours_are_those_of_the_wheel():
    root = Path(cli.__file__).resolve().parents[1]
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))

    assert set(project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]) == cli.OUR_PACKAGES
    assert set(project["project"]["entry-points"][cli.COMMANDS_GROUP]) == set(cli.SUMMARIES)
    assert sys.version_info >= tuple(map(int, project["project"]["requires-python"].removeprefix(">=").split(".")))
