"""What all commands share: flags, files written whole, locked runs, mistakes in one clear line.

    @dataclasses.dataclass(frozen=True)
    class Config:
        steps: int = setting(100, "how often the weights move", least=1)

    parser = Parser("nanoseek.train", "Train a model.")
    add_flags(parser, Config)                        # --steps, with its type, help and default
    config = from_flags(Config, parser.parse_args(argv))
    check_limits(config)                             # "steps is 0: it must be at least 1"
    with writing("clean.jsonl") as path: ...         # the file appears when the block ends well

A chapter that works as a single file imports this one in its main() only."""

import argparse
import contextlib
import dataclasses
import importlib
import math
import operator
import os
import pathlib
import signal
import sys
import typing


def setting(default, text, **limits):
    """Return a dataclass field with its help text, and its LIMITS (least=1) or its `choices`."""
    return dataclasses.field(default=default, metadata={"help": text, **limits})


COMMANDS = "corpus curate tokenizer data train generate evaluate cost".split()
LIMITS = {"least": ("at least", operator.ge), "above": ("above", operator.gt),
          "most": ("at most", operator.le), "below": ("below", operator.lt)}


def check_limits(config):
    """Raise ValueError for a field that is not finite or breaks its limits; None breaks none."""
    for field in dataclasses.fields(config):
        name, value, metadata = field.name, getattr(config, field.name), field.metadata
        if value not in metadata.get("choices", [value]):
            raise ValueError(f"unknown {name} {value!r}: choose {', '.join(metadata['choices'])}")
        if isinstance(value, (int, float)):
            limits = [(*LIMITS[kind], metadata[kind]) for kind in LIMITS if kind in metadata]
            if not math.isfinite(value) or not all(holds(value, n) for _, holds, n in limits):
                wanted = " and ".join(f"{words} {n}" for words, _, n in limits)
                raise ValueError(f"{name} is {value}: it must be {wanted or 'a finite number'}")


class Parser(argparse.ArgumentParser):
    """An argparse parser that answers a mistake in one line and exits with code 2."""
    def __init__(self, name, description="", **more):
        super().__init__(f"python -m {name}", description=description, allow_abbrev=False, **more)

    def error(self, message):
        self.exit(2, f"{self.prog}: {message} (see --help)\n")

    def _parse_optional(self, word):  # "-Once" is a value: flags begin with two dashes
        return super()._parse_optional(word) if word == "-h" or word[:2] == "--" else None


def boolean(text):
    for value, words in ((True, "true yes on 1"), (False, "false no off 0")):
        if text.lower() in words.split():
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")


def add_flags(parser, base, skip=()):
    """Add `--field value` for every field of `base`, a dataclass or an instance of one; the help
    shows its values as the defaults. Absent flags are None; a bare boolean flag means true."""
    for field in dataclasses.fields(base):
        kind, *_ = typing.get_args(field.type) or [field.type]  # int | None is read as an int
        if field.name in skip or dataclasses.is_dataclass(kind):
            continue
        how = {"type": boolean, "nargs": "?", "const": True} if kind is bool else {"type": kind}
        text, default = field.metadata.get("help", ""), getattr(base, field.name)
        if default not in (None, ""):
            text += f" (default {default})"
        parser.add_argument(f"--{field.name}", metavar=how["type"].__name__,
                            help=text.replace("%", "%%"), **how)


def from_flags(base, args):
    """Return `base` (a dataclass or an instance of one) with the flags that were given."""
    given = {field.name: getattr(args, field.name, None) for field in dataclasses.fields(base)}
    return dataclasses.replace(base() if isinstance(base, type) else base,
                               **{k: v for k, v in given.items() if v is not None})


def add_fast_flag(parser):
    """Add --fast: false runs the plain chapter, true its faster equal in nanoseek/fast."""
    parser.add_argument("--fast", type=boolean, nargs="?", const=True, default=True,
                        help="false: the chapter's plain code (default true)")


