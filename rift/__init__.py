"""RiFT, robust critical fine-tuning, from adversarial training to the paper's tables."""

__version__ = "0.1.0"
