"""DeepSpeed's checkpoints are pickles, and it loads them as such; here it loads nothing but tensors and plain values.

Every ``torch.load`` of DeepSpeed asks for a full unpickling, which runs what a file tells it to. torch can be told from
outside to load restrictedly all the same; DeepSpeed's own bookkeeping then needs the four classes below.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_FORCE, _FORBID = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


@contextmanager
def tensors_only() -> Iterator[None]:
    """Within it every ``torch.load`` of this process is restricted, whatever its arguments say.

    A file that holds more than tensors, plain values and DeepSpeed's own bookkeeping raises ``pickle.UnpicklingError``
    before anything of it is run.
    """
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    classes = [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]
    before = {name: os.environ.pop(name, None) for name in (_FORCE, _FORBID)}
    os.environ[_FORCE] = "1"
    try:
        with torch.serialization.safe_globals(classes):
            yield
    finally:
        del os.environ[_FORCE]
        os.environ.update({name: value for name, value in before.items() if value is not None})
