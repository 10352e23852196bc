"""Chat templates beside the main one: for tools, for retrieval, or whatever a model's makers have named."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from rlhf.models.folder import read_object

_FOLDER = "additional_chat_templates"
"""Where transformers keeps them, one file each, named as the template is."""
_PLAIN_NAME = re.compile(r"\w[\w.-]*")


def copy_other_templates(source: Path, target: Path) -> None:
    """Copy the files with other chat templates from one model folder to another."""
    for file in sorted((source / _FOLDER).glob("*.jinja")):
        (target / _FOLDER).mkdir(exist_ok=True)
        shutil.copyfile(file, target / _FOLDER / file.name)


def keep_listed_templates(source: Path, target: Path) -> None:
    """Write as files what tokenizer_config.json of `source` lists, where the tokenizer has been saved anew.

    A tokenizer that was given another main template has forgotten them.
    """
    config = source / "tokenizer_config.json"
    if not config.is_file():
        return
    templates = read_object(config).get("chat_template")
    # One template is a text, several are a list.
    if not isinstance(templates, list):
        return
    for entry in templates:
        name = str(entry["name"])
        file = target / _FOLDER / f"{name}.jinja"
        # A name may come from anywhere, and must not lead out of the folder.
        if name == "default" or not _PLAIN_NAME.fullmatch(name) or file.exists():
            continue
        file.parent.mkdir(exist_ok=True)
        file.write_text(entry["template"], encoding="utf-8")
