"""`jaxprune completion`: what a shell offers, asked of the shell itself."""

import contextlib
import io
import os
import shutil
import subprocess
import sys

import pytest

from jaxprune import activations, cli, pruning
from jaxprune.cli import completion


@pytest.fixture(scope="module")
def scripts():
    """By shell, what the command prints."""
    found = {}
    for shell in completion.SHELLS:
        printed = io.TextIOWrapper(io.BytesIO(), "utf-8")
        with contextlib.redirect_stdout(printed):
            assert cli.main(["completion", shell]) == 0
        printed.seek(0)
        found[shell] = printed.read()
    return found


def offered(script, folder, *words):
    """What bash offers for the last of the words."""
    (folder / "script").write_text(script)
    line = " ".join(f"'{word}'" for word in ("jaxprune", *words))
    code = (
        f"source ./script; COMP_WORDS=({line}); COMP_CWORD={len(words)}; "
        "_shtab_jaxprune; printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    done = subprocess.run(["bash", "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_bash_completes_commands_options_names_and_files(scripts, tmp_path):
    ask = lambda *words: offered(scripts["bash"], tmp_path, *words)
    (tmp_path / "plan.toml").write_text("")
    commands = {module.__name__.rpartition(".")[2] for module in cli.COMMANDS}
    assert ask("") >= commands
    assert ask("re") == {"resume", "replay", "report"}
    assert ask("verify", "--tr") == {"--trials"}
    assert ask("rare", "--pruning", "") == set(pruning.METHODS)
    assert ask("bound", "--activation", "") == set(activations.ACTIVATIONS)
    assert ask("verify", "--plan", "pl") == {"plan.toml"}
    assert ask("completion", "") >= set(completion.SHELLS)


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_scripts_of_other_shells_name_every_command_and_parse(scripts, shell, tmp_path):
    for module in cli.COMMANDS:
        assert module.__name__.rpartition(".")[2] in scripts[shell]
    assert "leaky_relu" in scripts[shell] and "until-decided" in scripts[shell]
    if shutil.which(shell):
        (tmp_path / "script").write_text(scripts[shell])
        environment = {**os.environ, "HOME": str(tmp_path)}
        command = [shell, "-n", str(tmp_path / "script")]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert (done.returncode, done.stderr) == (0, "")


def test_another_shell_is_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["completion", "cmd"])
    assert stop.value.code == 2 and "'bash', 'zsh', 'fish'" in capsys.readouterr().err


def test_a_missing_package_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert cli.main(["completion", "bash"]) == 2
    told = "jaxprune: shtab: not installed; pip install 'jaxprune[completion]'\n"
    assert capsys.readouterr() == ("", told)
