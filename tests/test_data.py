"""data.py: every token exactly once, shares met, streams that resume, damage detected."""

import contextlib
import hashlib
import itertools
import json
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanoseek.lab.stages import encode as encode_command
from nanoseek.model import ModelConfig, Transformer
from nanoseek.tokenizer import Tokenizer

try:
    import resource
except ImportError:  # Windows
    resource = None

MODULE = "nanoseek.data"
EOT = 256


def encode(text):
    return list(text.encode("utf-8"))


def documents(lengths, source="a", split="train", first=0):
    """Return documents of `length` distinct-looking characters each."""
    return [{"text": chr(65 + (first + i) % 60) * n, "source": source, "split": split}
            for i, n in enumerate(lengths)]


def numbered(count, source="a", longest=30):
    """Return encode and documents whose every token is unique in the corpus."""
    rng = np.random.default_rng(0)
    sizes, start, found = rng.integers(1, longest, count), 0, []
    for size in sizes:
        found.append({"text": f"{start} {start + size}", "source": source})
        start += int(size)
    return lambda text: list(range(*map(int, text.split()))), found, start


@pytest.fixture(scope="module", autouse=True)
def small_pieces_and_lanes(module):
    """A small corpus has many of both."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PIECE", 500, raising=False)
        patch.setattr(module, "LANE_TOKENS", 200, raising=False)
        yield


@pytest.fixture(scope="module")
def counted(module, tmp_path_factory):
    """A folder whose every token is the number of its place, and the document of each token."""
    number, found, total = numbered(12, longest=2500)
    folder = tmp_path_factory.mktemp("counted") / "tokens"
    module.write_shards(found, number, folder)
    owner = np.concatenate([np.full(len(number(d["text"])), i) for i, d in enumerate(found)])
    return folder, total, owner


SIZES = st.lists(st.tuples(st.integers(1, 6), st.integers(90, 700)), min_size=1, max_size=9)


@pytest.mark.contract
@settings(max_examples=20, deadline=None)
@given(sizes=SIZES, seed=st.integers(0, 5))
def test_every_token_is_served_exactly_once_an_epoch(module, counted, sizes, seed):
    folder, total, owner = counted
    loader = module.Loader(folder, 1, 1, seed=seed)
    counts, served = np.zeros(total, int), 0
    for size in itertools.cycle(sizes):
        inputs, targets, document_ids = loader.next_batch(*size)
        assert inputs.shape == targets.shape == document_ids.shape == size
        assert torch.equal(targets, (inputs + 1) % total)
        counts += np.bincount(inputs.flatten(), minlength=total)
        served += inputs.numel()
        assert set(counts) <= {served // total, served // total + 1}
        together = document_ids[:, 1:] == document_ids[:, :-1]
        assert torch.equal(inputs[:, 1:][together], inputs[:, :-1][together] + 1)
        assert (owner[inputs[:, 1:][together]] == owner[inputs[:, :-1][together]]).all()
        if served > 2 * total:
            break


@pytest.mark.contract
def test_long_documents_are_cut_shuffled_and_cut_elsewhere_in_the_next_epoch(
        module, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LANES", 1, raising=False)
    total = 40 * module.PIECE
    module.write_shards([{"text": "one", "source": "a"}], lambda text: np.arange(total),
                        tmp_path / "t")
    loader = module.Loader(tmp_path / "t", 1, total)
    for _ in range(2):
        epoch = loader.next_batch()
        cuts = (epoch.document_ids[0].diff() != 0).nonzero().flatten() + 1
        assert 40 <= len(cuts) + 1 <= 41 and cuts.diff().max() <= module.PIECE
        starts = epoch.inputs[0][cuts]
        assert not torch.equal(starts, starts.sort().values)
    again = module.Loader(tmp_path / "t", 1, total).next_batch().inputs[0]
    assert set(starts.tolist()) != set(again[cuts].tolist())


@pytest.mark.contract
def test_the_rows_of_a_batch_lie_far_apart(module, tmp_path):
    module.write_shards([{"text": "one", "source": "a"}], lambda text: np.arange(20_000),
                        tmp_path / "t")
    inputs = module.Loader(tmp_path / "t", 64, 20).next_batch().inputs
    assert len(set((inputs[:, 0] // 500).tolist())) > 20  # of 40 pieces


@pytest.mark.contract
def test_rows_keep_documents_whole_and_marked(module, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LANES", 1, raising=False)  # where one ends, a document is cut
    number, found, total = numbered(40)
    module.write_shards(found, number, tmp_path / "t", eot_id=100_000)
    loader = module.Loader(tmp_path / "t", 4, 64)
    for _ in range(20):
        inputs, targets, document_ids = loader.next_batch()
        assert inputs.dtype == targets.dtype == document_ids.dtype == torch.int64
        assert torch.equal(inputs[:, 1:], targets[:, :-1])  # a short document ends with eot
        # A document's ids count up, so a new one begins exactly where eot stands.
        begins = document_ids[:, 1:] != document_ids[:, :-1]
        assert torch.equal(begins, inputs[:, 1:] == 100_000)
        inside = ~begins & (inputs[:, :-1] != 100_000)
        assert torch.equal(inputs[:, 1:][inside], inputs[:, :-1][inside] + 1)


def test_with_masking_on_a_row_computes_what_its_documents_compute_alone(module, mixed):
    inputs, _, document_ids = module.Loader(mixed, 2, 64).next_batch()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Transformer(ModelConfig(vocab_size=257, hidden_size=16, intermediate_size=16,
                                        num_hidden_layers=2, num_attention_heads=2,
                                        num_key_value_heads=1, max_position_embeddings=64))
    with torch.no_grad():
        together = model(inputs, document_ids)
        for row, pieces, logits in zip(inputs, document_ids, together):
            assert len(pieces.unique()) > 1
            alone = [model(row[None, pieces == piece])[0] for piece in pieces.unique()]
            torch.testing.assert_close(logits, torch.cat(alone), rtol=1e-4, atol=1e-5)


@pytest.mark.contract
@settings(max_examples=20, deadline=None)
@given(sizes=SIZES, stop=st.integers(0, 8), world=st.sampled_from([1, 2, 3]))
def test_a_resumed_stream_goes_on_exactly(module, mixed, sizes, stop, world):
    """Stopped at any step of any ramp; gone on with on another number of ranks."""
    sizes = [(rows * world, length % 90 + 1) for rows, length in sizes]  # rows below 90 tokens
    whole = module.Loader(mixed, 1, 16, seed=3)
    expected = [whole.next_batch(*size).inputs for size in sizes]
    first = module.Loader(mixed, 6, 16, seed=3)
    for size in sizes[:stop]:
        first.next_batch(*size)
    ranks = [module.Loader(mixed, 6, 16, seed=3, rank=rank, world=world) for rank in range(world)]
    for rank in ranks:
        rank.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for size, batch in list(zip(sizes, expected))[stop:]:
        parts = [rank.next_batch(*size).inputs for rank in ranks]  # the ranks' rows interleave
        assert torch.equal(torch.stack(parts, dim=1).flatten(0, 1), batch)
    assert all(rank.state_dict() == whole.state_dict() for rank in ranks)


@pytest.mark.contract
def test_neither_stream_nor_state_depends_on_the_batch_size(module, mixed):
    def walk(batch_size):
        loader = module.Loader(mixed, batch_size, 16, seed=3)
        rows = torch.cat([loader.next_batch().inputs for _ in range(60 // batch_size)])
        return rows.tolist(), loader.state_dict()
    assert walk(1) == walk(2) == walk(6) == walk(60)


@pytest.fixture(scope="module")
def mixed(module, tmp_path_factory):
    """Two sources, three tokens of "a" for one of "b"."""
    folder = tmp_path_factory.mktemp("mixed") / "tokens"
    module.write_shards(documents([30] * 30, "a") + documents([30] * 10, "b", first=30)
                        + documents([20] * 2, "a", "held_out"), encode, folder,
                        vocab_size=257, eot_id=EOT)
    return folder


@pytest.mark.contract
@pytest.mark.parametrize("weights", [None, {"a": 0.5, "b": 0.5}, {"a": 0.1, "b": 0.9}])
def test_shares_of_the_sources_match_their_weights(module, mixed, weights):
    loader = module.Loader(mixed, 2, 16, weights)
    for step in range(100):
        loader.next_batch(row_length=16 + step // 10)
        served = {name: epochs.served for name, epochs in loader.sources.items()}
        for source, share in (weights or {"a": 0.75, "b": 0.25}).items():
            assert abs(served[source] - share * sum(served.values())) <= 16 + step // 10


@pytest.mark.contract
def test_epochs_and_seeds_differ_and_repeat(module, mixed):
    def rows(seed, count=70):
        loader = module.Loader(mixed, 1, 16, {"a": 1.0}, seed)
        return [tuple(loader.next_batch().inputs[0].tolist()) for _ in range(count)]
    one = rows(0)
    assert one == rows(0) and one != rows(1)
    assert one[:58] != one[58:]  # 930 tokens: an epoch ends within row 58


@pytest.mark.contract
def test_the_manifest_counts_and_the_splits_stay_apart(module, tmp_path):
    found = [{"text": "héllo", "source": "a", "log2_probability": -10.0},
             {"text": "wörld!", "source": "a", "log2_probability": -12.5},
             {"text": "held", "source": "a", "split": "held_out", "log2_probability": -3.0},
             {"text": "plain", "source": "b/日本 x"}]
    manifest = module.write_shards(found, encode, tmp_path / "t", 257, EOT)
    train = manifest["splits"]["train"]
    assert train["a"]["documents"] == 2 and train["a"]["bytes"] == 13
    assert train["a"]["tokens"] == 15 and train["a"]["log2_probability"] == -22.5
    assert manifest["splits"]["held_out"]["a"]["log2_probability"] == -3.0
    assert train["b/日本 x"]["log2_probability"] is None
    assert manifest == module.read_manifest(tmp_path / "t")
    stream = module.TokenStream(tmp_path / "t", train["a"], manifest["dtype"])
    assert stream.document(1).tolist() == [EOT, *"wörld!".encode()]


def test_encoding_in_batches_writes_the_same(module, tmp_path, monkeypatch):
    number, found, _ = numbered(25)
    monkeypatch.setattr(module, "BATCH_DOCUMENTS", 4)
    one = module.write_shards(found, number, tmp_path / "one")
    many = module.write_shards(found, lambda texts: [number(text) for text in texts],
                               tmp_path / "many", batched=True)
    assert one == many  # the manifest holds the sha256 of every shard


@pytest.mark.contract
@pytest.mark.parametrize("size, dtype", [(65536, "uint16"), (65537, "uint32")])
def test_ids_are_stored_as_small_as_the_vocabulary_allows(module, tmp_path, size, dtype):
    manifest = module.write_shards([{"text": "x", "source": "a"}], lambda text: [7, size - 1],
                                   tmp_path / "t", size)
    entry = manifest["splits"]["train"]["a"]
    assert manifest["dtype"] == dtype
    assert (tmp_path / "t" / entry["shards"][0]["file"]).stat().st_size == 2 * int(dtype[4:]) // 8
    assert module.TokenStream(tmp_path / "t", entry, dtype).document(0).tolist() == [7, size - 1]


def test_several_shards_of_a_source_as_older_versions_wrote_them_read_as_one(module, tmp_path):
    number, found, total = numbered(50)
    folder = tmp_path / "t"
    manifest = module.write_shards(found, number, folder)
    entry = manifest["splits"]["train"]["a"]
    data = (folder / entry["shards"][0]["file"]).read_bytes()
    parts = [data[:400], data[400:404], data[404:]]
    entry["shards"] = [{"file": f"part-{n}", "tokens": len(part) // 4,
                        "sha256": hashlib.sha256(part).hexdigest()} for n, part in enumerate(parts)]
    for n, part in enumerate(parts):
        (folder / f"part-{n}").write_bytes(part)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    stream = module.TokenStream(folder, entry, manifest["dtype"])
    read = np.concatenate([stream.document(i) for i in range(len(stream.lengths))])
    assert read.tolist() == list(range(total))
    whole = module.Loader(folder, 1, 64).next_batch()
    assert torch.equal(whole.targets, (whole.inputs + 1) % total)


def test_damage_is_named(module, tmp_path):
    folder = tmp_path / "t"
    manifest = module.write_shards(documents([40] * 5), encode, folder, 257, EOT)
    shard = folder / manifest["splits"]["train"]["a"]["shards"][0]["file"]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:20] + b"\xff" + whole[21:])
    with pytest.raises(ValueError, match="missing, cut short or altered"):
        module.Loader(folder, 1, 8)
    module.Loader(folder, 1, 8, verify=False)
    shard.write_bytes(whole[:-2])
    with pytest.raises(ValueError, match="cut short"):
        module.Loader(folder, 1, 8, verify=False)
    shard.write_bytes(whole)
    bounds = folder / manifest["splits"]["train"]["a"]["lengths"]
    whole = bounds.read_bytes()
    bounds.write_bytes(whole[:-16] + b"\x28" + whole[-15:-8] + b"\x2a" + whole[-7:])  # same sum
    with pytest.raises(ValueError, match="lengths.npy is missing, cut short or altered"):
        module.Loader(folder, 1, 8, verify=False)
    bounds.unlink()
    with pytest.raises(ValueError, match="lengths.npy is missing"):
        module.Loader(folder, 1, 8)
    (folder / "manifest.json").write_text(json.dumps(manifest | {"format": 1}))
    with pytest.raises(ValueError, match="build the tokens .*older nanoseek"):
        module.Loader(folder, 1, 8)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match="no manifest.json that can be read"):
        module.Loader(folder, 1, 8)
    (folder / "manifest.json").unlink()
    with pytest.raises(ValueError, match="no manifest.json"):
        module.Loader(folder, 1, 8)


def test_a_build_that_fails_leaves_the_old_one(module, tmp_path):
    folder = tmp_path / "t"
    before = module.write_shards(documents([40] * 5), encode, folder, 257, EOT)

    def breaks():
        yield from documents([10] * 3)
        raise OSError("disk full")
    with pytest.raises(OSError, match="disk full"):
        module.write_shards(breaks(), encode, folder, 257, EOT)
    assert module.read_manifest(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["t"]


@contextlib.contextmanager
def disk_of(size):
    """No file can grow beyond `size` bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.skipif(resource is None, reason="Windows has no limit on files to try it with")
