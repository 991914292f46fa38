"""One fixture hands each test file the module it tests, so that a student's copy can be graded:

    pytest tests/test_tokenizer.py --module my_tokenizer.py              # every test
    pytest tests/test_tokenizer.py --module my_tokenizer.py -m contract  # the graded subset
"""

import importlib
import importlib.util
import os
import pathlib
import sys

import pytest

# Before torch is imported, here and in the processes that tests start: threads that spin while
# they wait make small models crawl on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def pytest_addoption(parser):
    parser.addoption("--module", default=None, metavar="FILE",
                     help="test this file instead of the module of nanoseek")


def pytest_configure(config):
    config.addinivalue_line("markers", "contract: the behaviour that a student's copy is graded on")


def pytest_collection_modifyitems(config, items):
    tested = {item.module.MODULE for item in items if hasattr(item.module, "MODULE")}
    if config.getoption("--module") and len(tested) != 1:
        raise pytest.UsageError("--module grades one test file: name just that file")


def _load_file(path):
    path = pathlib.Path(path).resolve()
    if not path.is_file():
        raise pytest.UsageError(f"--module {path}: no such file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = loaded  # dataclasses look their module up while it executes
    spec.loader.exec_module(loaded)
    return loaded


# Module scope, not function scope: hypothesis refuses function-scoped fixtures.
@pytest.fixture(scope="module")
def module(request):
    """The module that the test file names in MODULE, or the file given with --module."""
    path = request.config.getoption("--module")
    return _load_file(path) if path else importlib.import_module(request.module.MODULE)
