"""Where tests find the repository, and real data beside it (skipped where it is absent)."""

from __future__ import annotations

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = REPOSITORY.parent / "shared"
CAMVID_ROOT = Path(os.environ.get("CARB_CAMVID_ROOT", SHARED / "data" / "camvid"))
