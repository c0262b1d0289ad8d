"""Light copies of the robot's visual meshes. Rendering without a GPU costs by the vertex, and the originals have 372 k."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np

CELL_M = 0.006


def light_mesh(source: Path) -> Path:
    """Returns an OBJ file like `source` with its vertices merged on a grid of `CELL_M`; made once, kept in the user's cache.

    The file's name holds a hash of the content, so that another version of the mesh, or of the grid, is another file.
    """
    content = source.read_bytes()
    key = hashlib.sha256(content + f"{CELL_M} v1".encode()).hexdigest()[:16]
    target = cache_dir() / f"{source.stem}-{key}.obj"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f"{target.name}.{os.getpid()}.part")
        partial.write_text(_obj(*cluster(*_parse(content.decode()))))
        partial.replace(target)
    return target


def cache_dir() -> Path:
    """Where light meshes are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vla_ros" / "meshes"


def cluster(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Merges all vertices [V, 3] (m) of a grid cell into their mean; faces [F, 3] that collapse or repeat are dropped."""
    # A part no bigger than a few cells (a button) would collapse: its grid is finer.
    cell = min(CELL_M, float(np.ptp(vertices, axis=0).max()) / 6)
    cells = np.floor(vertices / cell).astype(np.int64)
    _, owner, count = np.unique(cells, axis=0, return_inverse=True, return_counts=True)
    owner = owner.reshape(-1)
    merged = np.stack([np.bincount(owner, vertices[:, axis]) / count for axis in range(3)], axis=1)
    faces = owner[faces]
    faces = faces[(faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 2] != faces[:, 0])]
    _, first = np.unique(np.sort(faces, axis=1), axis=0, return_index=True)
    return merged, faces[np.sort(first)]


def _parse(text: str) -> tuple[np.ndarray, np.ndarray]:
    vertices, faces = [], []
    for line in text.splitlines():
        if line.startswith("v "):
            vertices.append([float(value) for value in line.split()[1:4]])
        elif line.startswith("f "):
            corners = [int(corner.split("/")[0]) - 1 for corner in line.split()[1:]]
            faces += [[corners[0], corners[i], corners[i + 1]] for i in range(1, len(corners) - 1)]
    return np.array(vertices), np.array(faces)


def _obj(vertices: np.ndarray, faces: np.ndarray) -> str:
    lines = [f"v {x:.6f} {y:.6f} {z:.6f}" for x, y, z in vertices]
    return "\n".join(lines + [f"f {a} {b} {c}" for a, b, c in faces + 1]) + "\n"
