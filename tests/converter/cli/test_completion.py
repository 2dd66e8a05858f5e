"""What a shell completes, and how it is set up."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.distributions import write_distribution

PROGRAM = str(Path(sys.executable).with_name("qatconvert"))
#: Seconds that a person who pressed a key waits for gladly; 0.2 on an idle machine.
PATIENCE = 2.0
#: What shows the line that zsh is at when Ctrl-X is typed. With ``menu_complete``, each tab takes the next of
#: what may follow.
ZSHRC = """
PS1='ready '
setopt menu_complete
show() { print -r -- "<$BUFFER>" }
zle -N show
bindkey '^X' show
"""
#: An interactive zsh on a terminal, into which the argument and Ctrl-X are typed.
TERMINAL = r"""
zmodload zsh/zpty
zpty z zsh -i
zpty -r z begun '*ready *'
zpty -w -n z "$1"$'\x18'
zpty -r z shown '*<*>*'
print -r -- ${${shown##*<}%%>*}
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A home of its own; ``qatconvert`` is the one under test, and no address of the network answers."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "QATCONVERT_"))}
    path = f"{Path(PROGRAM).parent}{os.pathsep}{os.environ['PATH']}"
    own = {"HOME": str(tmp_path), "SHELL": "/bin/bash", "PATH": path, "HF_ENDPOINT": "http://127.0.0.1:9"}
    return {**kept, **own, "QATCONVERT_HOME": str(tmp_path / "own")}


def ask(environment: dict[str, str], words: list[str], shell: str = "bash") -> list[str]:
    """What the protocol of a shell answers for the last of ``words``."""
    place = {"fish": words[-1]}.get(shell, str(len(words)))
    asked = {"COMP_WORDS": " ".join(["qatconvert", *words]), "COMP_CWORD": place}
    done = subprocess.run(
        [PROGRAM],
        capture_output=True,
        text=True,
        env={**environment, **asked, "_QATCONVERT_COMPLETE": f"{shell}_complete"},
        cwd=environment["HOME"],
        check=True,
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


def press_tab(environment: dict[str, str], line: str) -> list[str]:
    """What bash proposes once it has read its startup file, as it does for an interactive user."""
    script = """
    source ~/.bashrc
    read -ra COMP_WORDS <<< "$1"
    [[ $1 == *" " ]] && COMP_WORDS+=("")
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1)) COMP_LINE=$1 COMP_POINT=${#1}
    set -- $(complete -p qatconvert)
    while [[ $1 != -F ]]; do shift; done
    "$2" qatconvert "${COMP_WORDS[COMP_CWORD]}" "" 2>/dev/null
    printf '%s\\n' "${COMPREPLY[@]}"
    """
    command = ["bash", "--norc", "-c", script, "bash", line]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=environment["HOME"])
    assert done.stderr == ""
    return done.stdout.split()


def needs(shell: str) -> None:
    """Skip the test where a shell is not installed."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")


def completion(environment: dict[str, str], *words: str, status: int = 0) -> str:
    command = [PROGRAM, "completion", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == status, done.stderr
    return done.stdout if not status else done.stderr


@pytest.mark.parametrize(
    ("line", "proposed"),
    [
        ("qatconvert insp", ["inspect"]),
        ("qatconvert gemma4-d", ["gemma4-demo", "gemma4-demo-mobile"]),
        ("qatconvert inspect gemma4-e2", ["gemma4-e2b", "gemma4-e2b-mobile"]),
        ("qatconvert gemma4-demo -t ", ["gguf", "litert", "onnx", "all"]),
        ("qatconvert gemma4-demo -t onnx,", ["onnx,gguf", "onnx,litert"]),
        ("qatconvert gemma4-demo --target gguf,o", ["gguf,onnx"]),
        ("qatconvert gemma4-demo --dry", ["--dry-run"]),
        ("qatconvert validate --target o", ["onnx"]),
        ("qatconvert x --gate mean", ["mean_kld="]),
        ("qatconvert x --runtime gg", ["gguf.llamacpp"]),
        ("qatconvert x --onnx-dtype ", ["float32", "float16"]),
        ("qatconvert models re", ["remove"]),
        ("qatconvert nothing-like-it", []),
    ],
)
def test_bash_proposes_what_may_follow(environment, line, proposed):
    completion(environment, "--install")
    assert press_tab(environment, line) == proposed


@pytest.mark.parametrize(
    ("line", "proposed"),
    [
        ("qatconvert insp", ["inspect\tShow architecture, lattice and planned size of MODEL."]),
        ("qatconvert inspect gemma4-e2", ["gemma4-e2b", "gemma4-e2b-mobile"]),
        ("qatconvert gemma4-demo -t ", ["all", "gguf", "litert", "onnx"]),
        ("qatconvert gemma4-demo -t onnx,", ["onnx,gguf", "onnx,litert"]),
        ("qatconvert x --gate mean", ["mean_kld="]),
        ("qatconvert verify ./f", ["./folder/"]),
        ("qatconvert nothing-like-it", []),
    ],
)
def test_fish_proposes_what_may_follow(environment, tmp_path, line, proposed):
    needs("fish")
    (tmp_path / "folder").mkdir()
    completion(environment, "--install", "--shell", "fish")
    command = ["fish", "--command", "complete --do-complete $argv[1]", line]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=True)
    assert (done.stdout.splitlines(), done.stderr) == (proposed, "")


@pytest.mark.parametrize(
    ("line", "tabs", "completed"),
    [
        ("qatconvert insp", 1, "qatconvert inspect "),
        ("qatconvert inspect gemma4-e2", 1, "qatconvert inspect gemma4-e2b"),
        ("qatconvert inspect gemma4-e2", 2, "qatconvert inspect gemma4-e2b-mobile"),
        ("qatconvert gemma4-demo -t onnx,", 2, "qatconvert gemma4-demo -t onnx,litert"),
        ("qatconvert x --gate mean", 1, "qatconvert x --gate mean_kld="),
        ("qatconvert verify ./f", 1, "qatconvert verify ./folder/"),
        ("qatconvert nothing-like-it", 1, "qatconvert nothing-like-it"),
    ],
)
def test_zsh_completes_what_may_follow(environment, tmp_path, line, tabs, completed):
    needs("zsh")
    (tmp_path / "folder").mkdir()
    completion(environment, "--install", "--shell", "zsh")
    with (tmp_path / ".zshrc").open("a") as startup:
        startup.write(ZSHRC)
    command = ["zsh", "-f", "-c", TERMINAL, "zsh", line + tabs * "\t"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={**environment, "TERM": "xterm"},
        cwd=tmp_path,
        check=True,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == (f"{completed}\n", "")


def test_own_names_and_checkpoints_of_the_directory_are_proposed(environment, checkpoint_factory, tmp_path):
    subprocess.run([PROGRAM, "models", "add", "house", "me/model"], env=environment, check=True)
    (tmp_path / "houses").symlink_to(checkpoint_factory("text"))
    (tmp_path / "housing").mkdir()
    assert ask(environment, ["hous"]) == ["plain,house", "plain,houses/"]
    assert ask(environment, ["models", "remove", "h"]) == ["plain,house"]


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (["./x"], "file"),
        (["inspect", "some/x"], "file"),
        (["validate", "x"], "file"),
        (["verify", "x"], "file"),
        (["gemma4-demo", "--text", "x"], "file"),
        (["gemma4-demo", "-o", "x"], "file"),
        (["gemma4-demo", "--log-file", "x"], "file"),
    ],
)
def test_files_are_left_to_the_shell(environment, words, kind):
    assert ask(environment, words) == [f"{kind},{words[-1]}"]


def test_zsh_and_fish_are_answered_in_their_own_protocols(environment):
    assert ask(environment, ["gemma4-demo", "-t", "gguf,o"], "zsh") == ["plain", "gguf,onnx", "_"]
    assert ask(environment, ["-t", "gguf,o"], "fish")[0].startswith("plain,gguf,onnx")


def test_nothing_is_said_where_something_is_broken(environment, tmp_path):
    modules = {"broken": "raise RuntimeError('no such tape')"}
    points = {"qatconvert.options": {"tape": "broken:x"}}
    site = write_distribution(tmp_path / "site", "broken", points, modules)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "models.json").write_text("{")
    broken = {**environment, "PYTHONPATH": str(site)}
    assert ask(broken, ["gemma4-demo", "-t", "gg"]) == ["plain,gguf"]
    assert ask(broken, ["gemma4-dem"]) == ["plain,gemma4-demo", "plain,gemma4-demo-mobile"]


@pytest.mark.parametrize("words", [["gem"], ["x", "--gate", "m"], ["x", "--runtime", ""], ["x", "--"]])
def test_it_is_quick_and_loads_nothing_heavy(environment, words):
    began = time.monotonic()
    ask(environment, words)
    assert time.monotonic() - began < PATIENCE
    script = (
        "import sys\nfrom converter.cli import main\ntry:\n    main([])\n"
        "finally:\n    print(sorted({'torch', 'transformers', 'huggingface_hub'} & set(sys.modules)))"
    )
    asked = {"COMP_WORDS": " ".join(["qatconvert", *words]), "COMP_CWORD": str(len(words))}
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**environment, **asked, "_QATCONVERT_COMPLETE": "bash_complete"},
        check=False,
    )
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("shell", "script", "startup"),
    [
        ("bash", ".local/share/qatconvert/completion.bash", ".bashrc"),
        ("zsh", ".local/share/qatconvert/completion.zsh", ".zshrc"),
        ("fish", ".config/fish/completions/qatconvert.fish", None),
    ],
)
def test_it_is_set_up_once_and_taken_away_again(environment, tmp_path, shell, script, startup):
    if startup:
        (tmp_path / "dotfiles").write_bytes(b"export A=1 # \xff, no line end")
        (tmp_path / "dotfiles").chmod(0o600)
        (tmp_path / startup).symlink_to("dotfiles")
    told = completion(environment, "--install", "--shell", shell)
    assert f"wrote {tmp_path / script}" in told
    assert f"to undo: qatconvert completion --uninstall --shell {shell}" in told
    assert "_QATCONVERT_COMPLETE" in (tmp_path / script).read_text()
    installed = startup and (tmp_path / startup).read_bytes()
    assert not startup or installed.startswith(b"export A=1 # \xff, no line end\n# >>> ")
    assert "is installed already" in completion(environment, "--install", "--shell", shell)
    assert not startup or (tmp_path / startup).read_bytes() == installed
    completion(environment, "--uninstall", "--shell", shell)
    assert not (tmp_path / script).exists()
    if startup:
        assert (tmp_path / startup).is_symlink()
        assert (tmp_path / startup).read_bytes() == b"export A=1 # \xff, no line end\n"
        assert stat.S_IMODE((tmp_path / "dotfiles").stat().st_mode) == 0o600
    assert "is not installed" in completion(environment, "--uninstall", "--shell", shell)


def test_a_file_of_the_users_own_is_never_replaced(environment, tmp_path):
    own = tmp_path / ".config" / "fish" / "completions" / "qatconvert.fish"
    own.parent.mkdir(parents=True)
    own.write_text("# mine\n")
    told = completion(environment, "--install", "--shell", "fish", status=1)
    assert "move it away first" in told
    completion(environment, "--uninstall", "--shell", "fish")
    assert own.read_text() == "# mine\n"


def test_a_block_that_was_cut_is_left_to_the_user(environment, tmp_path):
    (tmp_path / ".bashrc").write_text("# >>> qatconvert completion >>>\nexport B=2\n")
    assert "by hand" in completion(environment, "--uninstall", status=1)
    assert "export B=2" in (tmp_path / ".bashrc").read_text()


def test_an_unknown_shell_is_asked_for(environment):
    told = completion({**environment, "SHELL": "/bin/tcsh"}, "--install", status=2)
    assert "add --shell bash, --shell zsh, --shell fish" in told


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_what_is_printed_is_a_script_of_the_shell(environment, shell):
    script = completion(environment, "--shell", shell)
    assert f"{shell}_complete" in script
    assert ('string split --max 1 ","' in script) == (shell == "fish")
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, check=True)
