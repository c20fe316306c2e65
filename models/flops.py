"""How much arithmetic a training step is, for utilisation figures."""

from __future__ import annotations

from torch import nn

from models.cav_mae.config import ModelConfig


def forward_flops(config: ModelConfig, *, reconstruct: bool = True, contrast: bool = True) -> float:
    """Matrix-multiply FLOPs of one sample's pretraining forward pass (a multiply-add is 2).

    Counted are the linear layers: patch embeddings, qkv, attention output, MLPs, decoder embedding and
    predictions, over the tokens that really pass them (removed tokens pass the decoder only; the joint blocks
    are passed once together and once by each modality alone). Not counted are attention scores and their
    product with the values, norms, activations, biases, the front end and the losses.
    """
    arch = config.architecture
    patch = config.patch_size**2
    kept_audio, kept_visual = config.num_kept_audio, config.num_kept_visual
    kept, tokens = kept_audio + kept_visual, config.num_audio_tokens + config.num_visual_tokens

    def block(dim: int) -> float:
        return dim * (4 * dim + 2 * int(dim * config.mlp_ratio))

    products = (kept_audio * patch + kept_visual * 3 * patch) * arch.embed_dim
    passes = arch.modality_depth + arch.joint_depth * (reconstruct + contrast)
    products += kept * passes * block(arch.embed_dim)
    if reconstruct:
        dim = arch.decoder_embed_dim
        products += kept * arch.embed_dim * dim + tokens * arch.decoder_depth * block(dim)
        products += (config.num_audio_tokens + 3 * config.num_visual_tokens) * patch * dim
    return 2.0 * products


def training_flops(config: ModelConfig, *, reconstruct: bool = True, contrast: bool = True) -> float:
    """FLOPs of one sample in a training step: three times `forward_flops`, as the literature counts.

    The backward pass is two products of the forward's size for each layer. Recomputation by activation
    checkpointing is not counted: it is work, but not the model's. 206 GFLOP for ViT-B at the published
    setting.
    """
    return 3.0 * forward_flops(config, reconstruct=reconstruct, contrast=contrast)


def parameter_count(model: nn.Module, trainable_only: bool = True) -> int:
    """Numbers in the parameters of a model."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable_only)