def test_a_full_disk_leaves_the_old_tokens_or_none(module, tmp_path):
    folder = tmp_path / "t"
    def fails():
        with disk_of(5000), pytest.raises(OSError):
            module.write_shards(documents([40] * 5000), encode, folder, 257)
    fails()
    assert not list(tmp_path.iterdir())
    before = module.write_shards(documents([40] * 5), encode, folder, 257)
    fails()
    assert [path.name for path in tmp_path.iterdir()] == ["t"]
    assert module.read_manifest(folder) == before


def test_a_source_of_empty_documents_is_left_out(module, tmp_path):
    found = documents([9]) + documents([0], "e", "held_out") + documents([5], "b", "held_out")
    module.write_shards(found, encode, tmp_path / "t", 257, EOT)
    assert [*module.read_manifest(tmp_path / "t")["splits"]["held_out"]] == ["b"]


@pytest.mark.parametrize("dtype", ["banana", "float16", None, ["uint16"]])
def test_ids_of_another_kind_are_refused(module, tmp_path, dtype):
    manifest = module.write_shards(documents([9]), encode, tmp_path / "t", 257)
    (tmp_path / "t" / "manifest.json").write_text(json.dumps({**manifest, "dtype": dtype}))
    with pytest.raises(ValueError, match="no manifest.json that can be read"):
        module.Loader(tmp_path / "t", 1, 4)


