"""Texts for tests of the corpus: good ones in several styles, and documents made of texts."""

GOOD = [
    "The old mill stands by the river, and nobody has heard it turn since the autumn when the "
    "miller moved to town with all that he had.",
    "河边的老磨坊已经很久没有转动了。自从那年秋天磨坊主搬到城里去，村里的人就再也没有听见过它的声音，"
    "只有孩子们还会到那里去玩。",
    "春眠不覺曉，處處聞啼鳥。夜來風雨聲，花落知多少。",
    'json.dumps(obj, *, skipkeys=False)\nSerialize "obj" to a JSON formatted "str".\n\nIf the '
    'argument is true then keys that are not of a basic type are skipped instead of raising.',
]


def documents_of(texts, source="s"):
    return [{"text": text, "source": source} for text in texts]
