"""Judges that bring Python code of their own, as ArmoRM does: several objectives, a gate, one score."""

import json

import pytest
import torch

from rlhf.errors import ModelError
from rlhf.models.chat_template import load_tokenizer
from rlhf.models.heads import require_one_logit
from rlhf.scoring.classifier_judge import ClassifierJudge
from rlhf.scoring.token_rows import padded_inputs, read_items
from tests.integration.command.test_judging_tools import run
from tests.integration.scoring.test_judges import items
from tests.tiny import _config, tiny_tokenizer

CODE = """
from dataclasses import dataclass
from typing import Optional

import torch
from torch import nn
from transformers import LlamaModel, LlamaPreTrainedModel
from transformers.utils import ModelOutput


@dataclass
class Judged(ModelOutput):
    rewards: Optional[torch.Tensor] = None
    gating_output: Optional[torch.Tensor] = None
    score: Optional[torch.Tensor] = None
    logits: Optional[torch.Tensor] = None


class GatedJudge(LlamaPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.model = LlamaModel(config)
        self.objectives = nn.Linear(config.hidden_size, 5, bias=False)
        self.gate = nn.Linear(config.hidden_size, 5)
        self.post_init()

    def forward(self, input_ids, attention_mask=None, **ignored):
        pad = self.config.pad_token_id
        if pad is None and len(input_ids) > 1:
            raise ValueError("no padding, so one row at a time")
        hidden = self.model(input_ids, attention_mask=attention_mask)[0]
        pads = input_ids == (-1 if pad is None else pad)
        last = (pads.int().argmax(-1) - 1) % input_ids.shape[1]  # of no pad: the last position of the row
        header = input_ids == self.config.header_id
        answer = input_ids.shape[1] - 1 - header.int().flip(-1).argmax(-1)
        rows = torch.arange(len(input_ids))
        rewards, gating = self.objectives(hidden[rows, last]), self.gate(hidden[rows, answer]).softmax(-1)
        score = (rewards * gating).sum(-1)
        if self.config.gives == "logits":
            return Judged(logits=score[:, None])
        return Judged(rewards, gating, None if self.config.gives == "rewards" else score, rewards)
"""


def gated_judge(path, code=CODE, gives="score", **changes):
    """A folder as one gets it from the Hub: weights, tokenizer, and the code that `auto_map` names."""
    scope = {"__name__": "gated_judge"}
    exec(CODE, scope)
    config = _config(tie_word_embeddings=False)
    header = tiny_tokenizer().convert_tokens_to_ids("<|start_header_id|>")
    config.update({"header_id": header, "gives": gives, "num_labels": 1} | changes)
    torch.manual_seed(4)
    scope["GatedJudge"](config).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    (path / "modeling_gated.py").write_text(code)
    written = json.loads((path / "config.json").read_text())
    written["auto_map"] = {"AutoModelForSequenceClassification": "modeling_gated.GatedJudge"}
    (path / "config.json").write_text(json.dumps(written | changes))
    return path


@pytest.fixture(scope="module", autouse=True)
def modules(tmp_path_factory):
    """Where transformers copies such code to."""
    folder = tmp_path_factory.mktemp("modules")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(folder))
        patch.setenv("HF_MODULES_CACHE", str(folder))
        yield


@pytest.fixture(scope="module")
def judge_path(tmp_path_factory):
    return gated_judge(tmp_path_factory.mktemp("own") / "judge")


def published(path, pairs):
    """The model card's way: the code's own score of one templated conversation after the other."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(path, trust_remote_code=True)
    tokenizer, scores = load_tokenizer(path), []
    for messages, response in pairs:
        chat = [*messages, {"role": "assistant", "content": response}]
        ids = tokenizer.apply_chat_template(chat, return_tensors="pt", return_dict=False)
        with torch.no_grad():
            scores.append(model(ids).score.item())
    return scores


def batches_of(judge, pairs, monkeypatch):
    """Scores, and the shape of every batch that the model's own code was given."""
    shapes, forward = [], judge._whole.forward

    def listening(input_ids, **rest):
        shapes.append(tuple(input_ids.shape))
        return forward(input_ids, **rest)

    monkeypatch.setattr(judge._whole, "forward", listening)
    return judge.score(pairs).scores, shapes


