"""Stage `mix`: the weighted sum of several judges' scores, each normalised once for the whole run.

Inputs, for every judge NAME: `scores.NAME`, its scores of the same responses, and `initial.NAME`, its scores of π0's
held-out responses. Output: shards as of `score`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import fmean, pstdev

import numpy as np

from rlhf.config.stage_configs import MixStage
from rlhf.data.records import SCORES_SCHEMA
from rlhf.data.shards import read_all_rows, read_rows, shard_name, write_shard
from rlhf.errors import DataError
from rlhf.run.job import Job, Outcome, Worker
from rlhf.run.stage_table import num_shards


def run(job: Job[MixStage], worker: Worker) -> Outcome:
    """Write Σ_k w_k·(s_k − mean_k) / std_k of every response; NaN where a judge's score is not finite.

    Config: `weights` w by judge. The sum's unit is standard deviations on π0's held-out responses, where its mean is 0.
    Metrics: `mean/NAME` and `std/NAME` of each judge, and those of `disagreement`.

    Raises:
        DataError: a judge's scores cannot be normalised.
    """
    scales = {name: scale(job.input_path(f"initial.{name}"), name) for name in sorted(job.config.weights)}
    total = num_shards(job)
    for index in worker.shards():
        rows = [{"id": name, "scores": terms_KN.sum(axis=0).tolist()} for name, terms_KN in _terms(job, scales, index)]
        scores = [score for row in rows for score in row["scores"]]
        counts = {"prompts": len(rows), "responses": len(scores), "non_finite": sum(map(math.isnan, scores))}
        write_shard(job.out_path / shard_name(index), SCORES_SCHEMA, rows, counts)
        worker.progress(index + 1, total, "shards")
    metrics = {f"{what}/{name}": value for name, found in scales.items() for what, value in found.items()}
    everything = (terms_KN for index in range(total) for _, terms_KN in _terms(job, scales, index))
    return Outcome(metrics=metrics | disagreement(everything, list(scales)))


def scale(scores: Path, name: str) -> dict[str, float]:
    """Mean and standard deviation (of a population) over all finite scores of a judge.

    Raises:
        DataError: there is no finite score, or all are equal.
    """
    finite = [score for row in read_all_rows(scores) for score in row["scores"] if math.isfinite(score)]
    std = pstdev(finite) if finite else 0.0
    if std == 0:
        found = f"all {len(finite)} finite scores are {finite[0]:g}" if finite else "no score is finite"
        raise DataError(
            f"{scores}: judge {name} cannot be normalised: of π0's held-out responses {found}. Look at the judge, take "
            "it out of reward_model.others, or measure on more responses (prompts.num_held_out, evaluate.n)."
        )
    return {"mean": fmean(finite), "std": std}


def _terms(job: Job[MixStage], scales: dict[str, dict[str, float]], index: int) -> Iterator[tuple[str, np.ndarray]]:
    """Each prompt's id, and what the K judges add to the scores of its N responses: (K, N), NaN for no number."""
    shards = [read_rows(job.input_path(f"scores.{name}") / shard_name(index)) for name in scales]
    gains_K1 = np.array([[job.config.weights[name] / found["std"]] for name, found in scales.items()])
    means_K1 = np.array([[found["mean"]] for found in scales.values()])
    for rows in zip(*shards, strict=True):
        assert len({(row["id"], len(row["scores"])) for row in rows}) == 1, "the judges' scores are out of step"
        scores_KN = np.array([row["scores"] for row in rows], dtype=float)
        scores_KN[~np.isfinite(scores_KN)] = math.nan
        yield rows[0]["id"], gains_K1 * (scores_KN - means_K1)


def disagreement(prompts: Iterable[np.ndarray], names: list[str]) -> dict[str, float | None]:
    """How far judges differ, from what each adds to the scores of a prompt's responses (K, N).

    `reversed/NAME`: share of prompts whose best and worst response by the sum that judge alone orders the other way, a
    tie half. `disagreement`: share of response pairs of a prompt that two judges order differently, where neither has a
    tie, averaged over pairs of judges. In 0–1, None of nothing. Responses with a score that is not finite are left out.
    """
    num_ordered, reversed_K = 0, np.zeros(len(names))
    compared_KK, agreed_KK = np.zeros((2, len(names), len(names)))
    for terms_KN in prompts:
        kept_KN = terms_KN[:, np.isfinite(terms_KN).all(axis=0)]
        sums_N = kept_KN.sum(axis=0)
        if sums_N.size and sums_N.max() > sums_N.min():
            num_ordered += 1
            margins_K = kept_KN[:, sums_N.argmax()] - kept_KN[:, sums_N.argmin()]
            reversed_K += (margins_K < 0) + 0.5 * (margins_K == 0)
        first, second = np.triu_indices(sums_N.size, k=1)
        orders_KP = np.sign(kept_KN[:, first] - kept_KN[:, second])
        compared_KK += abs(orders_KP) @ abs(orders_KP).T
        agreed_KK += orders_KP @ orders_KP.T  # those in agreement less those that differ
    compared, agreed = (of_KK[np.triu_indices(len(names), k=1)] for of_KK in (compared_KK, agreed_KK))
    shares = 0.5 - 0.5 * agreed[compared > 0] / compared[compared > 0]
    found: dict[str, float | None] = {"disagreement": float(shares.mean()) if shares.size else None}
    for name, times in zip(names, reversed_K, strict=True):
        found[f"reversed/{name}"] = float(times) / num_ordered if num_ordered else None
    return found
