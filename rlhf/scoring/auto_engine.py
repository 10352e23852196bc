"""The engine that `score.engine=auto` comes to, as far as it can be told before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterable

from rlhf.models.fallback import vllm_is_installed
from rlhf.models.folder import own_classifier
from rlhf.models.weight_files import num_parameters

_SMALL_WORK = 1e11
"""Parameters × tokens on a CPU. Against transformers, vLLM's start took 0.8 processor seconds more in a
preloaded worker, and scoring less by 2.2e-5 a token with 1.3 M parameters and 3.1e-4 with 23 M: both make up
for it at about 6e10, and each of two workers starts an engine."""
_WORK_OF_A_REQUEST = 1e8
"""What vLLM does for each conversation, however short, in the same unit: 1.5 ms. With 1.3 M parameters and 50
tokens a conversation it took 2.2 ms, and transformers 1.7."""
_CHARACTERS_PER_TOKEN = 4


def why_transformers(judge: str, lengths: Iterable[int], on_gpu: bool) -> str:
    """Why a judge need not be tried in vLLM; "" where it is to be.

    Args:
        judge: its folder.
        lengths: characters of every conversation that the stage is about; read only as far as it takes. The
            same for all workers and after a kill, whatever is left to do.
        on_gpu: there no amount is too small: what a start costs was not measured, and real judges are large.
    """
    if not vllm_is_installed():
        return "vLLM is not installed"
    if own_classifier(judge):
        return "the judge brings code of its own"
    if on_gpu:
        return ""
    parameters = num_parameters(judge)
    gained = 0.0
    for length in lengths:
        gained += parameters * length / _CHARACTERS_PER_TOKEN - _WORK_OF_A_REQUEST
        if gained >= _SMALL_WORK:
            return ""
    return "so little work is not worth vLLM's start"
