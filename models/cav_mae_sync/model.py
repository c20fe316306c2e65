"""CAV-MAE Sync: the encoder with its decoder, one pass at a time."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from models.cav_mae.decoder import AudioVisualDecoder
from models.cav_mae.mae import JointAutoencoder
from models.cav_mae_sync.config import CavMaeSyncModelConfig
from models.cav_mae_sync.encoder import CavMaeSyncEncoder, SyncStreams
from models.layers.masking import Mask


@dataclass(frozen=True)
class SyncOutput:
    """What a pass computes; parts not asked for are None.

    Attributes:
        streams: The encoder's, over kept patches.
        pred_audio: (B, La, P*P) predicted audio patches.
        pred_visual: (B, Lv, P*P*3) predicted visual patches.
    """

    streams: SyncStreams
    pred_audio: Tensor | None = None
    pred_visual: Tensor | None = None


class CavMaeSync(JointAutoencoder[CavMaeSyncModelConfig, CavMaeSyncEncoder]):
    """CAV-MAE Sync. Losses are the caller's, and so are the masks: passes may have masks of their own.

    Args:
        config: Sizes of model and input.
    """

    def __init__(self, config: CavMaeSyncModelConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = CavMaeSyncEncoder(config)
        self.decoder = AudioVisualDecoder(config)

    def forward(
        self,
        fbank: Tensor,
        frames: Tensor,
        mask_audio: Mask,
        mask_visual: Mask,
        *,
        reconstruct: bool = True,
        contrast: bool = True,
    ) -> SyncOutput:
        """Encodes what the masks keep, and decodes.

        Args:
            fbank: (B, T, F) stretches of normalised log-mel.
            frames: (B, 3, H, W) normalised pictures, one beside each stretch.
            mask_audio: Over La patches.
            mask_visual: Over Lv patches.
            reconstruct: Whether the joint stream and the decoder's predictions are needed.
            contrast: Whether the single-modality streams and global tokens are needed.
        """
        keep_audio, keep_visual = mask_audio.ids_keep, mask_visual.ids_keep
        streams = self.encoder(fbank, frames, keep_audio, keep_visual, joint=reconstruct, separate=contrast)
        if streams.joint is None:
            return SyncOutput(streams)
        return SyncOutput(streams, *self.decoder(streams.joint, keep_audio, keep_visual))
