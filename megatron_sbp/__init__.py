"""Synthetic Bootstrapped Pretraining (arXiv 2509.15248) as a Megatron plugin."""

__version__ = "0.1.0"
