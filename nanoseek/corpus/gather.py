"""Put a raw corpus together: stories, Python's documentation, a text of the reader's own, dirt.

    documents = gather(CorpusConfig(stories=1000, dirt=0.3))
"""

import dataclasses

from nanoseek import cli
from nanoseek.corpus.dirt import plant_dirt
from nanoseek.corpus.own_text import read_text
from nanoseek.corpus.python_docs import python_docs
from nanoseek.corpus.stories import stories


@dataclasses.dataclass(frozen=True)
class CorpusConfig:
    """What to gather; without a text of your own, the default corpus."""

    stories: int = cli.setting(
        None, "how many stories, half in each language; 40000 unless --text", least=0)
    python_docs: bool = cli.setting(None, "add this Python's documentation; true unless --text")
    text: str = cli.setting("", "a text file, folder, .jsonl or http(s) address of your own")
    sha256: str = cli.setting("", "the sha256 that the bytes of --text must have")
    dirt: float = cli.setting(0.0, "share of dirty documents to plant", least=0, below=1)
    seed: int = cli.setting(0, "which stories, and which dirt")

    def __post_init__(self):
        cli.check_limits(self)
        if self.sha256 and not self.text:
            raise ValueError("--sha256 belongs to a --text")


def gather(config):
    """Return the raw documents that a CorpusConfig asks for."""
    documents = _gather(config)
    return plant_dirt(list(documents), config.seed, config.dirt)[0] if config.dirt else documents


def _gather(config):
    count = config.stories if config.stories is not None else 0 if config.text else 40000
    for language, share in (("en", count // 2), ("zh", count - count // 2)):
        for story in stories(language, share, config.seed):
            yield {"text": story.text, "source": story.source,
                   "log2_probability": story.log2_probability}
    if config.python_docs or (config.python_docs is None and not config.text):
        yield from python_docs()
    if config.text:
        yield from read_text(config.text, config.sha256 or None)