@pytest.mark.contract
@pytest.mark.parametrize("eot_id", [None, EOT])
def test_empty_documents_are_no_trouble(module, tmp_path, eot_id):
    module.write_shards(documents([0, 9, 0, 0, 5, 0]), encode, tmp_path / "t", 257, eot_id)
    loader = module.Loader(tmp_path / "t", 1, 7)
    total = 14 if eot_id is None else 20
    served = torch.cat([loader.next_batch().inputs[0] for _ in range(total)])
    assert (served == EOT).sum() == (0 if eot_id is None else 6 * 7)
    assert loader.sources["a"].served == 7 * total


def test_a_document_of_a_hundred_megabytes(module, tmp_path):
    module.write_shards([{"text": "0123456789" * 10_000_000, "source": "a"}],
                        lambda text: np.frombuffer(text.encode(), np.uint8) - 48,
                        tmp_path / "t", 10)
    inputs, targets, document_ids = module.Loader(tmp_path / "t", 8, 256).next_batch()
    assert torch.equal(targets, (inputs + 1) % 10)
    together = document_ids[:, 1:] == document_ids[:, :-1]
    assert torch.equal(inputs[:, 1:][together], targets[:, :-1][together])


def test_the_command_says_what_it_does_and_how_the_tokens_are_shared_out(module, tmp_path, capsys):
    texts = [f"line {n} of the text\n" for n in range(10_000)]
    (tmp_path / "clean.jsonl").write_text("".join(
        json.dumps({"text": text, "source": "web", "split": "train"}) + "\n" for text in texts))
    Tokenizer.train(texts, 265).save(tmp_path / "tokenizer.json")
    arguments = [str(tmp_path / name) for name in ("clean.jsonl", "tokenizer.json", "tokens")]
    encode_command([*arguments, "--fast", "false"])
    said = capsys.readouterr()
    assert "web" in said.out and "10,000 documents" in said.out
    assert "encoding" in said.err
    held = module.read_manifest(tmp_path / "tokens")["splits"]["train"]["web"]
    assert held["documents"] == 10_000


