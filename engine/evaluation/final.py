"""The evaluation at the end of fine-tuning: predictions, metrics, frozen features, files and pictures."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from datasets.loading.config import ClipNeeds
from datasets.loading.loader import evaluation_loader
from datasets.shards.names import public
from engine.evaluation.evaluation import Evaluation
from engine.evaluation.features import Features, embed_set, encoder_vectors
from engine.evaluation.files import summary_lines, write_report
from engine.evaluation.pictures import confusion_picture, error_sheet, per_class_bars, retrieval_sheet
from engine.evaluation.predictions import Predictions, predict
from engine.evaluation.probes import probe_features
from engine.evaluation.retrieval import cross_modal_retrieval, nearest
from engine.evaluation.scores import (
    bootstrap,
    class_scores,
    confusion_matrix,
    is_single_label,
    summary_scores,
)
from engine.objectives.classification import Classification
from engine.records.runlog import RunLog, logger
from engine.tasks.finetune_config import FinetuneConfig
from engine.tasks.labelled_sets import held_out_loader, open_labelled

#: Clips in the pictures of errors and of retrieval.
_PICTURED = 6


class FinalEvaluation(Evaluation[FinetuneConfig, Classification]):
    """Evaluates a classifier; see `Evaluation`."""

    def __call__(self, objective: Classification, name: str, *, classify: bool = True) -> dict[str, Any]:
        """See `Evaluation`."""
        objective.eval()
        settings = self.config.evaluation
        predictions = self._predict(objective) if classify else None
        features = self._features(objective) if settings.frozen_features or not classify else None
        report: dict[str, Any] = {}
        if self.world.is_main:
            if predictions is not None:
                report |= self._measure(predictions)
            if features is not None:
                report["frozen_features"] = self._measure_features(*features)
            report["of"] = self._identity
            write_report(self.run / "evaluation" / name, report, predictions, self.train.classes)
            for line in summary_lines(report):
                logger.info("%s: %s", name, line)
            self._show(objective, name, report, predictions, features)
        self.world.barrier()
        return report

    def _predict(self, objective: Classification) -> Predictions | None:
        """On rank 0."""
        settings = self.config.evaluation
        every_frame = settings.all_frames and self.config.objective.visual
        loader = held_out_loader(self.config, self.train, self.shards, self.world, every_frame=every_frame)
        return predict(
            objective,
            self._until_stopped(loader),
            self.world,
            self.config.data,
            bf16=self.bf16,
            missing=settings.missing_modality,
        )

    def _features(self, objective: Classification) -> tuple[Features, Features] | None:
        """Of the training clips and of those evaluated, on rank 0."""
        loaders = [
            held_out_loader(self.config, self.train, shards, self.world, every_frame=False, probe=True)
            for shards in (self.train.location, self.shards)
        ]
        embed = encoder_vectors(objective.model.encoder, objective.inputs)
        most = self.config.data.max_bad_fraction
        train, test = (
            embed_set(embed, self._until_stopped(loader), self.world, most, self.bf16) for loader in loaders
        )
        return None if train is None or test is None else (train, test)

    def _measure(self, predictions: Predictions) -> dict[str, Any]:
        labels = predictions.labels
        results = {}
        for name, scores in predictions.scores.items():
            results[name] = summary_scores(scores, labels)
            for metric, (low, high) in bootstrap(scores, labels, self.config.evaluation.bootstrap).items():
                results[name] |= {f"{metric}_low": low, f"{metric}_high": high}
        own = str(self.config.objective.modalities)
        shown = f"{own}_ensemble" if f"{own}_ensemble" in predictions.scores else own
        each = class_scores(predictions.scores[shown], labels)
        table = [
            {"class": name, "positives": count, "average_precision": ap, "auc": auc}
            for name, count, ap, auc in zip(
                self.train.classes,
                each.positives.tolist(),
                _without_nan(each.average_precision),
                _without_nan(each.auc),
                strict=True,
            )
        ]
        return {
            "shards": public(self.shards),
            "clips": len(predictions.ids),
            "unreadable": [failure.id for failure in predictions.failures],
            "classes": len(self.train.classes),
            "classes_without_positives": [row["class"] for row in table if not row["positives"]],
            "results": results,
            "per_class_of": shown,
            "per_class": table,
        }

    def _measure_features(self, train: Features, test: Features) -> dict[str, float]:
        """Retrieval on the evaluated clips; linear probe and neighbours fitted on the training clips."""
        device = self.world.device
        try:  # the other ranks wait
            return self._measure_on(train.to(device), test.to(device))
        except torch.OutOfMemoryError:
            logger.warning(
                "%d clips are too many for the memory of %s: frozen features are measured on the CPU",
                len(train.ids), device,
            )  # fmt: skip
        return self._measure_on(train, test)

    def _measure_on(self, train: Features, test: Features) -> dict[str, float]:
        values = cross_modal_retrieval(test.streams["audio"], test.streams["visual"], test.labels)
        return values | probe_features(train, test, self.config.evaluation.probe)

    def _show(
        self,
        objective: Classification,
        name: str,
        report: dict[str, Any],
        predictions: Predictions | None,
        features: tuple[Features, Features] | None,
    ) -> None:
        """Scalars and pictures into TensorBoard and ``RUN/pictures``."""
        log = RunLog(self.run, None, self.step, self.config.log, self.config_yaml)
        for result, values in report.get("results", {}).items():
            log.metrics(self.step, {f"{name}/{result}_{metric}": value for metric, value in values.items()})
        if "frozen_features" in report:
            log.metrics(
                self.step, {f"{name}/{key}": value for key, value in report["frozen_features"].items()}
            )
        if predictions is not None:
            kind = report["per_class_of"]
            scores = predictions.scores[kind]
            log.image(f"{name}/per_class", per_class_bars(report["per_class"], kind), self.step)
            if is_single_label(predictions.labels):
                matrix = confusion_matrix(scores, predictions.labels)
                picture = confusion_picture(matrix, self.train.classes, kind)
                log.image(f"{name}/confusion", picture, self.step)
            if self._pictured():
                log.image(f"{name}/worst_errors", self._errors(objective, predictions, scores), self.step)
        if features is not None and self._pictured():
            log.image(f"{name}/retrieval", self._retrieved(objective, features[1]), self.step)
        log.close()

    def _pictured(self) -> bool:
        """Whether to draw clips: if wanted, and if they have both a sound and a frame to show."""
        table = open_labelled(self.config, self.shards).table
        return self.config.evaluation.pictures and bool(table.num_with_audio and table.num_with_frames)

    def _errors(self, objective: Classification, predictions: Predictions, scores: Tensor) -> Tensor:
        """The clips whose best wrong class beats their own classes by most."""
        labels = predictions.labels
        own = scores.masked_fill(labels == 0, math.inf).amin(1).nan_to_num(posinf=0.0)
        wrong = scores.masked_fill(labels > 0, -math.inf).amax(1)
        worst = (wrong - own).topk(min(_PICTURED, len(scores))).indices.tolist()
        captions = []
        for i in worst:
            true = [self.train.classes[c] for c in labels[i].nonzero().flatten().tolist()]
            guess = int(scores[i].masked_fill(labels[i] > 0, -math.inf).argmax())
            captions.append(
                f"{predictions.ids[i]}: is {', '.join(true) or 'nothing'} ({own[i]:.2f}), "
                f"said {self.train.classes[guess]} ({wrong[i]:.2f})"
            )
        return error_sheet(*self._look_at(objective, predictions.rows[worst]), captions)

    def _retrieved(self, objective: Classification, test: Features) -> Tensor:
        """The five pictures nearest to the sound of some clips."""
        queries = torch.arange(0, len(test.ids), max(1, len(test.ids) // _PICTURED))[:_PICTURED]
        found = nearest(test.streams["audio"][queries], test.streams["visual"], 5)
        wanted = torch.cat([queries, found.flatten()])
        frames, sounds = self._look_at(objective, test.rows[wanted])
        count = len(queries)
        hits = found == queries[:, None]
        return retrieval_sheet(
            sounds[:count], frames[:count], frames[count:].reshape(count, -1, *frames.shape[1:]), hits
        )

    def _look_at(self, objective: Classification, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(n, 3, H, W) uint8 frames and (n, T, F) spectrograms of some clips of the evaluated set."""
        needs = ClipNeeds(image_size=self.config.model.image_size, num_samples=self.config.fbank.num_samples)
        loader = evaluation_loader(self.config.data, self.shards, needs, batch_size=1)
        batch = loader.read([loader.plan.batch(row)[0] for row in rows.tolist()])
        batch = batch.to(self.world.device)
        assert batch.frames is not None
        fbank, _ = objective.inputs(batch)
        assert fbank is not None
        return batch.frames[:, 0].cpu(), fbank.cpu()


def _without_nan(values: Tensor) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values.tolist()]
