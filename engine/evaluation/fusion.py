"""The evaluation of a fusion run: every head by every subset of its modalities."""

from __future__ import annotations

from itertools import chain, combinations
from typing import Any

import torch
from torch import Tensor

from datasets.batch import AVBatch
from datasets.shards.names import public
from engine.evaluation.evaluation import Evaluation
from engine.evaluation.files import write_report
from engine.evaluation.head_scores import class_table, single_label_scores
from engine.evaluation.pictures import confusion_picture
from engine.evaluation.predictions import Predictions, predict_with
from engine.evaluation.scores import bootstrap, confusion_matrix, is_single_label, summary_scores
from engine.objectives.fusion import FusionObjective, Head
from engine.records.runlog import RunLog, logger
from engine.tasks.finetune_config import FusionRunConfig
from engine.tasks.labelled_sets import labelled_loader


def subsets(modalities: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Every subset that is not empty by name, such as ``audio_text``; the largest first."""
    sizes = range(len(modalities), 0, -1)
    found = chain.from_iterable(combinations(modalities, size) for size in sizes)
    return {"_".join(names): names for names in found}


@torch.no_grad()
def subset_scores(
    objective: FusionObjective, batch: AVBatch, wanted: dict[str, tuple[str, ...]]
) -> dict[str, Tensor]:
    """(B, C) probabilities by ``HEAD/SUBSET``; NaN for a clip that has nothing of a subset. The towers run once.

    Args:
        objective: In evaluation mode.
        batch: Clips.
        wanted: From `subsets`.
    """
    model, inputs = objective.model, objective.inputs(batch)
    tokens = model.tokens(inputs)
    everything = inputs.present
    scores = {}
    for name, kept in wanted.items():
        some = torch.stack([everything[m] for m in kept], 1).any(1)
        # A clip that has nothing of the subset is given all that it has, and its scores are thrown away.
        present = {m: there & (~some | (m in kept)) for m, there in everything.items()}
        fused = model.fusion(tokens, present)
        for head, found in fused.probabilities.items():
            scores[f"{head}/{name}"] = found.masked_fill(~some[:, None], torch.nan)
    return scores


def scored(predictions: Predictions, head: Head, key: str) -> tuple[Tensor, Tensor]:
    """(n, C) probabilities and labels of a head, of the clips that have a label of it and were scored.

    Args:
        predictions: With scores by ``HEAD/SUBSET``.
        head: The head.
        key: Of the scores.
    """
    labels, scores = predictions.labels[:, list(head.columns)], predictions.scores[key]
    rows = (labels.sum(1) > 0) & scores.isfinite().all(1)
    return scores[rows], labels[rows]


def measured(scores: Tensor, labels: Tensor, head: Head, resamples: int) -> dict[str, float]:
    """The metrics of some clips: F1 and accuracy, or mAP and others where a clip may have several classes."""
    if not len(labels):
        return {}
    if head.config.loss == "cross_entropy" and is_single_label(labels):
        return single_label_scores(scores, labels, resamples)
    values = summary_scores(scores, labels)
    for name, (low, high) in bootstrap(scores, labels, resamples).items():
        values |= {f"{name}_low": low, f"{name}_high": high}
    return values


class FusionEvaluation(Evaluation[FusionRunConfig, FusionObjective]):
    """See `Evaluation`."""

    def __call__(self, objective: FusionObjective, name: str, *, classify: bool = True) -> dict[str, Any]:
        """See `Evaluation`."""
        objective.eval()
        loader = labelled_loader(self.config, self.train, self.shards, self.world, objective.needs())
        wanted = subsets(objective.modalities)
        predictions = predict_with(
            lambda batch: subset_scores(objective, batch, wanted),
            self._until_stopped(loader),
            self.world,
            self.config.data,
            bf16=self.bf16,
        )
        report: dict[str, Any] = {}
        if predictions is not None:
            report = self._measure(objective, predictions, wanted)
            write_report(self.run / "evaluation" / name, report, predictions, self.train.classes)
            self._show(objective, name, report, predictions, next(iter(wanted)))
        self.world.barrier()
        return report

    def _measure(
        self, objective: FusionObjective, predictions: Predictions, wanted: dict[str, tuple[str, ...]]
    ) -> dict[str, Any]:
        results: dict[str, dict[str, Any]] = {}
        table: list[dict[str, Any]] = []
        confusion: dict[str, list[list[int]]] = {}
        whole = next(iter(wanted))
        for name, head in objective.heads.items():
            for subset in wanted:
                scores, labels = scored(predictions, head, f"{name}/{subset}")
                values = measured(scores, labels, head, self.config.evaluation.bootstrap)
                results[f"{name}/{subset}"] = {"clips": len(labels), **values}
            scores, labels = scored(predictions, head, f"{name}/{whole}")
            if len(labels) and is_single_label(labels):
                table += [{"head": name, **row} for row in class_table(scores, labels, list(head.classes))]
                confusion[name] = confusion_matrix(scores, labels).tolist()
        return {
            "shards": public(self.shards),
            "clips": len(predictions.ids),
            "unreadable": [failure.id for failure in predictions.failures],
            "heads": {name: list(head.classes) for name, head in objective.heads.items()},
            "results": results,
            "per_class_of": whole,
            "per_class": table or [{"head": "", "class": ""}],
            "confusion": confusion,
            "of": self._identity,
        }

    def _show(
        self,
        objective: FusionObjective,
        name: str,
        report: dict[str, Any],
        predictions: Predictions,
        whole: str,
    ) -> None:
        """Lines for the console; scalars and confusion matrices for TensorBoard and ``RUN/pictures``."""
        log = RunLog(self.run, None, self.step)
        for key, values in report["results"].items():
            shown = "  ".join(
                f"{metric} {value:.4f}" for metric, value in values.items() if metric != "clips"
            )
            logger.info("%s: %-26s %s", name, key, shown or "no clip with a label")
            log.metrics(
                self.step, {f"{name}/{key}/{metric}": float(value) for metric, value in values.items()}
            )
        for head, matrix in report["confusion"].items():
            classes = list(objective.heads[head].classes)
            picture = confusion_picture(torch.tensor(matrix), classes, f"{head}, {whole}")
            log.image(f"{name}/confusion_{head}", picture, self.step)
        log.close()
