"""Folders for ``transformers``: its own loading gives the plain model's logits."""

import pytest
import torch
import transformers
from test_materialise_huggingface import language_batch, llama, one_step

import intandem as it
from checkpoint_runs import model, pipeline
from intandem.errors import CheckpointError


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("max_shard_bytes", [10**9, 20_000])
def test_transformers_loads_it(tmp_path, tied, max_shard_bytes):
    """Whole or in shards, tied or not; and so does a pipeline of a model on meta."""
    torch.manual_seed(5)
    plain, batch = llama(tied=tied).float(), language_batch()
    folder = tmp_path / "saved"
    options = it.Options(threads_per_rank=1)
    with it.Pipeline(plain, example=batch, ranks=2, microbatches=2, options=options) as pipe:
        optimizer = torch.optim.SGD(pipe.parameters(), lr=0.1)
        pipe.step(batch)
        optimizer.step()
        assert pipe.save_pretrained(folder, max_shard_bytes=max_shard_bytes) == folder
        with pytest.raises(CheckpointError, match="is there already"):
            pipe.save_pretrained(folder)
    assert (folder / "model.safetensors").exists() == (max_shard_bytes == 10**9)
    loaded, notes = transformers.LlamaForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(notes.values())
    assert loaded.config.tie_word_embeddings == tied
    assert loaded.dtype == torch.float32
    ids = batch["input_ids"]
    with torch.no_grad():
        assert torch.equal(loaded.eval()(ids).logits, plain.eval()(ids).logits)
    assert type(transformers.AutoModelForCausalLM.from_pretrained(folder)) is type(plain)
    with torch.device("meta"):
        again = llama(tied=tied).float()
    one_step(again, folder)
    for name, parameter in plain.named_parameters():
        assert torch.equal(again.get_parameter(name), parameter), name


def test_a_model_without_configuration_is_refused(tmp_path):
    with pipeline(model(), ranks=1) as pipe, pytest.raises(CheckpointError, match="no config"):
        pipe.save_pretrained(tmp_path / "c")
    assert not (tmp_path / "c").exists()
