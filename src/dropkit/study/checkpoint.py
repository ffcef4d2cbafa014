"""The checkpoint of the pack in training, renewed after every epoch."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

__all__ = ["Checkpoint"]


@dataclass(frozen=True)
class Checkpoint:
    """A file that holds the state of one pack.

    Args:
        path: The file, the same for all packs: one trains at a time.
        owner: Which pack of which plan the state belongs to.
    """

    path: Path
    owner: str

    def save(self, state: Mapping[str, Tensor]) -> None:
        """Replace the file. It is not forced to the disk: no kill harms it, and a power cut costs this pack alone."""
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        contiguous = {name: tensor.contiguous() for name, tensor in state.items()}
        try:
            save_file(contiguous, self._part, metadata={"owner": self.owner})
        except SafetensorError as error:
            raise OSError(str(error)) from None
        self._part.replace(self.path)

    @property
    def _part(self) -> Path:
        """The file while it is written; a kill may leave it, and the next one replaces it."""
        return self.path.with_name(f".{self.path.name}.part")

    def load(self) -> dict[str, Tensor] | None:
        """Return the state, or None where there is none of this pack or the file is damaged."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, framework="pt") as file:
                if (file.metadata() or {}).get("owner") != self.owner:
                    return None
                return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  # not a dict
        except (OSError, SafetensorError):
            return None

    def delete(self) -> None:
        """Remove the file: the pack has trained."""
        self.path.unlink(missing_ok=True)
        self._part.unlink(missing_ok=True)
