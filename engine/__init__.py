"""Training: objectives on DeepSpeed, checkpoints, what is seen of a run, evaluation."""

import os

# Read by OpenMP when torch is first imported. Threads that wait by spinning take the cores from the reader's
# processes, and from the other ranks where several share a machine: a step then takes many times as long. Spinning for
# a moment, until the next operation comes, spares the many small ones a sleep and a waking each.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

# Read by torch at its first allocation: large tensors ask for pages of 2 MB, which Linux gives where it may. Nothing on
# systems without them.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
