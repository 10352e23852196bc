"""What of each stage's settings is part of its artifacts' identity.

The file beside this one holds it as finished runs have it. A new field that is `later` or not compared does not
appear. When another change is meant, and every finished artifact of the stage is to be another one:

    python -m tests.unit.config.test_compared
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from rlhf.config import stage_configs
from rlhf.config.fields import compared

RECORDED = Path(__file__).with_name("compared_at_defaults.json")


def compared_at_defaults() -> dict[str, dict[str, object]]:
    """By class of `rlhf.config.stage_configs`: what is compared of it where nobody has set anything."""
    found = {}
    for name, value in sorted(vars(stage_configs).items()):
        is_stage = isinstance(value, type) and dataclasses.is_dataclass(value)
        # The preflight and trackers leave no artifact, and `compute` is not compared.
        if is_stage and name not in (
            "Config",
            "ComputeConfig",
            "StageCompute",
            "PreflightStage",
            "TrackStage",
        ):
            found[name] = compared(value())
    return found


def test_finished_artifacts_stay_what_they_are():
    recorded = json.loads(RECORDED.read_text())
    now = compared_at_defaults()
    assert {name: now[name] for name in recorded} == recorded


if __name__ == "__main__":
    RECORDED.write_text(json.dumps(compared_at_defaults(), indent=1, sort_keys=True) + "\n")
