"""A pipeline of Stable Diffusion 3 with random weights, small enough for tests, in diffusers' layout."""

import torch

WORDS = ["a", "red", "blue", "apple", "on", "square"]
VAE = {
    "in_channels": 3, "out_channels": 3, "latent_channels": 16, "block_out_channels": [8, 8], "norm_num_groups": 4,
    "down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2, "layers_per_block": 1,
    "use_quant_conv": False, "use_post_quant_conv": False, "scaling_factor": 1.5305, "shift_factor": 0.0609,
}  # fmt: skip


def tokenizer(padding):
    """A tokenizer of whole words, with a token before and one after every text."""
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[BOS]", "[EOS]"]
    vocabulary = {word: i for i, word in enumerate(special + WORDS)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="[BOS] $A [EOS]", special_tokens=[("[BOS]", 2), ("[EOS]", 3)]
    )
    names = {"unk_token": "[UNK]", "bos_token": "[BOS]", "eos_token": "[EOS]"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=padding, model_max_length=77, **names)


def clip(width):
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=10, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=3, num_attention_heads=2,
        max_position_embeddings=77, projection_dim=width, bos_token_id=2, eos_token_id=3, pad_token_id=0,
    )  # fmt: skip
    return CLIPTextModelWithProjection(config).eval()


def t5(width):
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=10, d_model=width, d_kv=8, d_ff=32, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu",
        pad_token_id=0, eos_token_id=3, decoder_start_token_id=0,
    )  # fmt: skip
    return T5EncoderModel(config).eval()


def pipeline():
    """A `StableDiffusion3Pipeline` whose weights all matter."""
    import diffusers

    torch.manual_seed(0)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=16, out_channels=16, num_layers=2, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=32, caption_projection_dim=16, pooled_projection_dim=20,
        pos_embed_max_size=12, qk_norm="rms_norm", dual_attention_layers=(0,),
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(**VAE).eval()
    for part in (transformer, vae):
        with torch.no_grad():
            for parameter in part.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer.eval(), vae=vae, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder=clip(8), text_encoder_2=clip(12), text_encoder_3=t5(32), tokenizer=tokenizer("[EOS]"),
        tokenizer_2=tokenizer("[PAD]"), tokenizer_3=tokenizer("[PAD]"),
    )  # fmt: skip
