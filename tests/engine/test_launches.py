"""How many operations a step gives to the device: on a GPU each is a launch, and small models wait for nothing else."""

from __future__ import annotations

from collections import Counter
from typing import Any

from support.objectives import tiny_batch, tiny_objective
from torch.utils._python_dispatch import TorchDispatchMode

from engine.training.optimizer import OptimizerConfig, build_optimizer, clip_gradients, skip_unless_finite

#: What launches nothing.
_FREE = {
    "view", "_unsafe_view", "expand", "transpose", "t", "permute", "slice", "select", "unbind", "split",
    "split_with_sizes", "unsqueeze", "squeeze", "detach", "alias", "as_strided", "unfold", "view_as_real",
    "lift_fresh", "empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided",
}  # fmt: skip


class _Launches(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.seen[name] += name not in _FREE
        return func(*args, **(kwargs or {}))


def test_a_step_keeps_to_its_budget() -> None:
    """CAV-MAE with a block of each kind, 79 parameters."""
    objective = tiny_objective("cav_mae")
    batch = tiny_batch(objective, [0, 1, 2, 3])
    optimizer = build_optimizer(OptimizerConfig(), objective.model, objective.no_weight_decay())
    counted: dict[str, Counter[str]] = {}
    for _ in range(2):  # the first step makes Adam's state
        optimizer.zero_grad()
        with _Launches() as forward:
            loss = objective(batch)["loss"]
        with _Launches() as backward:
            loss.backward()  # pyright: ignore[reportPossiblyUnbound]
        gradients = [p.grad for p in objective.model.parameters() if p.grad is not None]
        with _Launches() as clipping:
            skip_unless_finite(optimizer, clip_gradients(gradients, 1.0, partitioned=False))
        with _Launches() as adam:
            optimizer.step()
        counted = {
            "forward": forward.seen, "backward": backward.seen, "clipping": clipping.seen, "adam": adam.seen,
        }  # fmt: skip
    launches = {name: seen.total() for name, seen in counted.items()}
    budget = {"forward": 345, "backward": 212, "clipping": 25, "adam": 10}
    assert all(launches[name] <= budget[name] for name in budget), launches
    assert sum(launches.values()) <= 580
    assert not counted["backward"]["index_put"]  # a gather whose backward pass sorts