def test_the_fast_tokenizer_writes_the_same_shards(module, tmp_path, capsys):
    pytest.importorskip("nanoseek.fast.bpe")
    texts = [f"line {n} of the text, 第{n}行\n" * (n % 7) for n in range(600)]
    (tmp_path / "clean.jsonl").write_text("".join(
        json.dumps({"text": text, "source": "web"}) + "\n" for text in texts))
    Tokenizer.train(texts, 300).save(tmp_path / "tokenizer.json")
    for name, flags in (("plain", ["--fast", "false"]), ("fast", [])):
        encode_command([str(tmp_path / "clean.jsonl"), str(tmp_path / "tokenizer.json"),
                        str(tmp_path / name), *flags])
    plain, fast = (module.read_manifest(tmp_path / name) for name in ("plain", "fast"))
    assert plain == fast  # the manifest holds the sha256 of every shard


@pytest.mark.parametrize("line, message", [
    (b'{"text": "a"', "line 2"), (b'{"source": "web"}', "line 2"), (b'{"text": "\xff"}', "UTF-8")])
def test_a_broken_line_is_named_and_no_tokens_are_left(module, tmp_path, line, message):
    (tmp_path / "clean.jsonl").write_bytes(b'{"text": "fine"}\n' + line + b"\n")
    Tokenizer.train(["fine"], 257).save(tmp_path / "tokenizer.json")
    with pytest.raises(ValueError, match=message):
        encode_command([*(str(tmp_path / n) for n in ("clean.jsonl", "tokenizer.json", "tokens")),
                        "--fast", "false"])
    assert len(list(tmp_path.iterdir())) == 2


