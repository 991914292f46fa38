"""One fixture hands each test file the module it tests, so that a student's copy can be graded:

    pytest tests/test_tokenizer.py --module path/to/my_tokenizer.py

runs the tests marked `contract` against that file and ends with how many of them pass. They hold
for any module with the names and promises of nanoseek's own; its command line, the formats of
other libraries and behaviour under damage are tested in nanoseek's own copy alone.
"""

import ast
import importlib
import importlib.util
import inspect
import os
import pathlib
import sys
import traceback

import hypothesis
import pytest

# Before torch is imported, here and in the processes that tests start: threads that spin for long
# while they wait make small models crawl on a busy machine.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

HERE = pathlib.Path(__file__).resolve().parent
# `pytest` alone, unlike `python -m pytest`, finds no nanoseek, and from elsewhere neither does.
if str(HERE.parent) not in sys.path:
    sys.path.insert(0, str(HERE.parent))

GRADED, TESTS = pytest.StashKey(), pytest.StashKey()  # the file, the tests it is graded by


def pytest_addoption(parser):
    parser.addoption("--module", default=None, metavar="FILE",
                     help="grade this file: run the contract tests on it instead of on nanoseek")


def pytest_configure(config):
    config.addinivalue_line("markers", "contract: the behaviour that a student's copy is graded on")
    if config.getoption("--module"):
        config.stash[GRADED] = _load_file(pathlib.Path(config.getoption("--module")).resolve())
        # The same file, graded twice, gets the same points; and what fails is not tried hundreds of
        # times more for a smaller example, which for a model half written takes half a minute.
        hypothesis.settings.register_profile(
            "grading", derandomize=True, database=None,
            phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate))
        hypothesis.settings.load_profile("grading")
        if config.option.tbstyle == "auto":
            config.option.tbstyle = "short"


def _load_file(path):
    if not path.is_file():
        raise pytest.UsageError(f"--module {path}: no such file")
    name = f"graded_{path.stem}"  # not a name of the library's, such as `random`
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None:
        raise pytest.UsageError(f"--module {path}: this is no Python file")
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded  # dataclasses look their module up while it executes
    try:
        spec.loader.exec_module(loaded)
    except (Exception, SystemExit) as error:
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__)
                 if f.filename == str(path)]
        where = f", line {lines[-1]}" if lines else ""
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise pytest.UsageError(f"--module {path}{where}: it does not import: {said}") from None
    return loaded


def pytest_collection_modifyitems(config, items):
    graded = config.stash.get(GRADED, None)
    if graded is None:
        return
    contract = [item for item in items if item.get_closest_marker("contract")]
    tested = {item.module for item in items}
    if len(tested) != 1 or not contract:
        files = sorted(path.name for path in HERE.rglob("test_*.py")
                       if "mark.contract" in path.read_text("utf-8"))
        raise pytest.UsageError(f"--module grades by one test file: name one of {', '.join(files)}")
    tests = tested.pop()
    missing = sorted(_used_names(tests, {item.originalname for item in contract}) - {*dir(graded)})
    if missing:
        raise pytest.UsageError(f"--module {graded.__file__} lacks {', '.join(missing)}: "
                                f"{pathlib.Path(tests.__file__).name} grades copies of "
                                f"{tests.MODULE}")
    config.hook.pytest_deselected(items=[item for item in items if item not in contract])
    items[:] = contract
    config.stash[TESTS] = {_test(item) for item in contract}


def _test(report):
    """Return the name of a test, without its case: each counts once, however many cases it has."""
    return report.nodeid.split("[")[0]


def _used_names(tests, graded):
    """Return the functions and classes of the module that these tests, or their helpers, name."""
    own = importlib.import_module(tests.MODULE)
    used = {node.attr for part in ast.parse(inspect.getsource(tests)).body
            if not getattr(part, "name", "").startswith("test_") or part.name in graded
            for node in ast.walk(part)
            if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "module"}
    return {name for name in used if callable(getattr(own, name, None))}


def pytest_unconfigure(config):
    if TESTS in config.stash:  # behind pytest's own last line
        reporter = config.pluginmanager.get_plugin("terminalreporter")
        passed = {_test(report) for report in reporter.stats.get("passed", [])}
        failed = {_test(report) for kind in ("failed", "error", "skipped")
                  for report in reporter.stats.get(kind, [])}
        reporter.write_line(f"{config.getoption('--module')}: {len(passed - failed)} of "
                            f"{len(config.stash[TESTS])} contract tests pass")


# Module scope, not function scope: hypothesis refuses function-scoped fixtures.
@pytest.fixture(scope="module")
def module(request):
    """The module that the test file names in MODULE, or the file given with --module."""
    graded = request.config.stash.get(GRADED, None)
    return graded or importlib.import_module(request.module.MODULE)


@pytest.fixture(scope="module")
def one_thread():
    """Models of the tests' size are faster on one thread, above all beside other work."""
    import torch  # not above: a graded copy of the tokenizer needs none
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
