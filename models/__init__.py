"""Single-device model code: encoders, masked autoencoder, losses, front ends."""

from models.augment import add_noise, augment_fbank, mask_bands, mix_waveforms, roll_time
from models.blocks import Streams
from models.classifier import AudioVisualClassifier
from models.config import Architecture, MaskConfig, MaskStrategy, ModelConfig
from models.decoder import AudioVisualDecoder
from models.encoder import AudioVisualEncoder
from models.flops import forward_flops, parameter_count, training_flops
from models.frontend import AudioFrontEnd, FbankConfig, VisualFrontEnd
from models.losses import info_nce, normalize_patches, reconstruction_loss
from models.mae import AudioVisualMAE, MAEOutput
from models.masking import Mask, Masker
from models.pretrained import Embeddings, PretrainedEncoders, load_pretrained
from models.random import Stream, uniform
from models.registry import build_model, create_model, list_models, register_model

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
    "parameter_count",
    "reconstruction_loss",
    "register_model",
    "roll_time",
    "training_flops",
    "uniform",
]
