"""Many prompts in little memory: each is one piece of bytes until it is written."""

from __future__ import annotations

import hashlib
from array import array

import numpy as np
import orjson
import pyarrow as pa

from rlhf.data.origins import Origin
from rlhf.data.records import Prompt
from rlhf.data.schemas import PROMPT_SCHEMA

_ROWS_AT_A_TIME = 4096
"""Prompts that are objects at the same time."""
_MOST_TEXT_BYTES = 2**31 - 1
"""Of one piece of an Arrow column of texts, whose offsets have 32 bits."""


class PackedPrompts:
    """Distinct prompts, each by its place in the order in which they were added.

    One takes its text and about 55 bytes; as objects, a million short ones would be 2 GB.
    """

    def __init__(self) -> None:
        self._ids = array("Q")
        self._messages: list[bytes] = []
        self._origins = array("L")
        self._numbers: dict[Origin, int] = {}
        """Of the origins that occur: prompts have few, and share them."""

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, prompt: Prompt, origin: Origin) -> None:
        """Add one that is not there yet."""
        self._ids.append(int(prompt.id, 16))
        packed = orjson.dumps(prompt.messages)
        # A copy: what orjson gives keeps the room of a kilobyte that it was written in.
        self._messages.append(bytes(memoryview(packed)))
        self._origins.append(self._numbers.setdefault(origin, len(self._numbers)))

    def ids(self) -> np.ndarray:
        """The ids of all (N) as numbers of 64 bits."""
        return np.array(self._ids, dtype=np.uint64)

    def name(self, place: int) -> str:
        """The id of one, as rows have it."""
        return f"{self._ids[place]:016x}"

    def origins(self, places: np.ndarray) -> dict[str, Origin]:
        """Where some of them come from, by id."""
        known = list(self._numbers)
        found = {}
        for place in places.tolist():
            number = self._origins[place]
            found[self.name(place)] = known[number]
        return found

    def shuffled(self, seed: int) -> np.ndarray:
        """Their places (N) in an order that depends on the seed and on each prompt: sha256(seed, id)."""
        # No random.shuffle: there one more prompt, or another order of the file, would move all the others.
        digests = bytearray()
        for place in range(len(self)):
            text = f"{seed}/{self.name(place)}"
            digests += hashlib.sha256(text.encode()).digest()
        return np.argsort(np.frombuffer(bytes(digests), dtype="S32"), kind="stable")

    def take(self, places: np.ndarray) -> pa.Table:
        """Some of them as rows of `PROMPT_SCHEMA`, in the order of `places`.

        Their text is given away, so that it does not take its memory twice.
        """
        tables = [PROMPT_SCHEMA.empty_table()]
        num_bytes = 0
        for start in range(0, len(places), _ROWS_AT_A_TIME):
            rows = []
            for place in places[start : start + _ROWS_AT_A_TIME].tolist():
                packed = self._messages[place]
                assert packed, "a prompt is taken once"
                self._messages[place] = b""
                num_bytes += len(packed)
                rows.append({"id": self.name(place), "messages": orjson.loads(packed)})
            tables.append(pa.Table.from_pylist(rows, schema=PROMPT_SCHEMA))
        table = pa.concat_tables(tables)
        # In one piece where that can be: where pieces end shows in the bytes of a Parquet file.
        return table.combine_chunks() if num_bytes <= _MOST_TEXT_BYTES else table
