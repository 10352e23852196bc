"""Stage `mix`: the weighted sum of several judges' scores, each normalised once for the whole run.

Inputs, for every judge NAME: `scores.NAME`, its scores of the same responses, and `initial.NAME`,
its scores of π0's held-out responses. Output: shards as of `score`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import fmean, pstdev
from typing import NamedTuple

import numpy as np

from rlhf.config.stage_configs import MixStage
from rlhf.data.schemas import SCORES_SCHEMA
from rlhf.data.shards import read_all_rows, read_rows, shard_name, write_shard
from rlhf.errors import DataError
from rlhf.run.job import Job, Outcome, Worker
from rlhf.run.stage_table import num_shards


def run(job: Job[MixStage], worker: Worker) -> Outcome:
    """Write Σ_k w_k·(s_k − mean_k) / std_k of every response; NaN where a judge's score is not finite.

    Config: `weights` w by judge. The sum's unit is standard deviations on π0's held-out responses,
    where its mean is 0. Metrics: `mean/NAME` and `std/NAME` of each judge, and those of
    `disagreement`.

    Raises:
        DataError: a judge's scores cannot be normalised.
    """
    # Sorted: the order of the sum decides its last digits, and must not hang on that of the config.
    names = sorted(job.config.weights)
    scales = {name: scale(job.input_path(f"initial.{name}"), name) for name in names}
    total = num_shards(job)
    for index in worker.shards():
        _mix_shard(job, scales, index)
        worker.progress(index + 1, total, "shards")
    metrics: dict[str, float | None] = {}
    for name in names:
        metrics[f"mean/{name}"] = scales[name]["mean"]
        metrics[f"std/{name}"] = scales[name]["std"]
    # All shards are read again, since those of an earlier attempt were not made here.
    metrics |= disagreement(_all_terms(job, scales, total), names)
    return Outcome(metrics=metrics)


def _mix_shard(job: Job[MixStage], scales: dict[str, dict[str, float]], index: int) -> None:
    rows = []
    num_responses = 0
    num_non_finite = 0
    for prompt in _prompts(job, scales, index):
        sums = prompt.terms_KN.sum(axis=0).tolist()
        rows.append({"id": prompt.id, "scores": sums})
        num_responses += len(sums)
        num_non_finite += sum(map(math.isnan, sums))
    counts = {"prompts": len(rows), "responses": num_responses, "non_finite": num_non_finite}
    write_shard(job.out_path / shard_name(index), SCORES_SCHEMA, rows, counts)


def scale(scores: Path, name: str) -> dict[str, float]:
    """Mean and standard deviation (of a population) over all finite scores of a judge.

    Raises:
        DataError: there is no finite score, or all are equal.

    Example:
        {"mean": 2.0, "std": 1.0} of shards with the row {"id": "5f1c…", "scores": [1.0, 3.0]}
    """
    finite: list[float] = []
    for row in read_all_rows(scores):
        finite.extend(filter(math.isfinite, row["scores"]))
    std = pstdev(finite) if finite else 0.0
    if std == 0:
        reason = "no score is finite"
        if finite:
            reason = f"all {len(finite)} finite scores are {finite[0]:g}"
        raise DataError(
            f"{scores}: judge {name} cannot be normalised: of π0's held-out responses {reason}. "
            "Look at the judge, take it out of reward_model.others, or measure on more responses "
            "(prompts.num_held_out, evaluate.n)."
        )
    return {"mean": fmean(finite), "std": std}


class _Prompt(NamedTuple):
    """What the K judges add to the scores of a prompt's N responses: (K, N), NaN where a score is
    not finite.
    """

    id: str
    terms_KN: np.ndarray


def _prompts(job: Job[MixStage], scales: dict[str, dict[str, float]], index: int) -> Iterator[_Prompt]:
    """The prompts of one shard, in order."""
    shards = []
    gains = []
    means = []
    for name, of_judge in scales.items():
        shards.append(read_rows(job.input_path(f"scores.{name}") / shard_name(index)))
        gains.append(job.config.weights[name] / of_judge["std"])
        means.append(of_judge["mean"])
    gains_K1 = np.array(gains)[:, None]
    means_K1 = np.array(means)[:, None]
    for rows in zip(*shards, strict=True):
        shapes = {(row["id"], len(row["scores"])) for row in rows}
        assert len(shapes) == 1, "the judges' scores are out of step"
        scores_KN = np.array([row["scores"] for row in rows], dtype=float)
        # A sum with infinity would look like a score; with NaN it is left out, as one judge's NaN is.
        scores_KN[~np.isfinite(scores_KN)] = math.nan
        yield _Prompt(rows[0]["id"], gains_K1 * (scores_KN - means_K1))


def _all_terms(job: Job[MixStage], scales: dict[str, dict[str, float]], total: int) -> Iterator[np.ndarray]:
    for index in range(total):
        for prompt in _prompts(job, scales, index):
            yield prompt.terms_KN


def disagreement(prompts: Iterable[np.ndarray], names: list[str]) -> dict[str, float | None]:
    """How far judges differ, from what each adds to the scores of a prompt's responses (K, N).

    `reversed/NAME`: share of prompts whose best and worst response by the sum that judge alone
    orders the other way, a tie half. `disagreement`: share of response pairs of a prompt that two
    judges order differently, where neither has a tie, averaged over pairs of judges. In 0–1, None
    of nothing. Responses with a score that is not finite are left out.

    Example:
        {"disagreement": 0.25, "reversed/main": 0.0, "reversed/safety": 0.5}
    """
    num_judges = len(names)
    num_ordered = 0
    reversed_K = np.zeros(num_judges)
    compared_KK = np.zeros((num_judges, num_judges))
    agreed_KK = np.zeros((num_judges, num_judges))
    for terms_KN in prompts:
        is_finite_N = np.isfinite(terms_KN).all(axis=0)
        finite_KN = terms_KN[:, is_finite_N]
        sums_N = finite_KN.sum(axis=0)
        if sums_N.size and sums_N.max() > sums_N.min():
            num_ordered += 1
            margins_K = finite_KN[:, sums_N.argmax()] - finite_KN[:, sums_N.argmin()]
            reversed_K += margins_K < 0
            reversed_K += 0.5 * (margins_K == 0)
        # Of every pair of responses, how each judge orders it: 1, −1, or 0 for a tie.
        first, second = np.triu_indices(sums_N.size, k=1)
        orders_KP = np.sign(finite_KN[:, first] - finite_KN[:, second])
        is_ordered_KP = abs(orders_KP)
        compared_KK += is_ordered_KP @ is_ordered_KP.T
        # The product is 1 where two judges agree and −1 where they differ: pairs in agreement less
        # the others.
        agreed_KK += orders_KP @ orders_KP.T
    judge_pairs = np.triu_indices(num_judges, k=1)
    compared = compared_KK[judge_pairs]
    agreed = agreed_KK[judge_pairs]
    # With a in agreement and d that differ, (a − d) / (a + d) = 1 − 2·d / (a + d).
    was_compared = compared > 0
    shares = 0.5 - 0.5 * agreed[was_compared] / compared[was_compared]
    metrics: dict[str, float | None] = {"disagreement": float(shares.mean()) if shares.size else None}
    for name, num_reversed in zip(names, reversed_K, strict=True):
        metrics[f"reversed/{name}"] = float(num_reversed) / num_ordered if num_ordered else None
    return metrics