def test_a_split_that_is_none_is_refused(module, tmp_path):
    with pytest.raises(ValueError, match="split 'validation': choose train or held_out"):
        module.write_shards(documents([9]) + documents([9], "b", "validation"), encode,
                            tmp_path / "t")
    assert not (tmp_path / "t").exists()


def test_a_source_that_is_all_held_out_or_has_no_documents_is_named(module, tmp_path):
    module.write_shards(documents([9, 9]) + documents([9], "b", "held_out"), encode, tmp_path / "t")
    with pytest.raises(ValueError, match="no source is called 'b' that has text in this split: "
                                         "there are a$"):
        module.Loader(tmp_path / "t", 1, 8, {"a": 0.5, "b": 0.5})
    module.write_shards(documents([9]), encode, tmp_path / "u")
    with pytest.raises(ValueError, match="holds no documents"):
        module.Loader(tmp_path / "u", 1, 8, split="held_out")
    module.write_shards(documents([0, 0]), encode, tmp_path / "v")
    with pytest.raises(ValueError, match="empty ones only"):
        module.Loader(tmp_path / "v", 1, 8)


@pytest.mark.parametrize("weights, message", [
    ({"a": 0.5, "c": 0.5}, "no source is called 'c'"), ({"a": 0.5, "b": 0.6}, "sum to 1"),
    ({"a": 1.5, "b": -0.5}, "at least 0"), ({"a": float("nan")}, "sum to 1")])
