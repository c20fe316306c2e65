"""How much memory a training step takes on a GPU, from the sizes of model and batch alone."""

from __future__ import annotations

from engine.parallel.deepspeed_engine import BUCKET
from models import ModelConfig

#: Numbers that DeepSpeed reduces at a time without ZeRO: its ``MEMORY_OPT_ALLREDUCE_SIZE``, which is no setting.
_BUCKET_WITHOUT_ZERO = 500_000_000


def state_bytes(parameters: int, trainable: int, world_size: int, zero_stage: int, bf16: bool) -> int:
    """Bytes of weights, gradients and Adam's state on a GPU (arXiv 1910.02054, with float32 weights).

    Stages 1 and 2 update a copy of each rank's part of the weights, which counts with Adam's moments. Gradients
    are reduced through a buffer, which several processes have besides.

    Args:
        parameters: Of the model.
        trainable: Those of them that are trained.
        world_size: Processes.
        zero_stage: 1 partitions Adam's moments, 2 also the gradients.
        bf16: Whether autocast keeps 16-bit copies of the weights.
    """
    gradients = 4 * trainable // (world_size if zero_stage >= 2 else 1)
    moments = 12 * trainable // world_size if zero_stage >= 1 else 8 * trainable
    bucket = BUCKET if zero_stage else min(trainable, _BUCKET_WITHOUT_ZERO) * (world_size > 1)
    return (6 if bf16 else 4) * parameters + gradients + moments + 4 * bucket


def activation_bytes(model: ModelConfig, tokens: int, joint_passes: int, bf16: bool, decode: bool) -> int:
    """Bytes that one clip's forward pass keeps for the backward pass.

    A block keeps for each token the inputs of its two norms (float32, as the residual stream is) with their
    statistics; and, in the precision of the products, what the norms say, q, k and v, what attention says (with
    its log-sum-exp: attention is fused) and the MLP's hidden layer before and after the GELU. With activation
    checkpointing it keeps its input, and one block at a time is there in full. Beside the blocks count patches,
    last norms and the errors of the predictions.

    Args:
        model: The model.
        tokens: Tokens of the clip in the encoder.
        joint_passes: How often they pass the joint blocks.
        bf16: Whether autocast computes in 16 bits.
        decode: Whether the decoder runs, over all tokens.
    """
    arch, wide = model.architecture, 2 if bf16 else 4
    patch = model.patch_size**2

    def block(dim: int, heads: int) -> float:
        return (2 * 4 + (6 + 2 * model.mlp_ratio) * wide) * dim + 16 + 4 * heads

    passing = tokens * (arch.modality_depth + arch.joint_depth * joint_passes)
    encoder = block(arch.embed_dim, arch.num_heads)
    ends = tokens * (2 * patch * wide + joint_passes * 4 * arch.embed_dim)
    largest, kept = tokens * joint_passes * encoder, 4.0 * passing * arch.embed_dim
    full = passing * encoder
    if decode:
        all_tokens = model.num_audio_tokens + model.num_visual_tokens
        decoder = block(arch.decoder_embed_dim, arch.decoder_num_heads)
        ends += tokens * wide * arch.embed_dim + all_tokens * (4 + wide) * arch.decoder_embed_dim
        ends += 4 * patch * (model.num_audio_tokens + 3 * model.num_visual_tokens)
        largest = max(largest, all_tokens * decoder)
        kept += 4 * all_tokens * arch.decoder_depth * arch.decoder_embed_dim
        full += all_tokens * arch.decoder_depth * decoder
    return round(ends + (kept + largest if model.activation_checkpointing else full))
