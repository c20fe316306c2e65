"""EquiAV (Kim et al., ICML 2024, arXiv 2403.09502): two towers, equivariant to described transformations."""

from models.equiav.config import PURPOSES, EquiAvModelConfig
from models.equiav.encoder import EquiAvEncoder
from models.equiav.model import EquiAv
from models.equiav.published import infer_config, recognises, to_ours, to_published
from models.registry import Family, PublishedFormat, register_family

register_family(
    Family(
        name="equiav",
        config=EquiAvModelConfig,
        presets=PURPOSES,
        build=EquiAv,
        build_encoder=EquiAvEncoder,
        published=PublishedFormat(
            title="published EquiAV",
            recognises=recognises,
            infer_config=infer_config,
            to_ours=to_ours,
            to_published=to_published,
        ),
    )
)
