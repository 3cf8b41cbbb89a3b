"""Sound: waves and spectrograms, with a transcript, a class or the sound itself."""

import torch
import transformers

from zoo.catalogue import ROWS, Sample, animal

VOCAB = 32
CLASSES = 4
WIDTH = 16
TRANSFORMER = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
CONVOLUTIONS = {
    "conv_dim": (8, 8, 8),
    "conv_stride": (5, 2, 2),
    "conv_kernel": (10, 3, 3),
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}


def waves(length=800):
    mask = torch.ones(ROWS, length, dtype=torch.long)
    mask[1::2, length - 200 :] = 0
    return {
        "input_values": torch.randn(ROWS, length, dtype=torch.float64) * mask,
        "attention_mask": mask,
    }


def transcribed(model, **batch):
    """Waves with a transcript; the model computes its CTC loss."""
    labels = torch.randint(1, VOCAB, (ROWS, 4))
    labels[::2, 3:] = -100
    return Sample(model, (batch or waves()) | {"labels": labels})


def ctc(family, **extra):
    config = getattr(transformers, f"{family}Config")(
        vocab_size=VOCAB, **TRANSFORMER, **CONVOLUTIONS, **extra
    )
    return transcribed(getattr(transformers, f"{family}ForCTC")(config))


@animal("wav2vec2")
def wav2vec2():
    return ctc("Wav2Vec2")


@animal("wav2vec2 classification")
def wav2vec2_classification():
    config = transformers.Wav2Vec2Config(
        vocab_size=VOCAB, **TRANSFORMER, **CONVOLUTIONS, num_labels=CLASSES, classifier_proj_size=8
    )
    batch = waves() | {"labels": torch.randint(0, CLASSES, (ROWS,))}
    return Sample(transformers.Wav2Vec2ForSequenceClassification(config), batch)


@animal("wav2vec2_conformer")
def wav2vec2_conformer():
    return ctc("Wav2Vec2Conformer", conv_depthwise_kernel_size=5)


@animal("wav2vec2_bert")
def wav2vec2_bert():
    config = transformers.Wav2Vec2BertConfig(
        vocab_size=VOCAB,
        **TRANSFORMER,
        feature_projection_input_dim=8,
        conv_depthwise_kernel_size=5,
    )
    return transcribed(
        transformers.Wav2Vec2BertForCTC(config),
        input_features=torch.randn(ROWS, 40, 8, dtype=torch.float64),
    )


@animal("hubert")
def hubert():
    return ctc("Hubert")


@animal("wavlm")
def wavlm():
    return ctc("WavLM", num_buckets=8, max_bucket_distance=16)


@animal("data2vec_audio")
def data2vec_audio():
    return ctc("Data2VecAudio", conv_pos_kernel_size=3)


@animal("unispeech")
def unispeech():
    return ctc("UniSpeech")


@animal("unispeech_sat")
def unispeech_sat():
    return ctc("UniSpeechSat")


@animal("sew")
def sew():
    return ctc("SEW", squeeze_factor=2)


@animal("sew_d")
def sew_d():
    return ctc("SEWD", squeeze_factor=2, position_buckets=8, max_position_embeddings=64)


def spoken(model, features, **extra):
    """Spectrograms with a text; the model computes its own loss."""
    labels = torch.randint(3, VOCAB, (ROWS, 6))
    labels[::2, 5:] = -100
    return Sample(model, {"input_features": features, "labels": labels} | extra)


BOTH_SIDES = {
    "vocab_size": VOCAB,
    "d_model": WIDTH,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}


