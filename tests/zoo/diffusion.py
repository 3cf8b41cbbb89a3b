"""Models that predict the noise in an image, at a time step."""

import diffusers
import torch
from torch.nn import functional as F

from zoo.catalogue import ROWS, Sample, animal

SIZE = 8
WIDTH = 32
WHOLE = {"img_ids": None, "txt_ids": None}  # positions, the same for all rows


def noise_error(output, batch):
    """Mean squared error of the predicted noise."""
    predicted = output[0] if isinstance(output, tuple) else output.sample
    return F.mse_loss(predicted, batch["noise"])


def denoising(model, *, name="sample", channels=4, size=SIZE, **extra):
    """Noisy images, each at a time step of its own, and the noise that is in them."""
    image = torch.randn(ROWS, channels, size, size, dtype=torch.float64)
    noise = torch.randn_like(image)
    steps = torch.randint(0, 1000, (ROWS,))
    return Sample(
        model, {name: image + noise, "timestep": steps, "noise": noise} | extra, noise_error
    )


def filmed(made, name, num_frames):
    """The same with several frames of each image."""
    video = {
        key: made.batch[key].unsqueeze(2).repeat(1, 1, num_frames, 1, 1) for key in (name, "noise")
    }
    return made._replace(batch=made.batch | video)


def words(length, width):
    return torch.randn(ROWS, length, width, dtype=torch.float64)


@animal("unet 2d", library="diffusers")
def unet():
    return denoising(
        diffusers.UNet2DModel(
            sample_size=SIZE,
            in_channels=4,
            out_channels=4,
            block_out_channels=(WIDTH, WIDTH),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            norm_num_groups=8,
            attention_head_dim=8,
            dropout=0.1,
        )
    )


@animal("unet 2d with text", library="diffusers")
def unet_condition():
    model = diffusers.UNet2DConditionModel(
        sample_size=SIZE,
        block_out_channels=(WIDTH, WIDTH),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=8,
        attention_head_dim=8,
        cross_attention_dim=16,
    )
    return denoising(model, encoder_hidden_states=words(6, 16))


