"""`evaluations/NAME.json` in a checkpoint's folder: the scores of one checkpoint."""

from __future__ import annotations

import contextlib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mto_tools.errors import CorruptError, MissingError

FOLDER = "evaluations"
SCORES = {
    "knn": "k-NN",
    "probe": "probe",
    "probe_1pct": "1 % of labels",
    "probe10": "10 a class",
}


class Evaluation(BaseModel):
    """Scores of one checkpoint on one data set, and what they were made from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    checkpoint: str  # path
    digest: str  # SHA-256 of the file
    progress: float | None  # epoch, or step, at which it was saved
    recipe: str
    model: str  # class of the recipe's fine-tuning model, and its arguments
    data: str  # path and fingerprint: classes, images, checksum of names and sizes
    images_train: int
    images_val: int
    scores: dict[str, float]  # by the keys of SCORES, each in 0..1
    settings: dict[str, str] = Field(default_factory=dict)  # arguments, transform, k, …
    versions: dict[str, str]
    made: str  # UTC, ISO 8601

    @classmethod
    def load(cls, path: Path) -> Evaluation:
        """Read a file.

        Raises:
            MissingError: There is none.
            CorruptError: It is no evaluation.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            raise MissingError(f"no evaluation {path}", hint="mto evaluate --help") from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise CorruptError(
                f"{path}: no evaluation: {where} {first['msg']}".replace(":  ", ": "),
                hint=f"mv {path} {path}.old, and evaluate again",
            ) from None

    def save(self, path: Path) -> None:
        """Write a file in one step."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            temporary.write_text(self.model_dump_json(indent=1) + "\n", "utf-8")
            temporary.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise


def path_of(checkpoint: Path, out: Path | None = None) -> Path:
    """Where a checkpoint's evaluation stands: in `out`, or else beside the checkpoint."""
    return (out or checkpoint.parent / FOLDER) / f"{checkpoint.name}.json"
