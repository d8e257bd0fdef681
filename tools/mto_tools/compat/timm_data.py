"""`timm.data.transforms._pil_interp`, renamed in 0.6."""

from __future__ import annotations

from typing import Any

import timm.data.transforms
from PIL import Image

transforms: Any = timm.data.transforms


def pil_interp() -> bool:
    """Bring back the mapping from a name to PIL's filter, bilinear where the name is unknown.

    SimMIM's fine-tuning data imports it, and its pre-training imports that file.
    """
    if hasattr(transforms, "_pil_interp"):
        return False
    known = ("bicubic", "lanczos", "hamming")

    def interpolation(name: str) -> Image.Resampling:
        return Image.Resampling[name.upper() if name in known else "BILINEAR"]

    transforms._pil_interp = interpolation
    return True
