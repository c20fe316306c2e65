"""Objectives: a model and its losses, what they read of a clip, what is measured and shown of them."""

from engine.objectives import cav_mae as cav_mae
from engine.objectives import cav_mae_sync as cav_mae_sync
from engine.objectives import dense as dense
from engine.objectives import equiav as equiav
from engine.objectives import mavil as mavil
from engine.objectives import mavil_self_training as mavil_self_training
from engine.objectives import tg_dp as tg_dp
