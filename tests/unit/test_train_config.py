"""Configurations of ``intandem train``: what is refused, how, and that nothing is lost."""

import json
import subprocess
import sys
from dataclasses import fields, is_dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from intandem.cli.main import main
from intandem.train.config import (
    NO_DECAY,
    Config,
    DataConfig,
    GroupConfig,
    ModelConfig,
    OptimizerConfig,
    PipelineConfig,
)
from intandem.train.config_file import all_keys, checked, config_of, read_config, write_config

WRONG = {
    'steps = "x"': "steps is 'x'; expected a whole number, 1 or more",
    "steps = 0": "steps is 0; expected a whole number, 1 or more",
    "steps = true": "steps is True; expected a whole number, 1 or more",
    'precision = "fp8"': "precision is 'fp8'; expected fp32, bf16 or fp16",
    "data = 3": "data is 3; expected a table",
    "[optimizer]\nbetas = [1]": (
        "optimizer.betas is [1]; expected a list of 2, each a number from 0 to 1"
    ),
    '[optimizer]\nbetas = [0.9, "1"]': ("optimizer.betas[1] is '1'; expected a number from 0 to 1"),
    '[[optimizer.groups]]\nmatch = "x"': (
        "optimizer.groups[0].match is 'x'; expected a list, each text"
    ),
    "[[optimizer.groups]]\nlr_scale = 1.0": "optimizer.groups[0] needs match",
    '[pipeline]\nranks = "two"': "pipeline.ranks is 'two'; expected a whole number, 1 or more",
    "[model]\ndropout = 1.0": "model.dropout is 1.0; expected a number from 0 to less than 1",
    "[logging]\ntensorboard = 1": "logging.tensorboard is 1; expected true or false",
    "[optimizer]\neps = 0.0": "optimizer.eps is 0.0; expected a number, more than 0",
    "stepz = 1": "there is no key stepz; did you mean steps?",
    "lr = 1": "there is no key lr; did you mean optimizer.lr?",
    "ranks = 2": "there is no key ranks; did you mean pipeline.ranks?",
    "[data]\nvocabulary = 3": "there is no key data.vocabulary; did you mean data.vocab?",
    '[[optimizer.groups]]\nmatch = ["x"]\ndecay = 1': (
        "there is no key optimizer.groups[0].decay; "
        "optimizer.groups[0] has match, weight_decay, lr_scale"
    ),
    "steps = ": "is not TOML: Invalid value (at end of document)",
}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_wrong_is_said(text, tmp_path):
    """The file, the key, its value, and what it may be or which key is near."""
    path = tmp_path / "c.toml"
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        read_config(path)
    said = str(caught.value).removeprefix(str(path)).removeprefix(":").strip()
    assert said == WRONG[text]


def test_files_that_are_none(tmp_path):
    """A folder's, a name's and a coding's fault are told apart."""
    with pytest.raises(ValueError, match="there is no such file"):
        read_config(tmp_path / "none.toml")
    with pytest.raises(ValueError, match=r"expected a \.toml or \.json file"):
        read_config(tmp_path / "c.yaml")
    (tmp_path / "c.toml").write_bytes(b"\xff\xff")
    with pytest.raises(ValueError, match="not text in UTF-8"):
        read_config(tmp_path / "c.toml")
    (tmp_path / "c.json").write_text("[1]")
    with pytest.raises(ValueError, match="is a list; expected tables of keys"):
        read_config(tmp_path / "c.json")


def test_an_object_is_held_against_its_types():
    """What Python lets through is refused with the key."""
    with pytest.raises(ValueError, match=r"data\.rows is 0; expected a whole number, 1 or more"):
        checked(Config(data=DataConfig(rows=0)))


def test_json_is_read_too(tmp_path):
    """The same keys, as JSON."""
    (tmp_path / "c.json").write_text(json.dumps({"steps": 3, "data": {"rows": 4}}))
    assert read_config(tmp_path / "c.json") == Config(steps=3, data=DataConfig(rows=4))


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


