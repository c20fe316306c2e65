"""MAViL (Huang et al., NeurIPS 2023, arXiv 2212.08071): two towers, fusion blocks, a decoder a modality."""

from models.frontend import FbankConfig

#: The spectrogram of the published MAViL: AudioSet's mean, and twice its standard deviation, as in AudioMAE.
MAVIL_FBANK = FbankConfig(mean=-4.2677393, std=2 * 4.5689974)
