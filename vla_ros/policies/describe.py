"""What a network is made of."""

from __future__ import annotations

from torch import nn


def describe(network: nn.Module, depth: int = 3) -> list[tuple[str, int]]:
    """Returns (module, parameters) down to `depth` levels, a parent before its children; shared parameters count once in each.

    Parameters that a module holds itself beside its children are a line of their own, `module.(own)`; the first line is ("", total).
    Works on the meta device. Only children that have parameters are listed, and lists of layers are not taken apart.
    """
    lines: list[tuple[str, int]] = []
    _walk(network, "", depth, lines)
    return lines


def _walk(module: nn.Module, name: str, depth: int, lines: list[tuple[str, int]]) -> None:
    lines.append((name, sum(parameter.numel() for parameter in module.parameters())))
    children = [(key, child) for key, child in module.named_children() if any(True for _ in child.parameters())]
    if depth == 0 or not children or isinstance(module, nn.ModuleList | nn.Sequential):
        return
    for key, child in children:
        _walk(child, f"{name}.{key}".lstrip("."), depth - 1, lines)
    own = sum(parameter.numel() for parameter in module.parameters(recurse=False))
    if own:
        lines.append((f"{name}.(own)".lstrip("."), own))


def trainable_by_stage(network: nn.Module) -> dict[str, int]:
    """Returns how many parameters learn in each of the network's own stages (`STAGES`); none: it has only one.

    It leaves the network in the last of them.
    """
    counts = {}
    for stage in getattr(network, "STAGES", ()):
        network.configure_stage(stage)
        counts[stage] = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    return counts
