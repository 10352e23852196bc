"""Online iterative RLHF, after "RLHF Workflow: From Reward Modeling to Online RLHF" (arXiv 2405.07863)."""

__version__ = "0.1.0"
