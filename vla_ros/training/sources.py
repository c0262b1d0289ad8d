"""Where a training's demonstrations come from: an entry of `sources:` in its YAML, either a simulator or a LeRobot dataset."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

Problems = Iterator[tuple[str, str]]
FROM_SIMULATOR = ("simulator", "episodes", "first_seed", "kinds", "processes")
FROM_DATASET = ("names", "units", "validation_share")
DEFAULT_VALIDATION_SHARE = 0.1


@dataclass(frozen=True)
class Names:
    """What a LeRobot dataset calls things.

    Args:
        cameras: our camera: its feature; `observation.images.<camera>` where none is given.
        state, action: the features with the robot's numbers.
        state_channels, action_channels: our channel: its name within the feature, or its index; our own name where none is given.
    """

    cameras: dict[str, str] = field(default_factory=dict)
    state: str = "observation.state"
    action: str = "action"
    state_channels: dict[str, object] = field(default_factory=dict)
    action_channels: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """Demonstrations of one embodiment: a simulator's, or those of a LeRobot v3.0 dataset.

    Args:
        share: how often a batch is of this robot, beside the other sources.
        simulator: an import path (see `simulator.Simulator`). Its episodes are kept in one folder that several trainings may share.
        episodes, first_seed, processes: how many the simulator makes, from which scene on, and in how many processes.
        kinds: share of each kind of task: "place", "stack", "bimanual", "drawer", "clear".
        dataset: folder of a LeRobot v3.0 dataset, from the working directory; all of its episodes are used.
        names: what it calls cameras and channels.
        units: channel or pattern ("*.position"): the unit it has there, see `lerobot_channels.UNITS`.
        validation_share: share of its episodes that are held out to choose the best checkpoint; 0.1 unless said otherwise.
    """

    embodiment: str
    cameras: tuple[str, ...]
    share: float = 1.0
    simulator: str | None = None
    episodes: int | None = None
    first_seed: int | None = None
    kinds: dict[str, float] | None = None
    processes: int | None = None
    dataset: str | None = None
    names: Names | None = None
    units: dict[str, str] | None = None
    validation_share: float | None = None

    @property
    def held_out_share(self) -> float:
        """Share of the episodes for validation; none where a simulator can tell success."""
        if self.dataset is None:
            return 0.0
        return DEFAULT_VALIDATION_SHARE if self.validation_share is None else self.validation_share

    def problems(self) -> Problems:
        if not self.share > 0:
            yield "share", f"{self.share}, expected > 0"
        yield from self._simulator_problems() if self.dataset is None else self._dataset_problems()

    def _simulator_problems(self) -> Problems:
        for name in FROM_SIMULATOR:
            if getattr(self, name) is None:
                yield name, "the key is missing (a source has a simulator with all of its keys, or a dataset)"
                return
        for name in FROM_DATASET:
            if getattr(self, name) is not None:
                yield name, "only for a dataset: leave it out, or give dataset: FOLDER instead of a simulator"
        for name in ("episodes", "processes"):
            if getattr(self, name) < 1:
                yield name, f"{getattr(self, name)}, expected >= 1"
        if not self.kinds or min(self.kinds.values()) < 0 or not sum(self.kinds.values()) > 0:
            yield "kinds", f"{self.kinds}, expected shares of place, stack, bimanual, drawer, clear, one above 0"

    def _dataset_problems(self) -> Problems:
        for name in FROM_SIMULATOR:
            if getattr(self, name) is not None:
                yield name, f"only for a simulator; the demonstrations are those of {self.dataset}: leave it out"
        if not 0 <= self.held_out_share < 1:
            yield "validation_share", f"{self.validation_share}, expected 0 <= validation_share < 1"
        strangers = set(self.names.cameras if self.names else ()) - set(self.cameras)
        if strangers:
            yield "names", f"cameras {sorted(strangers)} are none of {list(self.cameras)}"
