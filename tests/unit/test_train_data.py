"""Data of ``intandem train``: batches in an exact order, text in windows, what is held out."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from intandem.errors import BatchError, PipelineError, RunError
from intandem.train.config import Config, DataConfig
from intandem.train.data import text as text_module
from intandem.train.data.dataset import Data, TensorRows, as_rows
from intandem.train.data.images import image_data
from intandem.train.data.iterator import BatchIterator, in_order
from intandem.train.data.source import find_data
from intandem.train.data.text import Sources, Windows, find_tokenizer


def iterator(num_rows, batch_rows, seed):
    return BatchIterator(TensorRows(torch.arange(num_rows)), batch_rows=batch_rows, seed=seed)


def taken(batches, count):
    return [next(batches).tolist() for _ in range(count)]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.data())
def test_a_position_is_gone_on_from_exactly(num_rows, data):
    """Through JSON, into an iterator of another seed, whatever the place in an epoch."""
    batch_rows = data.draw(st.integers(1, num_rows))
    seed, before, after = (data.draw(st.integers(0, most)) for most in (2**40, 40, 40))
    batches = iterator(num_rows, batch_rows, seed)
    taken(batches, before)
    state = json.loads(json.dumps(batches.state_dict()))

    again = iterator(num_rows, batch_rows, seed + 1)
    again.load_state_dict(state)

    assert taken(again, after) == taken(batches, after)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.data())
def test_an_epoch_has_every_row_once_but_for_a_rest(num_rows, data):
    """Whole batches, no row twice; the rest is shorter than a batch."""
    batch_rows = data.draw(st.integers(1, num_rows))
    batches = iterator(num_rows, batch_rows, data.draw(st.integers(0, 99)))
    for _ in range(3):
        epoch = [row for batch in taken(batches, num_rows // batch_rows) for row in batch]
        assert len(epoch) == len(set(epoch)) > num_rows - batch_rows


def test_orders_differ_between_epochs_and_seeds():
    """And are the same for the same."""
    first, other = iterator(50, 50, 0), iterator(50, 50, 1)
    one, two = taken(first, 2)
    assert one != two
    assert taken(other, 1) != [one]
    assert taken(iterator(50, 50, 0), 2) == [one, two]


def test_too_few_rows_are_refused():
    """With both numbers."""
    with pytest.raises(BatchError, match=r"3 rows to train on, and a batch has 4.*data\.rows"):
        iterator(3, 4, 0)
    position = iterator(5, 1, 0).state_dict()
    with pytest.raises(BatchError, match="trained on 5 rows, and there are 6 now"):
        iterator(6, 1, 0).load_state_dict(position)


def test_validation_batches_are_alike():
    """Full ones, as many as asked for and there are; a short one only if it is all there is."""
    rows = TensorRows(torch.arange(10))
    assert [n for _, n in in_order(rows, batch_rows=4, num_batches=9)] == [4, 4]
    assert [n for _, n in in_order(rows, batch_rows=4, num_batches=1)] == [4]
    assert [n for _, n in in_order(rows, batch_rows=16, num_batches=9)] == [10]


@given(st.integers(0, 40), st.integers(1, 12))
def test_windows_cover_the_text(num_tokens, seq):
    """One after another; targets are one further on; a last token is only ever a target."""
    windows = Windows(torch.arange(num_tokens), seq)
    assert len(windows) == max(0, (num_tokens - 1) // seq)
    if len(windows):
        inputs, targets = windows.batch(torch.arange(len(windows)))
        assert inputs.flatten().tolist() == list(range(len(windows) * seq))
        assert torch.equal(targets, inputs + 1)


def text(tmp_path, **more):
    config = Config(data=DataConfig(source=f"text:{tmp_path}", seq=4, **more))
    return find_data(config, tmp_path / "tokenizer.json")


def test_a_folder_is_held_out_by_files(tmp_path):
    """No byte of a held-out file is trained on; hidden files and other names are not read."""
    for number in range(10):
        (tmp_path / f"f{number}.txt").write_bytes(bytes([65 + number]) * 50)
    (tmp_path / ".hidden.txt").write_bytes(b"z" * 99)
    (tmp_path / "other.md").write_bytes(b"y" * 99)
    data = text(tmp_path, files="*.txt", validation=0.3)
    training, held = (
        set(rows.batch(torch.arange(len(rows)))[0].flatten().tolist())
        for rows in (data.training, data.validation)
    )
    assert len(held) == 3
    assert training | held == set(range(65, 75))
    assert not training & held
    assert data.facts == {"vocab": 256, "seq": 4}


def test_a_file_is_held_out_at_its_end(tmp_path):
    """And what differs in it makes another fingerprint."""
    path = tmp_path / "a.txt"
    path.write_bytes(b"a" * 80 + b"b" * 20)
    data = text(path, validation=0.2)
    assert set(data.training.batch(torch.arange(len(data.training)))[0].flatten().tolist()) == {97}
    assert data.validation.batch(torch.tensor([0]))[0].tolist() == [[98] * 4]
    path.write_bytes(b"a" * 81 + b"b" * 19)
    assert text(path, validation=0.2).fingerprint != data.fingerprint


def test_byte_pairs_are_learned_once(tmp_path):
    """Saved, read again, and then the same numbers; they say the text in fewer tokens."""
    (tmp_path / "a.txt").write_text("the cat sat on the mat, é and all\n" * 200)
    path = tmp_path / "a.txt"
    own = DataConfig(source=f"text:{path}", seq=4, tokenizer="bpe", vocab=300, validation=0.0)
    config = Config(data=own)
    kept = tmp_path / "tokenizer.json"
    one = find_data(config, kept)
    content = kept.read_bytes()
    two = find_data(config, kept)

    assert kept.read_bytes() == content
    assert one.validation is None
    assert 256 < one.facts["vocab"] <= 300
    assert len(one.training) * 2 < 34 * 200 // 4
    rows = torch.arange(len(one.training))
    assert torch.equal(one.training.batch(rows)[0], two.training.batch(rows)[0])


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("text:/nowhere", "data.source is 'text:/nowhere', and there is no file or folder"),
        ("numbers", "data.source is 'numbers'; expected text:PATH, stdlib"),
        ("images:cats", "data.source is 'images:cats'; there is images:digits"),
        ("no_such_module:f", "cannot import 'no_such_module'"),
        ("math:nothing", "math has no function 'nothing'; it has"),
        ("platform:system", "platform:system returned a str; expected intandem.train.Data"),
    ],
)
def test_sources_that_are_none(source, said, tmp_path):
    """Each is told, with what there is."""
    with pytest.raises((ValueError, TypeError, PipelineError)) as caught:
        find_data(Config(data=DataConfig(source=source)), tmp_path / "t.json")
    assert str(caught.value).startswith(said)


def test_a_path_without_its_kind_is_explained(tmp_path):
    """The user is told what to write."""
    with pytest.raises(ValueError, match=f"give text:{tmp_path}"):
        find_data(Config(data=DataConfig(source=str(tmp_path))), tmp_path / "t.json")
    with pytest.raises(RunError, match=r'no file that matches data.files = "\*\.none"'):
        text(tmp_path, files="*.none")
    (tmp_path / "a.txt").write_text("ab")
    with pytest.raises(RunError, match=r"2 tokens to train on, and a row has data\.seq = 4"):
        text(tmp_path / "a.txt")


def test_own_data_may_be_tensors_data_sets_or_iterators():
    """What is none of them is refused, with what is expected."""
    pair = as_rows((torch.arange(6).view(3, 2), torch.arange(3)), "it")
    assert [part.tolist() for part in pair.batch(torch.tensor([2, 0]))] == [
        [[4, 5], [0, 1]],
        [2, 0],
    ]
    items = as_rows([(torch.tensor(float(i)), i) for i in range(5)], "it")
    assert [part.tolist() for part in items.batch(torch.tensor([3, 1]))] == [[3.0, 1.0], [3, 1]]
    with pytest.raises(TypeError, match="it is a generator; expected tensors with rows"):
        as_rows((x for x in ()), "it")
    with pytest.raises(BatchError, match=r"\(3,\), \(4,\); expected tensors with the same number"):
        as_rows((torch.zeros(3), torch.zeros(4)), "it")


def drawn():
    return Data(training=torch.randn(9))


def test_own_data_draw_alike(tmp_path):
    """On every rank and when a run is gone on with; otherwise with another seed."""
    one, two, other = (
        find_data(Config(seed=seed, data=DataConfig(source=f"{__file__}:drawn")), tmp_path)
        for seed in (0, 0, 1)
    )
    assert torch.equal(one.training, two.training)
    assert not torch.equal(one.training, other.training)


def test_digits_are_held_out_evenly():
    """A fifth of them, of all classes, none in both."""
    data = image_data(DataConfig(source="images:digits", validation=0.2))
    images, classes = data.validation
    assert images.shape == (359, 1, 8, 8)
    assert len(data.training[0]) == 1797 - 359
    assert set(classes.tolist()) == set(range(10))
    assert float(images.max()) == 1.0
    assert float(images.min()) == -1.0


@pytest.mark.parametrize("is_still_there", [False, True])
def test_a_tokenizer_that_another_process_takes_away_meanwhile(
    tmp_path, monkeypatch, is_still_there
):
    """It is learned anew; one that is there and no tokenizer is refused."""
    path, text = tmp_path / "tokenizer.json", b"one two three four " * 50
    path.write_text("what another run left")
    config, refusal = DataConfig(tokenizer="bpe", vocab=270), RunError("no tokenizer")

    def read(path):
        if not is_still_there:
            path.unlink()
        raise refusal

    monkeypatch.setattr(text_module, "load_pairs", read)
    sources = Sources(tmp_path, 1, text, b"")

    if is_still_there:
        with pytest.raises(RunError, match="no tokenizer"):
            find_tokenizer(config, sources, path)
    else:
        found = find_tokenizer(config, sources, path)
        assert found.vocab == 270
        assert path.is_file()
