"""`torchvision.transforms.functional._get_image_size`, made public in 0.13."""

from __future__ import annotations

from typing import Any

import torchvision.transforms.functional

functional: Any = torchvision.transforms.functional


def get_image_size() -> bool:
    """Bring back the private name that MAE's random crop for linear probing uses."""
    if hasattr(functional, "_get_image_size"):
        return False
    functional._get_image_size = functional.get_image_size
    return True
