"""Dense grounding: similarities of every sound token with every picture token, and what is learned from them."""

from models.dense.config import PURPOSES, DenseModelConfig
from models.dense.encoder import DenseEncoder
from models.dense.model import DenseModel
from models.registry import Family, register_family

register_family(
    Family(
        name="dense",
        config=DenseModelConfig,
        presets=PURPOSES,
        build=DenseModel,
        build_encoder=DenseEncoder,
    )
)
