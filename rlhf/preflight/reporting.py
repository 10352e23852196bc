"""Whether the trackers of `report_to` are installed, and can reach what they send to."""

from __future__ import annotations

import netrc
import os
from collections.abc import Iterator
from importlib.metadata import distributions
from urllib.parse import urlsplit

from rlhf.config.schema import Config
from rlhf.preflight.findings import Finding, Level, finding


def trackers(cfg: Config) -> Iterator[Finding]:
    """Looks for their packages without importing them, and for wandb's key where it would send."""
    for name in dict.fromkeys(cfg.report_to):
        # Not by its import: a folder of that name, which wandb makes where it is used, could be taken for it.
        is_installed = any(distributions(name=name))
        way_out = (
            f"Install it (.venv/bin/python -m pip install {name}, or with this package: "
            f"pip install 'rlhf-iterate[{name}]'), or leave it out of report_to."
        )
        yield finding(is_installed, f"report_to={name}: its package", way_out, Level.error)
        if name == "wandb" and is_installed and _sends():
            text = "report_to=wandb: it sends this run's figures and settings to a server"
            way_out = (
                "No key for it was found (wandb login, or WANDB_API_KEY), so it may fail. WANDB_MODE=offline "
                "keeps all of it in the run's folder."
            )
            yield finding(_has_key(), text, way_out)


def _sends() -> bool:
    """Whether wandb is not told to stay offline, by the variable that says so."""
    return os.environ.get("WANDB_MODE", "online").lower() in ("online", "shared", "")


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        return host is not None and netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
