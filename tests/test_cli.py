"""cli.py: flags from a dataclass, and every mistake in one line."""

import dataclasses
import os
import pathlib
import subprocess
import sys

import pytest

from nanoseek import cli


@dataclasses.dataclass(frozen=True)
class Settings:
    count: int = 3
    rate: float = 0.5
    name: str = dataclasses.field(default="a", metadata={"help": "100% of a name"})
    fast: bool = False
    limit: int | None = None


def parse(*arguments, base=Settings):
    parser = cli.Parser("nanoseek.test", "A test.")
    cli.add_flags(parser, Settings)
    return cli.from_flags(base, parser.parse_args(arguments))


def test_flags_become_fields_of_their_type():
    assert parse() == Settings()
    assert parse("--count", "7", "--rate", "1e-3", "--name", "b", "--fast", "--limit", "9") == \
        Settings(7, 1e-3, "b", True, 9)
    assert parse("--fast", "false", base=Settings(fast=True)) == Settings(fast=False)
    assert parse("--name", "-Once upon", "--count", "-2") == Settings(-2, name="-Once upon")


def test_the_help_of_an_instance_shows_its_values(capsys):
    parser = cli.Parser("nanoseek.test", "A test.")
    cli.add_flags(parser, Settings(count=11, limit=4))
    parser.print_help()
    shown = capsys.readouterr().out
    assert "(default 11)" in shown and "(default 4)" in shown and "(default 0.5)" in shown
    assert cli.from_flags(Settings(count=11), parser.parse_args([])) == Settings(count=11)


def test_absent_flags_keep_the_values_of_the_base():
    base = Settings(count=11, name="kept")
    assert parse("--rate", "2", base=base) == dataclasses.replace(base, rate=2.0)


def test_help_lists_every_flag_with_its_default(capsys):
    with pytest.raises(SystemExit) as stop:
        parse("--help")
    shown = capsys.readouterr().out
    assert stop.value.code == 0
    assert all(f"--{field.name}" in shown for field in dataclasses.fields(Settings))
    assert "100% of a name (default a)" in shown


@pytest.mark.parametrize("arguments", [["--cuont", "3"], ["--count", "three"], ["--count"],
                                       ["--fast", "maybe"], ["--coun", "3"]])
