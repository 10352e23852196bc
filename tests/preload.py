"""Imported once by the process that test ranks are forked from."""

import deepspeed
import deepspeed.runtime.zero.muon.muon_optimizer
import torch
import transformers.trainer
import trl.trainer.dpo_config
import trl.trainer.reward_trainer
import trl.trainer.sft_trainer

import rlhf.training.dpo
import rlhf.training.reward_model
import rlhf.training.sft

__all__ = ["deepspeed", "rlhf", "torch", "transformers", "trl"]
