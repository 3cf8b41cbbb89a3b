"""Whatever is not exactly what was saved is refused, and the file at fault is named."""

import json
import random
import shutil
import subprocess
import sys
import textwrap

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoint_runs import adamw, batches, differing, model, pipeline, train
from intandem.checkpoint import CheckpointFolder, load_into, read_state
from intandem.checkpoint.manifest import DIGEST, MANIFEST, Manifest, decode, digest_line, encode
from intandem.checkpoint.trees import from_json, to_json
from intandem.errors import CheckpointError

NUM_FLIPS = 400


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A checkpoint of several files, and another of the same model."""
    root = CheckpointFolder(tmp_path_factory.mktemp("whole"))
    with pipeline(model(), ranks=2) as pipe:
        pipe._checkpoints.max_shard_bytes = 700
        optimizer = adamw(pipe.parameters())
        train(pipe, optimizer, batches(1))
        pipe.save(root.path(1), optimizer=optimizer, extra={"text": "é", "list": [1.5, None]})
        train(pipe, optimizer, batches(1))
        pipe.save(root.path(2), optimizer=optimizer)
    return root


@pytest.fixture
def copied(whole, tmp_path):
    """A copy of both, and the newer one's path."""
    shutil.copytree(whole.root, tmp_path, dirs_exist_ok=True)
    root = CheckpointFolder(tmp_path)
    return root, root.path(2)


def refused(root, path, file):
    """All ways to load refuse ``path`` for the fault of ``file``, and change nothing."""
    plain = model()
    before = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    for load in (lambda: load_into(plain, path), lambda: read_state(path)):
        with pytest.raises(CheckpointError) as caught:
            load()
        assert str(path / file) in str(caught.value) or file == DIGEST in str(caught.value)
    assert differing(plain.state_dict(), before) == []
    assert root.latest() == root.path(1)


def test_flips(copied):
    """400 bits, in every file: parameters, moments, manifest, digest."""
    root, path = copied
    files = sorted(path.iterdir())
    assert len(files) >= 6
    rng = random.Random(0)
    for number in range(NUM_FLIPS):
        file = files[number % len(files)]
        content = file.read_bytes()
        bit = rng.randrange(8 * len(content))
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        refused(root, path, file.name)
        file.write_bytes(content)
    assert root.latest() == path


@pytest.mark.parametrize("by", [1, 100])
def test_truncated_or_longer(copied, by):
    root, path = copied
    for file in sorted(path.iterdir()):
        content = file.read_bytes()
        for other in (content[:-by], content + b"\0" * by):
            file.write_bytes(other)
            refused(root, path, file.name)
        file.write_bytes(content)


def test_missing(copied):
    root, path = copied
    for file in sorted(path.iterdir()):
        content = file.read_bytes()
        file.unlink()
        refused(root, path, file.name)
        file.write_bytes(content)


def test_foreign(copied):
    """A file too many, and another checkpoint's file of the same name and length."""
    root, path = copied
    (path / "model-rank1-1.safetensors").write_bytes(b"")
    refused(root, path, "model-rank1-1.safetensors")
    (path / "model-rank1-1.safetensors").unlink()
    for theirs in sorted(root.path(1).glob("*.safetensors")):
        ours = path / theirs.name
        content = ours.read_bytes()
        assert len(content) == theirs.stat().st_size
        shutil.copy(theirs, ours)
        refused(root, path, theirs.name)
        ours.write_bytes(content)


