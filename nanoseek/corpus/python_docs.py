"""The documentation of the Python that runs nanoseek: real text that every reader already has.

    python_docs()[0]["text"][:40]      # the first help topic, as `help("assert")` shows it"""

import ast
import contextlib
import os
import pathlib
import sysconfig
import warnings

NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3",
               "turtledemo", "ensurepip", "pydoc_data", "__pycache__"}


def python_docs():
    """Return as documents what help("if") and the like show, then the docstrings by module."""
    topics = {}
    with contextlib.suppress(ImportError):  # some systems package it apart
        from pydoc_data.topics import topics
    texts = [topics[name] for name in sorted(topics)]
    texts += [_docstrings(name, path.read_bytes()) for name, path in library_files()]
    if not any(texts):
        raise ValueError("this Python came without documentation: use --python_docs false")
    return [{"text": text, "source": "python_docs"} for text in texts if text]


def library_files():
    """Return [(dotted module name, path)] of the Python files of the standard library, by name."""
    library, found = pathlib.Path(sysconfig.get_path("stdlib")), {}
    for folder, folders, _ in os.walk(library):
        folders[:] = [f for f in folders if f not in NOT_LIBRARY and not f.startswith("config-")]
        for path in pathlib.Path(folder).glob("*.py"):
            name = ".".join(path.relative_to(library).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return sorted(found.items())


def _docstrings(name, code):
    """Return the public docstrings of a module, which is not imported, below their signatures."""
    with warnings.catch_warnings(), contextlib.suppress(SyntaxError, ValueError):
        warnings.simplefilter("ignore")  # of old escapes such as "\d"; other files are broken
        documented = [(f"module {name}", tree := ast.parse(code)), *_public(tree, "")]
        return "\n\n".join(f"{heading}\n{docstring}" for heading, node in documented
                           if (docstring := ast.get_docstring(node)))


def _public(parent, prefix):
    """Yield (heading, node) of the public functions and classes below a node of the syntax tree."""
    for node in (n for n in parent.body if not getattr(n, "name", "_").startswith("_")):
        if isinstance(node, ast.ClassDef):
            yield f"class {prefix}{node.name}", node
            yield from _public(node, f"{prefix}{node.name}.")
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield f"{prefix}{node.name}({ast.unparse(node.args)})", node
