"""MAViL (Huang et al., NeurIPS 2023, arXiv 2212.08071): two towers, fusion blocks, a decoder a modality."""

from models.frontend import FbankConfig
from models.mavil.config import PURPOSES, MavilModelConfig
from models.mavil.encoder import MavilEncoder
from models.mavil.mae import MavilMAE
from models.mavil.published import infer_config, recognises, to_ours, to_published
from models.mavil.vit import pull, why_anew, why_ignored
from models.registry import Family, PublishedFormat, VitRules, register_family

#: The spectrogram of the published MAViL: AudioSet's mean, and twice its standard deviation, as in AudioMAE.
MAVIL_FBANK = FbankConfig(mean=-4.2677393, std=2 * 4.5689974)

register_family(
    Family(
        name="mavil",
        config=MavilModelConfig,
        presets=PURPOSES,
        build=MavilMAE,
        build_encoder=MavilEncoder,
        published=PublishedFormat(
            title="published MAViL",
            recognises=recognises,
            infer_config=infer_config,
            to_ours=to_ours,
            to_published=to_published,
            encoder_alone=True,
            fbank=MAVIL_FBANK,
        ),
        vit=VitRules(pull, why_anew, why_ignored),
    )
)
