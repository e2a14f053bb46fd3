"""carblib: weakly supervised semantic segmentation of driving scenes (CARB, AAAI 2024)."""

__version__ = "0.1.0"
