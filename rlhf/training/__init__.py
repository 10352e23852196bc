"""Training: model loading, losses, DPO, SFT, reward models, DeepSpeed."""