def test_the_codes_own_score_is_the_judges_in_any_batch(judge_path, monkeypatch):
    pairs = items(24, 12)
    expected = published(judge_path, pairs)
    assert max(expected) - min(expected) > 1e-2
    alone = ClassifierJudge(str(judge_path), batch_tokens=1, trust_remote_code=True)
    together = ClassifierJudge(str(judge_path), batch_tokens=10**6, trust_remote_code=True)
    scores, shapes = batches_of(alone, pairs, monkeypatch)
    assert scores == pytest.approx(expected, abs=1e-5) and {rows for rows, _ in shapes} == {1}
    scores, shapes = batches_of(together, pairs, monkeypatch)
    assert scores == pytest.approx(expected, abs=1e-5)
    assert (
        len(shapes) == len({length for _, length in shapes}) < len(pairs)
    )  # a batch for each length, some of several


def test_padding_would_have_changed_its_scores(judge_path):
    """Or the test before shows nothing."""
    judge, pairs = ClassifierJudge(str(judge_path), trust_remote_code=True), items(8, 30)
    rows, _ = read_items(judge._tokenizer, pairs, 4096)
    inputs, _ = padded_inputs(rows, torch.device("cpu"))
    with torch.no_grad():
        padded = judge._whole(**inputs).score.tolist()
    assert padded != pytest.approx(judge.score(pairs).scores, abs=1e-3)


def test_code_that_knows_no_padding_gets_one_row_at_a_time(tmp_path, judge_path, monkeypatch):
    judge = ClassifierJudge(str(gated_judge(tmp_path / "judge", pad_token_id=None)), trust_remote_code=True)
    scores, shapes = batches_of(judge, items(12, 12), monkeypatch)
    assert scores == pytest.approx(published(judge_path, items(12, 12)), abs=1e-5)
    assert {rows for rows, _ in shapes} == {1}


def test_one_logit_will_do_in_place_of_a_score_and_several_will_not(tmp_path, judge_path):
    logits = ClassifierJudge(str(gated_judge(tmp_path / "one", gives="logits")), trust_remote_code=True)
    assert logits.score(items(6, 12)).scores == pytest.approx(published(judge_path, items(6, 12)), abs=1e-5)
    rewards = ClassifierJudge(str(gated_judge(tmp_path / "many", gives="rewards")), trust_remote_code=True)
    with pytest.raises(ModelError, match=r"gives back no number per conversation.*\[1, 5\]"):
        rewards.score(items(1, 3))


def test_without_trust_it_is_refused_and_not_given_a_random_head(judge_path):
    with pytest.raises(
        ModelError, match=r"modeling_gated\.GatedJudge.*Look at the code.*trust_remote_code=true"
    ):
        ClassifierJudge(str(judge_path))


def test_other_engines_cannot_run_it(judge_path):
    with pytest.raises(ModelError, match=r"GatedJudge.*score\.engine=transformers.*reward_model\.url=null"):
        require_one_logit(str(judge_path), None)


def test_code_written_for_another_transformers_says_so(tmp_path):
    old = "from transformers.models.llama.modeling_llama import LLAMA_INPUTS_DOCSTRING\n"
    path = gated_judge(tmp_path / "judge", code=old + CODE)
    with pytest.raises(ModelError, match=r"transformers \d.*LLAMA_INPUTS_DOCSTRING.*copy of the folder"):
        ClassifierJudge(str(path), trust_remote_code=True)


def test_the_command_line_runs_it_when_told_and_says_so_once(tmp_path, judge_path):
    rows = [{"prompt": f"question {i}", "responses": ["yes", "no, never"]} for i in range(3)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ("rlhf.score", f"reward_model.path={judge_path}", "input=in.jsonl", "output=out.jsonl")
    code, said = run(*command, cwd=tmp_path)
    assert code == 2 and "trust_remote_code=true" in said and "Traceback" not in said
    code, said = run(*command, "reward_model.trust_remote_code=true", "compute.preload=false", cwd=tmp_path)
    assert code == 0, said
    assert said.count(f"runs the Python code of {judge_path}") == 1 and "modeling_gated.GatedJudge" in said
    found = [json.loads(line)["rewards"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    asked = [
        ([{"role": "user", "content": row["prompt"]}], text) for row in rows for text in row["responses"]
    ]
    assert [value for pair in found for value in pair] == pytest.approx(
        published(judge_path, asked), abs=1e-5
    )
