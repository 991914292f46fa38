"""The documentation of the Python that runs nanoseek: real text that every reader already has.

    python_docs()[0]["text"][:40]      # the first help topic, as `help("assert")` shows it
"""

import ast
import os
import pathlib
import sysconfig
import warnings

NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3",
               "turtledemo", "ensurepip", "pydoc_data", "__pycache__"}


def python_docs():
    """Return the documentation that came with this Python, as documents of source "python_docs".

    First the chapters of the language reference behind `help("if")`, then the docstrings of each
    module of the standard library, by name. Files are parsed, never imported.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some systems package it apart
        topics = {}
    texts = [topics[name] for name in sorted(topics)]
    texts += [_module_documentation(name, path.read_bytes()) for name, path in library_files()]
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


def _module_documentation(name, code):
    """Return the docstrings of a module's public names, each below its signature, or ""."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old escapes such as "\d" in library code
        try:
            tree = ast.parse(code)
        except (SyntaxError, ValueError):  # a file that is broken on purpose
            return ""
    documented = [(f"module {name}", tree), *_public(tree, "")]
    return "\n\n".join(f"{heading}\n{docstring}" for heading, node in documented
                       if (docstring := ast.get_docstring(node)))


def _public(parent, prefix):
    """Yield (heading, node) of the public functions and classes below a node of the syntax tree."""
    for node in parent.body:
        if getattr(node, "name", "_").startswith("_"):
            continue
        if isinstance(node, ast.ClassDef):
            yield f"class {prefix}{node.name}", node
            yield from _public(node, f"{prefix}{node.name}.")
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield f"{prefix}{node.name}({ast.unparse(node.args)})", node
