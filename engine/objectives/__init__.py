"""Objectives: a model and its losses, what they read of a clip, what is measured and shown of them."""

from engine.objectives import cav_mae as cav_mae
from engine.objectives import equiav as equiav
