"""One process in a run's folder at a time: no command changes what a run is training on."""

import contextlib
import os
import pathlib


def lock(folder):
    """Return the open lock file of a run's folder; ValueError while another process holds it."""
    file = (pathlib.Path(folder) / ".lock").open("a")
    with contextlib.suppress(ImportError, OSError):  # Windows, or a disk that knows no locks
        import fcntl
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another process works in {folder}: wait for it, or choose another "
                             "folder") from None
    return file


def lock_run_of(output):
    """Return the lock, to be kept while an output is written, of the run in its folder, or None."""
    folder = pathlib.Path(os.path.realpath(output)).parent
    return lock(folder) if (folder / ".lock").is_file() else None
