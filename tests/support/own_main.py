"""Earsight's programs with an objective of one's own: register it, then run the program."""

import sys

from support.own_objective import register

from engine.preflight.checks import main as preflight
from main_pretrain import main as pretrain
from models.export.formats import main as export

if __name__ == "__main__":
    register()
    program = {"pretrain": pretrain, "preflight": preflight, "export": export}[sys.argv.pop(1)]
    sys.exit(program())