@animal("unet 3d with text", library="diffusers")
def unet_3d():
    model = diffusers.UNet3DConditionModel(
        sample_size=SIZE // 2,
        block_out_channels=(WIDTH // 2, WIDTH // 2),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        norm_num_groups=8,
        attention_head_dim=8,
        cross_attention_dim=16,
    )
    made = denoising(model, size=SIZE // 2, encoder_hidden_states=words(6, 16))
    return filmed(made, "sample", 2)


@animal("unet 1d", library="diffusers")
def unet_1d():
    model = diffusers.UNet1DModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        extra_in_channels=2 * WIDTH,  # the time step's
        block_out_channels=(WIDTH, WIDTH),
        down_block_types=("DownBlock1DNoSkip", "AttnDownBlock1D"),
        up_block_types=("AttnUpBlock1D", "UpBlock1DNoSkip"),
    )
    made = denoising(model)
    signal = {k: made.batch[k].flatten(2) for k in ("sample", "noise")}
    return made._replace(batch=made.batch | signal)


@animal("uvit", library="diffusers")
def uvit():
    model = diffusers.UVit2DModel(
        hidden_size=WIDTH,
        cond_embed_dim=16,
        micro_cond_encode_dim=8,
        micro_cond_embed_dim=40,
        encoder_hidden_size=16,
        vocab_size=33,
        codebook_size=32,
        in_channels=WIDTH,
        block_out_channels=WIDTH,
        num_res_blocks=1,
        block_num_heads=2,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        sample_size=4,
    )
    batch = {
        "input_ids": torch.randint(0, 33, (ROWS, 4, 4)),
        "encoder_hidden_states": words(5, 16),
        "pooled_text_emb": torch.randn(ROWS, 16, dtype=torch.float64),
        "micro_conds": torch.rand(ROWS, 5, dtype=torch.float64),
        "codes": torch.randint(0, 32, (ROWS, 4, 4)),
    }
    return Sample(model, batch, lambda output, given: F.cross_entropy(output, given["codes"]))


@animal("dit", library="diffusers")
def dit():
    model = diffusers.DiTTransformer2DModel(
        sample_size=SIZE,
        num_layers=4,
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        num_embeds_ada_norm=1000,
    )
    return denoising(model, name="hidden_states", class_labels=torch.randint(0, 1000, (ROWS,)))


@animal("pixart", library="diffusers")
def pixart():
    model = diffusers.PixArtTransformer2DModel(
        sample_size=SIZE,
        num_layers=4,
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        cross_attention_dim=16,
        caption_channels=12,
        use_additional_conditions=False,
    )
    mask = torch.ones(ROWS, 6)
    mask[::2, 4:] = 0
    return denoising(
        model,
        name="hidden_states",
        encoder_hidden_states=words(6, 12),
        encoder_attention_mask=mask.double(),
        added_cond_kwargs={"resolution": None, "aspect_ratio": None},
    )


@animal("stable diffusion 3", library="diffusers")
def sd3():
    model = diffusers.SD3Transformer2DModel(
        sample_size=SIZE,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=4,
        num_attention_heads=2,
        attention_head_dim=8,
        joint_attention_dim=12,
        caption_projection_dim=16,
        pooled_projection_dim=10,
        pos_embed_max_size=8,
    )
    return denoising(
        model,
        name="hidden_states",
        encoder_hidden_states=words(6, 12),
        pooled_projections=torch.randn(ROWS, 10, dtype=torch.float64),
    )


@animal("flux", library="diffusers", options={"split": WHOLE})
def flux():
    model = diffusers.FluxTransformer2DModel(
        in_channels=4,
        num_layers=2,
        num_single_layers=2,
        num_attention_heads=2,
        attention_head_dim=16,
        joint_attention_dim=12,
        pooled_projection_dim=10,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=True,
    )
    noisy, noise = torch.randn(2, ROWS, 16, 4, dtype=torch.float64)
    places = torch.cartesian_prod(torch.zeros(1), torch.arange(4.0), torch.arange(4.0))
    batch = {
        "hidden_states": noisy,
        "timestep": torch.rand(ROWS, dtype=torch.float64),
        "guidance": torch.full((ROWS,), 3.5, dtype=torch.float64),
        "encoder_hidden_states": words(6, 12),
        "pooled_projections": torch.randn(ROWS, 10, dtype=torch.float64),
        "img_ids": places.double(),
        "txt_ids": torch.zeros(6, 3, dtype=torch.float64),
        "noise": noise,
    }
    return Sample(model, batch, noise_error)


@animal("sana", library="diffusers")
def sana():
    model = diffusers.SanaTransformer2DModel(
        sample_size=SIZE,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=12,
    )
    return denoising(model, name="hidden_states", encoder_hidden_states=words(6, 12))


@animal("wan", library="diffusers")
def wan():
    model = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=12,
        freq_dim=16,
        ffn_dim=32,
        num_layers=4,
        rope_max_seq_len=32,
    )
    made = denoising(model, name="hidden_states", encoder_hidden_states=words(6, 12))
    return filmed(made, "hidden_states", 2)


def reconstruction_error(output, batch):
    """Mean squared error of the decoded image."""
    return F.mse_loss(output.sample, batch["sample"])


@animal("autoencoder kl", library="diffusers")
def autoencoder_kl():
    model = diffusers.AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        block_out_channels=(16, 16),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
    )
    batch = {
        "sample": torch.rand(ROWS, 3, SIZE, SIZE, dtype=torch.float64),
        "sample_posterior": True,
    }
    return Sample(model, batch, reconstruction_error)


@animal("vq model", library="diffusers")
def vq_model():
    model = diffusers.VQModel(
        block_out_channels=(16, 16),
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        layers_per_block=1,
        latent_channels=4,
        num_vq_embeddings=16,
        norm_num_groups=4,
    )
    batch = {"sample": torch.rand(ROWS, 3, SIZE, SIZE, dtype=torch.float64)}
    return Sample(
        model,
        batch,
        lambda output, given: reconstruction_error(output, given) + output.commit_loss.mean(),
    )
