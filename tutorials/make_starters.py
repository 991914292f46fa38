"""Write starter files for a course: a module of nanoseek with some bodies left to the student.

    python tutorials/make_starters.py homework                    # all seven
    python tutorials/make_starters.py homework tokenizer optim    # these two

Each starter is made from the module as it stands, so it cannot differ from it in anything but what
was taken out: signatures, docstrings, constants and the plumbing stay, the bodies named in BLANKS
become `raise NotImplementedError`, and the helpers in HELPERS, which would give them away, go. The
data files that a module reads and the licence are copied beside it. Existing files are not touched.
"""

import argparse
import ast
import pathlib
import shutil
import sys
import textwrap

ROOT = pathlib.Path(__file__).resolve().parents[1]

# What is left to the student, easiest first; where a docstring says too little, a hint.
BLANKS = {
    "stories": {
        "make_table": "", "Writer.choose": "draw one item, add its log2-probability to self.log2",
        "Writer.fill": "a slot → its word; what is chosen under a variable is remembered in state",
        "Writer.write": "", "log2_probability": ""},
    "duplicates": {
        "grams": "", "jaccard": "", "minhash_signatures": "per text: the upper 32 bits of its "
        "gram_hashes are the hashes; bin = hash % permutations; then fill_empty_bins",
        "fill_empty_bins": "", "estimate_jaccard": "", "choose_bands": "", "band_keys": "",
        "find_near_duplicates": ""},
    "tokenizer": {
        "Tokenizer.decode_bytes": "", "Tokenizer.decode_stream": "", "Tokenizer.split": "cut by "
        "self._compiled, one pattern after another; an empty match is no chunk",
        "learn_merges": "", "Tokenizer.merge": "begin with the chunk's bytes; as long as "
        "self.merges has a pair of neighbours, merge the one whose new id is smallest"},
    "data": {
        "TokenStream.read": "", "_Epochs.row": "read where most is unread and count it as served, on "
        "in another lane when that one ends; when all have ended, begin the next epoch",
        "Loader.next_batch": "", "Loader.state_dict": "", "Loader.load_state_dict": ""},
    "model": {
        "RMSNorm.forward": "x / sqrt(mean(x²) + eps) · weight, computed in fp32, returned as x was",
        "MLP.forward": "down_proj of silu(gate_proj(x)) times up_proj(x)",
        "DecoderLayer.forward": "attention, then the MLP; each sees a normalised copy of x and its "
        "result is added to x", "rotary_table": "", "rotate": "",
        "Attention.forward": "x (B, T, C) → (B, T, C): project, rotate q and k, store k and v in "
        "the cache if there is one, attend under the mask, project",
        "Attention.attend": "", "KVCache.append": "", "Transformer.mask": "",
        "Head.cross_entropy": "", "loss": ""},
    "optim": {
        "schedule_factor": "", "parse_ramp": "", "ramp_value": "", "LossScale.update": "",
        "newton_schulz": "", "Muon._momentum": "",
        "Muon.step": "momentum, newton_schulz, weight decay (1 - lr · weight_decay), then a step "
        "of lr · 0.2 · sqrt(the longer side) along the update"},
    "cost": {
        "parameters": "", "flops_per_token": "", "memory": "", "price_tag": "", "cost": ""},
}
# What only those bodies use.
HELPERS = {
    "duplicates": ["candidate_pairs", "worth_checking", "find_root"],
    "tokenizer": ["merge_pair"],
}
WHERE = {"stories": "corpus"}  # the room of a module that is no chapter
BESIDE = {"stories": ["stories_en.txt", "stories_zh.txt"], "cost": ["cost_tables.json"]}


def path_of(file):
    """Return the path of a module of nanoseek, or of a data file that travels with one."""
    rooms = [WHERE.get(name, "") for name in BLANKS if file in (f"{name}.py", *BESIDE.get(name, []))]
    return ROOT / "nanoseek" / rooms[0] / file


def definitions(tree, prefix=""):
    """Yield (qualified name, node) of every function and class."""
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from definitions(node, f"{prefix}{node.name}.")


def starter(source, blanks, helpers=()):
    """Return the source with the bodies of `blanks` ({name: hint}) emptied, `helpers` taken out.

    Raises ValueError for a name that the source does not define.
    """
    nodes, lines = dict(definitions(ast.parse(source))), source.splitlines()
    unknown = ({*blanks} | {*helpers}) - nodes.keys()
    if unknown:
        raise ValueError(f"the module defines no {', '.join(sorted(unknown))}")
    edits = []  # (first line, last line, what takes their place), lines counted from 0
    for name, hint in blanks.items():
        node = nodes[name]
        first, indent = node.body[0], " " * node.body[0].col_offset
        begin = first.lineno - 1 if ast.get_docstring(node) is None else first.end_lineno
        raising = [*(f"{indent}# {row}" for row in textwrap.wrap(hint, 88)),
                   f'{indent}raise NotImplementedError("{name}")']
        edits.append((begin, node.end_lineno, raising))
    for name in helpers:
        node = nodes[name]
        begin, end = min(n.lineno for n in [node, *node.decorator_list]) - 1, node.end_lineno
        while end < len(lines) and not lines[end].strip():
            end += 1
        edits.append((begin, end, []))
    for begin, end, instead in sorted(edits, reverse=True):
        lines[begin:end] = instead
    return "\n".join(lines) + "\n"


def make(name):
    """Return the starter of a module of nanoseek as text."""
    source = path_of(f"{name}.py").read_text("utf-8")
    head = (f"# A starter made from nanoseek/{name}.py: write the {len(BLANKS[name])} bodies that\n"
            "# raise NotImplementedError. MIT licence: keep the file LICENSE beside this one.\n")
    return head + starter(source, BLANKS[name], HELPERS.get(name, ()))


def main(argv=None):
    parser = argparse.ArgumentParser(description="Write starter files into a folder.")
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("modules", nargs="*", help=f"of {', '.join(BLANKS)}; all unless given")
    args = parser.parse_args(argv)
    for name in args.modules:
        if name not in BLANKS:
            parser.exit(2, f"there is no starter of {name}: choose {', '.join(BLANKS)}\n")
    texts = {f"{name}.py": make(name) for name in args.modules or BLANKS}
    there = [name for name in texts if (args.folder / name).exists()]
    if there:
        parser.exit(2, f"{args.folder / there[0]} exists, and may be somebody's work: name another "
                       "folder\n")
    args.folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (args.folder / name).write_text(text, encoding="utf-8")
        for file in BESIDE.get(pathlib.Path(name).stem, []):
            shutil.copy(path_of(file), args.folder)
        print(args.folder / name)
    shutil.copy(ROOT / "LICENSE", args.folder)


if __name__ == "__main__":
    sys.exit(main())
