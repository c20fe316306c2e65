"""A pretraining run from its config: data, model, objective, trainer, and what is measured on held-out clips."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from datasets.batch import AVBatch
from datasets.loader import evaluation_loader, open_training_set, train_loader
from engine.checkpoint import load_weights
from engine.config import PretrainConfig, save_config
from engine.distributed import World
from engine.objectives.base import Objective
from engine.objectives.cav_mae import CavMae
from engine.peak import measured_peak_flops
from engine.pictures import reconstructions
from engine.retrieval import cross_modal_retrieval
from engine.runlog import RunLog, logger
from engine.trainer import Trainer, TrainingData
from models import build_model

#: Clips in the pictures of reconstructions.
_PICTURED = 4