def without_none(value):
    """TOML has no null: such keys are left out."""
    if isinstance(value, dict):
        return {k: without_none(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [without_none(v) for v in value if v is not None]
    return value


GROUPS = st.builds(
    GroupConfig,
    match=st.lists(TEXT, max_size=2).map(tuple),
    weight_decay=st.none() | st.floats(0, 1),
    lr_scale=st.floats(0, 10),
)
CONFIGS = st.builds(
    Config,
    directory=TEXT,
    steps=st.integers(1, 10**9),
    clip=st.floats(0, 1e30),
    data=st.builds(DataConfig, source=TEXT),
    model=st.builds(
        ModelConfig,
        loss=st.none() | TEXT,
        arguments=st.none() | st.dictionaries(TEXT, VALUES, max_size=3).map(without_none),
    ),
    optimizer=st.builds(OptimizerConfig, groups=st.lists(GROUPS, max_size=2).map(tuple)),
    pipeline=st.builds(
        PipelineConfig,
        ranks=st.none() | st.integers(1, 99),
        split_points=st.none() | st.lists(TEXT, max_size=3).map(tuple),
    ),
)


@given(CONFIGS)
def test_what_is_written_is_read_as_the_same(tmp_path_factory, config):
    """Every configuration comes back from its TOML, whatever its texts and tables."""
    path = tmp_path_factory.getbasetemp() / "round.toml"
    path.write_text(write_config(config), encoding="utf-8")
    assert read_config(path) == config


def test_leaving_a_key_out_is_its_default():
    """Nothing but None may be a default that a key cannot be given."""

    def look(kind, value):
        for each in fields(kind):
            inner = getattr(value, each.name)
            if is_dataclass(inner):
                look(type(inner), inner)
            else:
                assert inner is None or "None" not in str(each.type) or each.name == "arguments"

    look(Config, Config())
    assert config_of({}) == Config()
    assert Config().optimizer.groups == NO_DECAY


def test_every_key_is_explained():
    """In the source, below the key: the page and the help are made of that."""
    from pages.train import explained

    assert [key for key, _, _ in explained()] == list(all_keys(Config))
    assert all(text for _, text, _ in explained())


def test_the_page_is_up_to_date():
    """docs/train.md is what ``python -m pages.train`` writes."""
    from pages.train import PAGE, render

    assert PAGE.read_text(encoding="utf-8") == render()


def shown(capsys, *words):
    """Run ``intandem train ... --show``; return its configuration."""
    assert main(["train", *map(str, words), "--show"]) == 0
    import tomllib

    return config_of(tomllib.loads(capsys.readouterr().out))


def test_the_command_line_comes_last(tmp_path, capsys):
    """Defaults, then the file, then what is typed; the rest of a table stays the file's."""
    path = tmp_path / "c.toml"
    path.write_text("steps = 7\n[pipeline]\nranks = 2\nmicrobatches = 6\n")
    words = ["--pipeline.ranks", "3", "--optimizer.betas", "0.5", "0.6", "--logging.tensorboard"]

    found = shown(capsys, path, *words)

    expected = config_of(
        {
            "steps": 7,
            "pipeline": {"ranks": 3, "microbatches": 6},
            "optimizer": {"betas": [0.5, 0.6]},
            "logging": {"tensorboard": True},
        }
    )
    assert found == expected
    assert shown(capsys, path) == replace(
        Config(steps=7), pipeline=PipelineConfig(ranks=2, microbatches=6)
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--ranks", "2"], "unknown option --ranks; did you mean --pipeline.ranks?"),
        (["--pipeline.rank", "2"], "option --pipeline.rank; did you mean --pipeline.ranks?"),
        (["--steps", "many"], "--steps is 'many'; expected a whole number"),
        (["--steps", "0"], "steps is 0; expected a whole number, 1 or more"),
        (["--precision", "fp8"], "--precision is 'fp8'; expected fp32, bf16 or fp16"),
        (["--optimizer.betas", "0.5", "0.6", "--stepz", "1"], "--stepz; did you mean --steps?"),
    ],
)
def test_what_is_typed_wrong_is_said(words, said, tmp_path, capsys):
    """In one sentence that names the option."""
    (tmp_path / "c.toml").write_text("")
    assert main(["train", str(tmp_path / "c.toml"), *words]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


def test_configurations_are_read_without_torch(tmp_path):
    """What is typed wrong is told before anything heavy is imported."""
    (tmp_path / "c.toml").write_text("")
    code = (
        "import sys; from intandem.cli.main import main; "
        f"main(['train', {str(tmp_path / 'c.toml')!r}, '--show']); "
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
