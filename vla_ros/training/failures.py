"""What ends a training that is not its fault, told with the fix."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError

from vla_ros.core.errors import DataError


@contextmanager
def told(out: Path, too_much: str) -> Iterator[None]:
    """Turns no memory and a full disk into DataError; `too_much` is what to lower, such as "optimisation.batch (now 32)"."""
    left = f"{out / 'latest'} holds the last good checkpoint"
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "not enough memory" not in str(error):  # torch's words on a CPU
            raise
        raise DataError(f"out of memory ({error}): lower {too_much}, then --resume; {left}") from error
    except (OSError, SafetensorError) as error:
        raise DataError(f"{out}: cannot write ({error}); free some space, then --resume. {left}") from error