def test_mistakes_are_one_line_and_code_2(capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        parse(*arguments)
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("error, code", [(ValueError("two\nlines"), 2), (OSError("disk"), 2),
                                         (KeyboardInterrupt(), 130)])
def test_run_turns_errors_into_one_line(capsys, error, code):
    def main():
        raise error
    with pytest.raises(SystemExit) as stop:
        cli.run(main)
    assert stop.value.code == code
    assert capsys.readouterr().err.count("\n") == 1


def test_run_lets_programming_errors_through_and_passes_codes_on():
    with pytest.raises(SystemExit) as stop:
        cli.run(lambda: 3)
    assert stop.value.code == 3

    def bug():
        raise TypeError("a bug")
    with pytest.raises(TypeError):
        cli.run(bug)


@pytest.mark.parametrize("error, said", [
    (OverflowError("int too large"), "too large for this machine: int too large"),
    (MemoryError(), "too large for this machine: MemoryError"),
    (RuntimeError("can't allocate memory: 9 bytes"), "can't allocate memory"),
    (RecursionError("too deep"), "too deep")])
def test_what_is_too_large_is_one_line(capsys, error, said):
    def main():
        raise error
    with pytest.raises(SystemExit) as stop:
        cli.run(main)
    captured = capsys.readouterr()
    assert stop.value.code == 2 and said in captured.err and captured.err.count("\n") == 1


def test_other_errors_keep_their_traceback():
    def main():
        raise RuntimeError("a bug of ours")
    with pytest.raises(RuntimeError, match="a bug of ours"):
        cli.run(main)


def test_an_output_is_neither_a_folder_nor_an_input(tmp_path):
    (tmp_path / "in.txt").write_text("text")
    cli.check_output(tmp_path / "out.jsonl", tmp_path / "in.txt", "https://example.org/in.txt")
    for output, given, message in (
            (tmp_path, "in.txt", "is a folder"), ("", "in.txt", "is a folder"),
            (tmp_path / "in.txt", tmp_path / "." / "in.txt", "read and written"),
            (tmp_path / "out.jsonl", tmp_path, "name a file apart from")):
        with pytest.raises(ValueError, match=message):
            cli.check_output(output, given)


def test_a_device_and_a_link_stay_and_a_link_of_a_stranger_is_not_followed(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # as a device: there, and no file
    for way in (cli.check_output, lambda path: cli.writing(path).__enter__()):
        with pytest.raises(ValueError, match="a device"):
            way(tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()
    (tmp_path / "victim").write_text("theirs")
    (tmp_path / "log.writing").symlink_to("victim")
    with cli.writing(tmp_path / "log") as new:
        new.write_text("ours")
    assert (tmp_path / "victim").read_text() == "theirs" and not (tmp_path / "log").is_symlink()
    (tmp_path / "link").symlink_to("log")
    with cli.writing(cli.check_output(tmp_path / "link")) as new:
        new.write_text("newer")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "log").read_text() == "newer"


def in_a_process(code, shell='exec "$0" -c "$CODE"', stdout=subprocess.PIPE, **environment):
    """Run a main() under cli.run in a process of its own; return (exit code, stdout, stderr)."""
    code = f"from nanoseek import cli\ndef main():\n {code}\ncli.run(main)"
    done = subprocess.run(["sh", "-c", shell, sys.executable], text=True, stdout=stdout,
                          stderr=subprocess.PIPE, cwd=pathlib.Path(__file__).parent.parent,
                          env={**os.environ, "CODE": code, **environment})
    return done.returncode, done.stdout, done.stderr


def test_what_cannot_be_shown_ends_no_work():
    # A code page that lacks a character, a closed stdout, a reader that has gone.
    assert in_a_process("print('a小b')", PYTHONUTF8="0", PYTHONIOENCODING="cp1252") == (
        0, "a?b\n", "")
    assert in_a_process("print('lost'); return 3", 'exec "$0" -c "$CODE" >&-') == (3, "", "")
    reader, gone = os.pipe()
    os.close(reader)
    assert in_a_process("cli.tell('lost'); cli.say('done')", stdout=gone) == (0, None, "done …\n")
    assert in_a_process("print('x' * 99999); cli.say('done')", stdout=gone)[0] == 141
    os.close(gone)


COMMANDS = "corpus curate tokenizer data train generate evaluate cost".split()
PACKAGE = pathlib.Path(cli.__file__).parent
PARTS = sorted({".".join(("nanoseek", *path.relative_to(PACKAGE).with_suffix("").parts))
                .removesuffix(".__init__") for path in PACKAGE.rglob("*.py")
                if '__name__ == "__main__"' not in path.read_text("utf-8")}
               - {f"nanoseek.{name}" for name in COMMANDS})


def test_python_m_of_any_part_says_what_it_is_and_what_there_is_to_run(capsys):
    assert {"nanoseek", "nanoseek.model", "nanoseek.lab", "nanoseek.lab.arena"} <= {*PARTS}
    for name in PARTS:
        with pytest.raises(SystemExit) as stop:
            cli.introduce(["python", "-u", "-m", name, "--help"])
        said = capsys.readouterr().out
        assert stop.value.code is None and said.startswith(f"{name}: ")
        assert "|".join(COMMANDS) in said
    for name in (*(f"nanoseek.{name}" for name in COMMANDS), "nanoseek.none", "another"):
        cli.introduce(["python", "-m", name, "nanoseek.model"])  # the rest are arguments
    done = subprocess.run([sys.executable, "-m", "nanoseek.optim"], capture_output=True, text=True,
                          cwd=PACKAGE.parent, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and done.stdout.startswith("nanoseek.optim: Optimizers")
