"""Run all tests in two processes, one a core: what `make test` does.

`pytest tests` runs the same tests in one process.
"""

import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
# Files that take longer than most, and about how many seconds. Where these are wrong, one process
# ends sooner than the other, and nothing else.
SECONDS = {
    "corpus/test_stories.py": 37, "deepseek/test_parts.py": 52, "fast/test_speed_up.py": 56,
    "lab/test_arena.py": 15, "lab/test_bill.py": 17, "lab/test_cloze.py": 54,
    "lab/test_foreign_tokenizer.py": 12, "lab/test_health.py": 90, "lab/test_page.py": 17,
    "lab/test_report.py": 14, "scale/test_distributed.py": 42, "scale/test_run.py": 80,
    "test_cost.py": 24, "test_course.py": 85, "test_curate.py": 26, "test_duplicates.py": 13,
    "test_generate.py": 14, "test_house.py": 40, "test_model.py": 35, "test_pipeline.py": 70,
    "test_tokenizer.py": 21, "test_train.py": 55}
OTHERS = 3


def halves(files):
    """Share files out in two lists, the longest first, each to whom has less to do."""
    shares = [0, []], [0, []]
    for file in sorted(files, key=lambda file: (-SECONDS.get(file, OTHERS), file)):
        share = min(shares)
        share[0] += SECONDS.get(file, OTHERS)
        share[1].append(file)
    return [files for _, files in shares]


def start(files, output):
    """Start pytest on one half. On one thread: a second would wait for the other half's core. In a
    session of its own: what Ctrl-C sends to a terminal's processes is handed on by us, once."""
    return subprocess.Popen(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
         *(str(HERE / file) for file in files)], cwd=HERE.parent, stdin=subprocess.DEVNULL,
        stdout=output, stderr=output, start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"})


def main():
    asked = []  # a signal may come while a process is being started: it is only noted
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: asked.append(True))
    files = [path.relative_to(HERE).as_posix() for path in HERE.rglob("test_*.py")]
    first, second = halves(files)
    with tempfile.TemporaryFile() as said:
        # The first half is seen as it goes on, the second when both have ended.
        running, told = [start(first, None), start(second, said)], 0
        while going := [process for process in running if process.poll() is None]:
            if len(asked) > told:
                told = len(asked)
                for process in going:
                    os.killpg(process.pid, signal.SIGINT)  # and what it has started
            time.sleep(0.1)
        said.seek(0)
        print(said.read().decode("utf-8", "replace"), end="")
    failed = [name for name, process in zip(("first", "second"), running) if process.returncode]
    print("tests: stopped" if asked else "tests: both halves passed" if not failed else
          f"tests: failures in the {' and the '.join(failed)} half, see above")
    return 130 if asked else bool(failed)


if __name__ == "__main__":
    sys.exit(main())
