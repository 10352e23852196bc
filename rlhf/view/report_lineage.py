"""The part of a report that says what a run was made of: artifacts, settings, gates, versions, machine."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from typing import Any

from rlhf.config.fields import plain
from rlhf.config.schema import Config
from rlhf.data.digest import digest_of_files
from rlhf.data.json_text import json_text
from rlhf.errors import one_line
from rlhf.view.run_folder import RunFolder

_STARTS = re.compile(r"^\S+ \S+ .*: (\d+ stages are finished, \d+ to do|\d+ stages to do)$")
"""What `rlhf.iterate` writes to its log when it begins or goes on."""
_NOT_OF_THE_RECIPE = ("run_dir", "until", "take_over", "debug", "report_to", "reuse")
_LONG = 200
"""Characters of a setting that are shown."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """A setting that is not what the recipe has; `usual` is None of one that this version does not know."""

    key: str
    value: str
    usual: str | None


def changed_settings(config: dict[str, Any]) -> list[Setting]:
    """The settings of a run that differ from the recipe's defaults, in the order of the schema.

    Example:
        [Setting("dpo.beta", "0.05", "0.1"), …]
    """
    return list(_changes(config, plain(Config()), ""))


def _changes(config: dict[str, Any], usual: dict[str, Any], prefix: str) -> Iterator[Setting]:
    for name, value in config.items():
        key = f"{prefix}{name}"
        if key in _NOT_OF_THE_RECIPE:
            continue
        if name not in usual:
            yield Setting(key, _written(value), None)
        elif isinstance(value, dict) and isinstance(usual[name], dict) and usual[name]:
            yield from _changes(value, usual[name], f"{key}.")
        elif value != usual[name] and (value or usual[name]):  # {} and null both say that there is nothing
            yield Setting(key, _written(value), _written(usual[name]))


def _written(value: Any) -> str:
    """A value as it is typed, on one line."""
    text = value if isinstance(value, str) else json_text(value, ascii_only=False, default=str)
    # A URL may hold a password, and a page is sent to others.
    text = one_line(text)
    return f"{text[:_LONG]}…" if len(text) > _LONG else text


@dataclasses.dataclass(frozen=True)
class Stage:
    """A finished stage as a line of the page: `made_of` names the stages whose content it took."""

    name: str
    digest: str
    made_of: str
    seconds: float
    megabytes: float
    counts: str


def stages_of(run: RunFolder) -> list[Stage]:
    """Every finished stage of a run."""
    by_digest = _names_by_digest(run)
    stages = []
    for name, artifact in run.artifacts.items():
        made_of = []
        num_known = 0
        for key, digest in artifact.record["identity"]["inputs"].items():
            if key.startswith("known_"):
                num_known += 1  # what a judge has said of earlier policies, of each of them
            else:
                made_of.append(f"{key} {by_digest.get(digest, digest[:12])}")
        if num_known:
            made_of.append(f"{num_known // 2} earlier policies' scores")
        files = artifact.record["files"].values()
        counts = [f"{key} {value:,}" for key, value in artifact.counts.items() if value]
        stages.append(
            Stage(
                name,
                str(artifact.digest)[:12],
                one_line(", ".join(made_of)),
                float(artifact.record.get("seconds", 0)),
                sum(entry["bytes"] for entry in files) / 1e6,
                one_line(", ".join(counts)),
            )
        )
    return stages


def _names_by_digest(run: RunFolder) -> dict[str, str]:
    """Names of stages, and of files and folders at the top of each, such as `iteration_001/dpo/model`."""
    names = {}
    for name, artifact in run.artifacts.items():
        files = artifact.record["files"]
        for part in {file.split("/")[0] for file in files}:
            names[digest_of_files(files, part)] = f"{name}/{part}"
        names[str(artifact.digest)] = name
    return names


def versions_of(run: RunFolder) -> dict[str, str]:
    """Versions of packages that the stages were made with; several where they differ.

    Example:
        {"torch": "2.13.0", "transformers": "5.19.0, 5.20.0"}
    """
    found: dict[str, dict[str, None]] = {}
    for artifact in run.artifacts.values():
        versions = artifact.record.get("versions", {})
        for package, version in versions.items():
            found.setdefault(package, {})[one_line(version)] = None
    return {package: ", ".join(different) for package, different in found.items()}


def machine_of(run: RunFolder) -> dict[str, str]:
    """Where the stages ran, as far as their manifests say; several values where they differ.

    Example:
        {"device": "auto", "num_training_ranks": "2", …}
    """
    found: dict[str, dict[str, None]] = {}
    for artifact in run.artifacts.values():
        for key, value in artifact.record.get("compute", {}).items():
            if value is not None and key not in ("report_to", "found_budget"):
                found.setdefault(one_line(key), {})[_written(value)] = None
    return {key: ", ".join(values) for key, values in found.items()}


def num_starts(run: RunFolder) -> int | None:
    """How often the run was begun or gone on with, by its log; None where there is none."""
    try:
        with open(run.path / "logs" / "driver.log", encoding="utf-8", errors="replace") as log:
            return sum(1 for line in log if _STARTS.match(line.rstrip("\n"))) or None
    except OSError:
        return None


@dataclasses.dataclass(frozen=True)
class Finding:
    """What a gate, or a stage's own look at itself, found."""

    where: str
    what: str
    text: str


def findings_of(run: RunFolder) -> tuple[list[Finding], str]:
    """Violations of gates and warnings of stages; and what is wrong with the file that has the former."""
    findings = []
    note = ""
    try:
        summary = json.loads((run.path / "summary.json").read_bytes())
        for gate in summary["gates"]:
            what = f"gates.{gate['gate']}, {gate['action']}"
            findings.append(Finding(one_line(gate["where"]), one_line(what), one_line(gate["text"])))
    except FileNotFoundError:
        note = "There is no summary.json yet, which has what gates find: the first iteration writes it."
    except Exception as error:  # whatever stands in a damaged file
        note = f"summary.json, which has what gates found, cannot be read: {one_line(error)}"
    for name, artifact in run.artifacts.items():
        warning = artifact.metrics.get("warning")
        if warning:
            findings.append(Finding(name, "warning", one_line(warning)))
    return findings, note
