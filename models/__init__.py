"""Single-device model code: families of encoders with their pretraining models, losses, front ends, weights."""

from models.augment import add_noise, augment_fbank, mask_bands, mix_waveforms, roll_time
from models.cav_mae.config import Architecture, CavMaeModelConfig
from models.cav_mae.decoder import AudioVisualDecoder
from models.cav_mae.encoder import AudioVisualEncoder
from models.cav_mae.mae import AudioVisualMAE, MAEOutput
from models.cav_mae.workload import forward_flops, training_flops
from models.cav_mae_sync import CavMaeSync, CavMaeSyncEncoder, CavMaeSyncModelConfig
from models.classifier import AudioVisualClassifier
from models.config import ModelConfig
from models.dense import DenseModelConfig
from models.encoders import Embeddings, Encoder
from models.equiav import EquiAv, EquiAvEncoder, EquiAvModelConfig
from models.frontend import AudioFrontEnd, FbankConfig, VisualFrontEnd
from models.layers.blocks import Streams
from models.layers.masking import Mask, MaskConfig, Masker, MaskStrategy
from models.losses import info_nce, normalize_patches, nt_xent, reconstruction_loss
from models.mavil import MAVIL_FBANK, MavilEncoder, MavilMAE, MavilModelConfig
from models.pretrained import PretrainedEncoders, load_pretrained
from models.registry import (
    Extension,
    Family,
    PublishedFormat,
    build_encoder,
    build_model,
    create_config,
    create_model,
    families,
    family_of,
    list_models,
    register_family,
)
from models.sample_random import Stream, pass_stream, uniform, uniforms
from models.workload import Workload, parameter_count

__all__ = [
    "MAVIL_FBANK",
    "Architecture",
    "AudioFrontEnd",
    "AudioVisualClassifier",
    "AudioVisualDecoder",
    "AudioVisualEncoder",
    "AudioVisualMAE",
    "CavMaeModelConfig",
    "CavMaeSync",
    "CavMaeSyncEncoder",
    "CavMaeSyncModelConfig",
    "DenseModelConfig",
    "Embeddings",
    "Encoder",
    "EquiAv",
    "EquiAvEncoder",
    "EquiAvModelConfig",
    "Extension",
    "Family",
    "FbankConfig",
    "MAEOutput",
    "Mask",
    "MaskConfig",
    "MaskStrategy",
    "Masker",
    "MavilEncoder",
    "MavilMAE",
    "MavilModelConfig",
    "ModelConfig",
    "PretrainedEncoders",
    "PublishedFormat",
    "Stream",
    "Streams",
    "VisualFrontEnd",
    "Workload",
    "add_noise",
    "augment_fbank",
    "build_encoder",
    "build_model",
    "create_config",
    "create_model",
    "families",
    "family_of",
    "forward_flops",
    "info_nce",
    "list_models",
    "load_pretrained",
    "mask_bands",
    "mix_waveforms",
    "normalize_patches",
    "nt_xent",
    "parameter_count",
    "pass_stream",
    "reconstruction_loss",
    "register_family",
    "roll_time",
    "training_flops",
    "uniform",
    "uniforms",
]