@animal("whisper")
def whisper():
    config = transformers.WhisperConfig(
        **BOTH_SIDES,
        num_mel_bins=8,
        max_source_positions=20,
        max_target_positions=16,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    features = torch.randn(ROWS, 8, 40, dtype=torch.float64)
    return spoken(transformers.WhisperForConditionalGeneration(config), features)


@animal("whisper with spec augment")
def whisper_augmented():
    config = transformers.WhisperConfig(
        **BOTH_SIDES,
        num_mel_bins=8,
        max_source_positions=20,
        max_target_positions=16,
        suppress_tokens=None,
        begin_suppress_tokens=None,
        apply_spec_augment=True,
        mask_time_length=4,
    )
    features = torch.randn(ROWS, 8, 40, dtype=torch.float64)
    return spoken(transformers.WhisperForConditionalGeneration(config), features)


@animal("speech_to_text")
def speech_to_text():
    config = transformers.Speech2TextConfig(
        **BOTH_SIDES,
        input_feat_per_channel=8,
        conv_channels=16,
        max_source_positions=64,
        max_target_positions=32,
    )
    mask = torch.ones(ROWS, 40, dtype=torch.long)
    mask[1::2, 32:] = 0
    features = torch.randn(ROWS, 40, 8, dtype=torch.float64)
    model = transformers.Speech2TextForConditionalGeneration(config)
    return spoken(model, features, attention_mask=mask)


@animal("moonshine")
def moonshine():
    config = transformers.MoonshineConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        intermediate_size=24,
        encoder_num_hidden_layers=2,
        decoder_num_hidden_layers=2,
        encoder_num_attention_heads=2,
        decoder_num_attention_heads=2,
        pad_token_id=0,
    )
    labels = torch.randint(3, VOCAB, (ROWS, 6))
    batch = {"input_values": torch.randn(ROWS, 1200, dtype=torch.float64), "labels": labels}
    return Sample(transformers.MoonshineForConditionalGeneration(config), batch)


@animal("audio_spectrogram_transformer")
def ast():
    config = transformers.ASTConfig(
        **TRANSFORMER,
        patch_size=4,
        frequency_stride=4,
        time_stride=4,
        max_length=16,
        num_mel_bins=8,
        num_labels=CLASSES,
    )
    batch = {
        "input_values": torch.randn(ROWS, 16, 8, dtype=torch.float64),
        "labels": torch.randint(0, CLASSES, (ROWS,)),
    }
    return Sample(transformers.ASTForAudioClassification(config), batch)


def wave_error(output, batch):
    """Mean absolute error of the decoded sound."""
    decoded = output.audio_values
    return (decoded - batch["input_values"][..., : decoded.shape[-1]]).abs().mean()


@animal("encodec")
def encodec():
    config = transformers.EncodecConfig(
        target_bandwidths=[24.0],
        hidden_size=16,
        num_filters=4,
        upsampling_ratios=[4, 2],
        codebook_size=16,
        codebook_dim=16,
        num_lstm_layers=1,
    )
    batch = {"input_values": torch.randn(ROWS, 1, 64, dtype=torch.float64)}
    return Sample(transformers.EncodecModel(config), batch, wave_error)


@animal("mimi")
def mimi():
    config = transformers.MimiConfig(
        hidden_size=WIDTH,
        num_filters=4,
        num_residual_layers=1,
        upsampling_ratios=[4, 2],
        codebook_size=16,
        codebook_dim=8,
        vector_quantization_hidden_dimension=8,
        num_quantizers=2,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=24,
        upsample_groups=WIDTH,
        sampling_rate=200,
    )
    batch = {"input_values": torch.randn(ROWS, 1, 64, dtype=torch.float64)}
    return Sample(transformers.MimiModel(config), batch, wave_error)


@animal("univnet")
def univnet():
    config = transformers.UnivNetConfig(
        model_in_channels=8,
        model_hidden_channels=8,
        num_mel_bins=8,
        resblock_kernel_sizes=[3, 3],
        resblock_stride_sizes=[4, 4],
        resblock_dilation_sizes=[[1], [1]],
        kernel_predictor_hidden_channels=8,
    )
    batch = {
        "input_features": torch.randn(ROWS, 6, 8, dtype=torch.float64),
        "noise_sequence": torch.randn(ROWS, 6, 8, dtype=torch.float64),
        "target": torch.randn(ROWS, 96, dtype=torch.float64),
    }
    return Sample(
        transformers.UnivNetModel(config),
        batch,
        lambda output, given: (output.waveforms - given["target"]).abs().mean(),
    )


@animal(
    "vits",
    refused="what forward does next depends on the value of an activation",
    remedy="the predicted durations decide how long the sound is: train on given durations, in a "
    "forward of your own around the model's text encoder, flow and decoder",
)
def vits():
    config = transformers.VitsConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        ffn_dim=24,
        flow_size=WIDTH,
        spectrogram_bins=9,
        upsample_initial_channel=16,
        upsample_rates=[4, 4],
        upsample_kernel_sizes=[8, 8],
        resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1, 3]],
        prior_encoder_num_flows=1,
        posterior_encoder_num_wavenet_layers=1,
        depth_separable_num_layers=1,
        duration_predictor_num_flows=1,
    )
    ids = torch.randint(1, VOCAB, (ROWS, 6))
    return Sample(
        transformers.VitsModel(config),
        {"input_ids": ids},
        lambda output, given: output.spectrogram.pow(2).mean(),
    )
