"""CAV-MAE: encoder, decoder, masked autoencoder."""

from models.cav_mae.config import PURPOSES, CavMaeModelConfig
from models.cav_mae.encoder import AudioVisualEncoder
from models.cav_mae.mae import AudioVisualMAE
from models.registry import Family, register_family

register_family(
    Family(
        name="cav_mae",
        config=CavMaeModelConfig,
        presets=PURPOSES,
        build=AudioVisualMAE,
        build_encoder=AudioVisualEncoder,
    )
)
