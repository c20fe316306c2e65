"""CAV-MAE Sync (arXiv 2505.01237): pictures beside their stretch of sound, global tokens, registers."""

import re

from models.cav_mae_sync.config import PURPOSES, CavMaeSyncModelConfig
from models.cav_mae_sync.encoder import CavMaeSyncEncoder
from models.cav_mae_sync.model import CavMaeSync
from models.cav_mae_sync.published import infer_config, limits, recognises, to_ours
from models.registry import Extension, Family, PublishedFormat, register_family
from models.weights.published import to_published

register_family(
    Family(
        name="cav_mae_sync",
        config=CavMaeSyncModelConfig,
        presets=PURPOSES,
        build=CavMaeSync,
        build_encoder=CavMaeSyncEncoder,
        published=PublishedFormat(
            title="published CAV-MAE Sync",
            recognises=recognises,
            infer_config=infer_config,
            to_ours=to_ours,
            to_published=to_published,
            limits=limits,
        ),
        extends=Extension(
            family="cav_mae",
            added=re.compile(r"encoder\.(registers|contrast_blocks_\w+\..+|(audio|visual)\.global_token)"),
        ),
    )
)
