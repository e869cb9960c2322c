"""A pipeline of Flux.1 with random weights, small enough for tests, in diffusers' layout."""

import torch
from sd3_folder import VAE, t5, tokenizer


def clip(width):
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=10, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=77, bos_token_id=2, eos_token_id=3, pad_token_id=0,
    )  # fmt: skip
    return CLIPTextModel(config).eval()


def pipeline(guidance=True):
    """A `FluxPipeline` whose weights all matter, with the scheduler of Flux.1 dev, or without guidance of schnell."""
    import diffusers

    torch.manual_seed(0)
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=64, num_layers=1, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=24, pooled_projection_dim=20, guidance_embeds=guidance, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(**VAE | {"scaling_factor": 0.3611, "shift_factor": 0.1159}).eval()
    for part in (transformer, vae):
        with torch.no_grad():
            for parameter in part.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    settings = {"shift": 3.0, "use_dynamic_shifting": True} if guidance else {"shift": 1.0}
    return diffusers.FluxPipeline(
        transformer=transformer.eval(), vae=vae, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**settings),
        text_encoder=clip(20), text_encoder_2=t5(24), tokenizer=tokenizer("[EOS]"), tokenizer_2=tokenizer("[PAD]"),
    )  # fmt: skip
