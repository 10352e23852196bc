"""Where a run is to stop: a stage as a person names it, among those that the run has."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rlhf.errors import ConfigError
from rlhf.run.stage_table import STAGES

_ITERATION = re.compile(r"iteration_\d+/")


def last_stage(until: str, names: Sequence[str]) -> str | None:
    """The name of the stage after which a run stops; None for its very end.

    A name that several iterations have means the first of them: `dpo` is `iteration_001/dpo`, and
    `held_out/score` is π0's. A folder, such as `iteration_001` or `judge`, means the last stage in it.

    Args:
        until: what a person says.
        names: the folders of the run's stages, in the order in which they are made.

    Raises:
        ConfigError: the run has no such stage.
    """
    wanted = until.strip("/")
    if wanted == "export":  # made of the best policy, after all the others
        return None
    for name in names:
        if wanted in (name, _ITERATION.sub("", name)):
            return name
    inside = [name for name in names if name.startswith(f"{wanted}/")]
    if inside:
        return inside[-1]
    # `gold` lies in no iteration but in its evaluation, a data set under the key that asks for it.
    for name in names:
        if name.endswith(f"/{wanted}"):
            return name
    if wanted == "dataset" and (data := [name for name in names if name.startswith("data/")]):
        return data[0]
    raise ConfigError(_unknown(until, names))


def _unknown(until: str, names: Sequence[str]) -> str:
    """What there is in place of a stage that this run has not."""
    shown = dict.fromkeys(_ITERATION.sub("", name) for name in names)
    what = "a stage that this run does not have" if until in STAGES else "no stage"
    return (
        f"until={until}: {what}. It has, in this order: {', '.join([*shown, 'export'])}. iteration_00T/ in "
        "front names that of iteration T (else it is the first); iteration_00T alone is the last one there."
    )
