"""Which numbers of a network belong to which embodiment: those with the same channels share their columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from vla_ros.core.errors import PolicyError, did_you_mean
from vla_ros.policies.layout import Layout


@dataclass(frozen=True)
class Columns:
    """`slices` by embodiment out of `width` columns."""

    slices: Mapping[str, slice]
    width: int

    def of(self, embodiment: str) -> slice:
        """Raises PolicyError for an embodiment that the network was not made for."""
        if embodiment not in self.slices:
            raise PolicyError(f"embodiment {embodiment!r}: the network was made for others; {did_you_mean(embodiment, self.slices)}")
        return self.slices[embodiment]

    def spread(self, values: Tensor, embodiment: str) -> Tensor:
        """[..., own] -> [..., width], zeros elsewhere. Raises PolicyError for another number of columns."""
        own = self.of(embodiment)
        if values.shape[-1] != own.stop - own.start:
            raise PolicyError(f"{embodiment}: {values.shape[-1]} columns, expected {own.stop - own.start}")
        if own.stop - own.start == self.width:
            return values
        out = values.new_zeros(*values.shape[:-1], self.width)
        out[..., own] = values
        return out


def shared_columns(groups: Mapping[str, tuple[tuple[str, ...], int]]) -> Columns:
    """`groups` says by embodiment which channels its numbers stem from, and how many numbers they are."""
    slices: dict[tuple[str, ...], slice] = {}
    width = 0
    for names, count in groups.values():
        if names not in slices:
            slices[names] = slice(width, width + count)
            width += count
    return Columns({embodiment: slices[names] for embodiment, (names, _) in groups.items()}, width)


def state_columns(layouts: Mapping[str, Layout]) -> Columns:
    """Columns of the normalised features."""
    return shared_columns({name: (layout.state, layout.feature_count) for name, layout in layouts.items()})


def action_columns(layouts: Mapping[str, Layout]) -> Columns:
    """Columns of a chunk's rows."""
    return shared_columns({name: (layout.channels, len(layout.channels)) for name, layout in layouts.items()})
