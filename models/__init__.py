"""Single-device model code: encoders, masked autoencoder, losses, front ends."""

from models.augment import add_noise, augment_fbank, mask_bands, mix_waveforms, roll_time
from models.cav_mae.config import Architecture, MaskConfig, MaskStrategy, ModelConfig
from models.cav_mae.decoder import AudioVisualDecoder
from models.cav_mae.encoder import AudioVisualEncoder
from models.cav_mae.mae import AudioVisualMAE, MAEOutput
from models.classifier import AudioVisualClassifier
from models.flops import forward_flops, parameter_count, training_flops
from models.frontend import AudioFrontEnd, FbankConfig, VisualFrontEnd
from models.layers.blocks import Streams
from models.layers.masking import Mask, Masker
from models.losses import info_nce, normalize_patches, nt_xent, reconstruction_loss
from models.pretrained import Embeddings, PretrainedEncoders, load_pretrained
from models.registry import build_model, create_model, list_models, register_model
from models.sample_random import Stream, uniform

__all__ = [
    "Architecture",
    "AudioFrontEnd",
    "AudioVisualClassifier",
    "AudioVisualDecoder",
    "AudioVisualEncoder",
    "AudioVisualMAE",
    "Embeddings",
    "FbankConfig",
    "MAEOutput",
    "Mask",
    "MaskConfig",
    "MaskStrategy",
    "Masker",
    "ModelConfig",
    "PretrainedEncoders",
    "Stream",
    "Streams",
    "VisualFrontEnd",
    "add_noise",
    "augment_fbank",
    "build_model",
    "create_model",
    "forward_flops",
    "info_nce",
    "list_models",
    "load_pretrained",
    "mask_bands",
    "mix_waveforms",
    "normalize_patches",
    "nt_xent",
    "parameter_count",
    "reconstruction_loss",
    "register_model",
    "roll_time",
    "training_flops",
    "uniform",
]