def hand_over(name, argv, function="main"):
    """Go on as another command of the package, such as "nanoseek.lab.arena"; return its code."""
    return getattr(importlib.import_module(name), function)(argv)


@contextlib.contextmanager
def writing(path):
    """Yield the path of a new file, which takes the place of `path` when the block ends well. So a
    file is whole or not there, and what stood there before is kept if anything fails."""
    check_output(path)
    new = pathlib.Path(f"{path}.writing")
    new.unlink(missing_ok=True)  # where a stranger left a link, its target would be written
    try:
        yield new
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


def say(text):
    """Print on stderr what a slow command is doing."""
    print(f"{text} …", file=sys.stderr, flush=True)


def tell(*words, **how):
    """Print, and go on with the work where the reader of a pipe (head, less) has gone."""
    try:
        print(*words, **how, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def check_output(output, *inputs):
    """Return the path of a file to be written, behind links, which stay. ValueError for a folder, a
    device, an input or what lies in one: two swapped arguments must not overwrite a corpus."""
    here = pathlib.Path(os.path.realpath(output))
    if not os.path.basename(output) or here.exists() and not here.is_file():
        raise ValueError(f"{output or 'the output'} is a folder or a device: name a file to write")
    for name in inputs:
        if pathlib.Path(os.path.realpath(os.path.expanduser(name))) in (here, *here.parents):
            raise ValueError(f"{output} would be read and written: name a file apart from {name}")
    return here


def lock(folder):
    """Return the open lock file of a run's folder; ValueError while another process holds it."""
    path = pathlib.Path(folder, ".lock")
    path.is_symlink() and path.unlink()  # a stranger's, whose target would be made
    file = path.open("a")
    with contextlib.suppress(ImportError, OSError):  # Windows, or a disk that knows no locks
        import fcntl
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another process works in {folder}: wait for it, or choose another "
                             "folder") from None
    return file


def lock_run_of(output):
    """Return the lock, to be kept until all is written, of the run whose folder a path is in."""
    folder = pathlib.Path(os.path.realpath(output)).parent
    folder = folder.parent if folder.name in ("tokens", "checkpoints") else folder
    return lock(folder) if (folder / ".lock").is_file() else None


def introduce(words):
    """Where the words of a `python -m` name a part that is no command, say so, and end."""
    with contextlib.suppress(ImportError, ValueError):  # there is none: Python says so
        if (name := words[words.index("-m") + 1])[:8] == "nanoseek" and name[9:] not in COMMANDS:
            about = importlib.import_module(name).__doc__ or "a folder"
            sys.stdout.reconfigure(errors="replace")
            print(f"{name}: {about.splitlines()[0]}")
            raise SystemExit(print(f"To run: python -m nanoseek.{'|'.join(COMMANDS)} --help"))


def run(main):
    """Call `main()`; answer bad input, or what is too large, in one line with exit code 2."""
    spec = sys.modules["__main__"].__spec__  # of python -m: nanoseek.train
    name = spec.name.removesuffix(".__main__") if spec else "nanoseek"
    for stream in ("stdout", "stderr"):  # None: closed (>&-); "?": what its code page lacks
        setattr(sys, stream, getattr(sys, stream) or open(os.devnull, "w"))
        getattr(sys, stream).reconfigure(errors="replace")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # until now: see __init__.py
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of a pipe (head, less) has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141  # as the shell reports it
    except KeyboardInterrupt:
        print(f"{name}: stopped", file=sys.stderr)
        code = 130
    except Exception as error:
        too_large = isinstance(error, (OverflowError, MemoryError, RecursionError)) or \
            "allocate memory" in str(error)  # torch's words, in a RuntimeError
        if not too_large and not isinstance(error, (ValueError, OSError)):
            raise
        said = " ".join(str(error).split()) or type(error).__name__
        print(f"{name}: {'too large for this machine: ' * too_large}{said}", file=sys.stderr)
        code = 2
    raise SystemExit(code)