def test_bad_weights_are_refused(module, mixed, weights, message):
    with pytest.raises(ValueError, match=message):
        module.Loader(mixed, 1, 16, weights)


@pytest.mark.parametrize("wrong", ["abc", {"text": "abc"}, {"source": "a"}, None])
def test_what_is_no_document_is_shown(module, tmp_path, wrong):
    with pytest.raises(ValueError, match=re.escape(f'{wrong!r} is no document: {{"text": "…", ')):
        module.write_shards([{"text": "x", "source": "a"}, wrong], encode, tmp_path / "t")
    assert not list(tmp_path.iterdir())


def test_bad_corpora_are_refused(module, tmp_path):
    with pytest.raises(ValueError, match="no document to train on"):
        module.write_shards([], encode, tmp_path / "t")
    with pytest.raises(ValueError, match="id 120 lies outside the vocabulary of 100"):
        module.write_shards([{"text": "xx", "source": "a"}], encode, tmp_path / "t", 100)
    assert not list(tmp_path.iterdir())


@pytest.mark.contract
def test_sizes_that_do_not_fit_are_refused(module, mixed):
    with pytest.raises(ValueError, match="2 ranks must divide"):
        module.Loader(mixed, 3, 8, world=2)
    loader = module.Loader(mixed, 1, 310)
    before = loader.state_dict()
    for sizes in ((0, 8), (1, 0)):
        with pytest.raises(ValueError, match="at least 1"):
            loader.next_batch(*sizes)
    assert loader.state_dict() == before


@pytest.mark.contract
@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_row_longer_than_a_source_holds_it_several_times(module, tmp_path, times):
    module.write_shards([{"text": text, "source": "a"} for text in ("xy", "abc", "z")], encode,
                        tmp_path / "t")
    loader = module.Loader(tmp_path / "t", 2, 6 * times)
    for _ in range(3):
        for row in loader.next_batch().inputs.tolist():
            assert sorted(row) == sorted(times * encode("xyabcz"))


def test_what_else_stands_in_the_folder_is_left_alone(module, tmp_path):
    folder = tmp_path / "tokens"
    module.write_shards(documents([40] * 5) + documents([9], "b"), encode, folder, 257, EOT)
    (folder / "notes.txt").write_text("mine")
    (folder / "train-set").mkdir()
    manifest = module.write_shards(documents([30] * 5), encode, folder, 257, EOT)
    assert module.read_manifest(folder) == manifest
    assert {path.name for path in folder.iterdir()} == {
        "manifest.json", "notes.txt", "train-set", "train-00-a-000.bin", "train-00-a-lengths.npy"}
    assert (folder / "notes.txt").read_text() == "mine"
    with pytest.raises(ValueError, match="notes.txt is a file"):
        module.write_shards(documents([9]), encode, folder / "notes.txt", 257, EOT)
    assert (folder / "notes.txt").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["tokens"]
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "manifest.json").write_text('{"name": "my page"}')  # another program's
    with pytest.raises(ValueError, match="no token folder"):
        module.write_shards(documents([9]), encode, tmp_path / "web", 257, EOT)
    assert "my page" in (tmp_path / "web" / "manifest.json").read_text()


def test_tokens_go_where_a_link_leads(module, tmp_path):
    (tmp_path / "disk" / "tokens").mkdir(parents=True)
    (tmp_path / "tokens").symlink_to(tmp_path / "disk" / "tokens")
    manifest = module.write_shards(documents([30] * 5), encode, tmp_path / "tokens", 257, EOT)
    assert (tmp_path / "tokens").is_symlink()
    assert module.read_manifest(tmp_path / "disk" / "tokens") == manifest


@pytest.mark.contract
def test_a_state_of_other_data_is_refused(module, mixed):
    state = module.Loader(mixed, 1, 16, seed=1).state_dict()
    with pytest.raises(ValueError, match="belongs to other"):
        module.Loader(mixed, 1, 16, seed=2).load_state_dict(state)
