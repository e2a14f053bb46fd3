"""What every part stands on, and what knows nothing of segmentation: errors, files, progress, interrupts."""