def rewrite(path, change):
    """Change a manifest, and its digest with it."""
    found = json.loads((path / MANIFEST).read_text())
    change(found)
    content = json.dumps(found).encode()
    (path / MANIFEST).write_bytes(content)
    (path / DIGEST).write_bytes(digest_line(content))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m.update(version=2), r"of version 2 of the format; this intandem reads 1"),
        (lambda m: m.update(format="x"), r"Invalid enum value 'x' - at `\$\.format`"),
        (lambda m: m.update(new=1), "unknown field `new`"),
        (lambda m: m.pop("tied"), "missing required field `tied`"),
        (lambda m: m.update(num_steps=-1), r"at `\$\.num_steps`"),
        (lambda m: m["model"].update({"../x.safetensors": next(iter(m["model"].values()))}),
         r"'\.\./x\.safetensors' is no name of a file"),
        (lambda m: m["tied"].update(a="b"), "'a' cannot be another name of 'b'"),
        (lambda m: m.update(extra={"$float": "x"}), "is no value"),
        (lambda m: m.update(extra={"$tensor": "x"}), "has no place there"),
        (lambda m: m["optimizer"]["groups"].append(m["optimizer"]["groups"][0]), "twice"),
    ],
)  # fmt: skip
def test_manifests_of_another_kind(copied, change, said):
    """With a digest that is right; the file is named, and what is wrong in it."""
    _, path = copied
    rewrite(path, change)
    with pytest.raises(CheckpointError, match=said) as caught:
        read_state(path)
    assert str(path / MANIFEST) in str(caught.value)


TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner)
    | st.lists(inner).map(tuple),
    max_leaves=10,
)  # fmt: skip


@given(TREES)
@settings(deadline=None)
def test_values_come_back_equal(value):
    """Through JSON: numbers of any size, tuples, keys that are numbers or begin with ``$``."""
    found = from_json(json.loads(json.dumps(to_json(value, "value"), allow_nan=False)))
    assert found == value
    assert repr(found) == repr(value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


def places(value, path=()):
    """Every place in a JSON value."""
    yield path
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(item, (*path, key))


@given(st.data())
@settings(deadline=None, max_examples=200)
def test_any_manifest(whole, data):
    """One place of a manifest is anything: it is refused by name, or comes back equal."""
    path = whole.path(1)
    found = json.loads((path / MANIFEST).read_text())
    place = data.draw(st.sampled_from(sorted(filter(None, places(found)), key=repr)))
    inside = found
    for key in place[:-1]:
        inside = inside[key]
    inside[place[-1]] = data.draw(JSON)
    manifest = error = None
    try:
        manifest = decode(json.dumps(found).encode(), path / MANIFEST)
    except CheckpointError as caught:
        error = str(caught)
    if manifest is None:
        assert str(path / MANIFEST) in error
    else:
        assert isinstance(manifest, Manifest)
        assert json.loads(encode(manifest)) == found


@given(st.binary(max_size=300))
@settings(deadline=None)
def test_any_bytes(whole, content):
    path = whole.path(1)
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        decode(content, path / MANIFEST)


def test_no_loader_runs_code(whole):
    """In a process where loading may neither unpickle nor compile; imports are over before."""
    script = """
        import sys
        from checkpoint_runs import adamw, model
        from intandem.checkpoint import CheckpointFolder, load_into, read_state
        def load(path):
            plain = model()
            load_into(plain, path, adamw(plain.parameters()))
            read_state(path)
            return CheckpointFolder(path.parent).latest()
        path = CheckpointFolder(sys.argv[1]).path(1)
        load(path)  # what torch imports when it is first used is not a checkpoint's
        ran, files = [], set()
        def hook(event, args):
            if event == "open":
                files.add(str(args[0]))
            if event in {"exec", "compile", "import", "pickle.find_class", "ctypes.dlopen",
                         "subprocess.Popen", "os.system", "marshal.loads"}:
                ran.append((event, str(args)[:200]))
        sys.addaudithook(hook)
        load(path)
        print("ran", ran)
        print("read", sorted(f.rpartition("/")[2] for f in files if "/step-" in f))
        ran.clear()
        eval("1 + 1")
        print("control", [event for event, _ in ran])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(whole.root)],
        capture_output=True, text=True, timeout=100, check=False,
        env={"PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    ran, read, control = done.stdout.splitlines()
    assert ran == "ran []"
    assert MANIFEST in read
    assert "model-rank0-1.safetensors" in read
    assert control == "control ['compile', 'exec']"
