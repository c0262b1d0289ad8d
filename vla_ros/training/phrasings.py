"""Many ways to say one task. Policies train on `TRAIN_TEMPLATES`; `HELD_OUT_TEMPLATES` are for evaluation only."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from string import Formatter

from vla_ros.core.errors import DataError

# Slots that a task fills come from the canonical instruction; these have synonyms to choose from.
SYNONYMS = {
    "take": ("pick up", "grab", "take", "get", "lift", "fetch"),
    "put": ("put", "place", "set", "drop", "move"),
    "block": ("block", "cube"),
    "plate": ("plate", "dish"),
    "bowl": ("bowl",),
    "pass": ("pass", "hand", "give"),
    "raise": ("lift", "raise", "pick up"),
    "on": ("on", "onto"),
    "in": ("in", "into", "inside"),
}
CANONICAL = {
    "place": re.compile(r"pick up the (?P<colour>\w+) block and put it (?P<preposition>on|in) the (?P<container>plate|bowl)"),
    "stack": re.compile(r"stack the (?P<colour>\w+) block on the (?P<base>\w+) block"),
    "pass": re.compile(r"pass the yellow bar from the (?P<giver>left|right) hand to the (?P<taker>left|right) hand"),
    "lift": re.compile(r"lift the tray with both hands"),
}
EXPECTED = "expected 'pick up the X block and put it on the plate|in the bowl' or 'stack the X block on the Y block'"
EXPECTED += ", 'pass the yellow bar from the X hand to the Y hand' or 'lift the tray with both hands'"
TRAIN_TEMPLATES = {
    "place": (
        "pick up the {colour} block and put it {preposition} the {container}",
        "{take} the {colour} {block} and {put} it {preposition} the {container}",
        "{put} the {colour} {block} {preposition} the {container}",
        "please {put} the {colour} {block} {preposition} the {container}",
        "{take} the {colour} one and {put} it {preposition} the {container}",
        "the {colour} {block} goes {preposition} the {container}",
        "{preposition} the {container} {put} the {colour} {block}",
        "{colour} {block} {preposition} the {container}",
        "{take} the {block} that is {colour} and {put} it {preposition} the {container}",
        "can you {take} the {colour} {block} and {put} it {preposition} the {container}",
    ),
    "stack": (
        "stack the {colour} block on the {base} block",
        "stack the {colour} {block} on top of the {base} {block}",
        "{take} the {colour} {block} and stack it on the {base} {block}",
        "{put} the {colour} {block} on top of the {base} {block}",
        "{take} the {colour} {block} and {put} it on the {base} {block}",
        "the {colour} {block} goes on top of the {base} one",
    ),
    "pass": (
        "pass the yellow bar from the {giver} hand to the {taker} hand",
        "{pass} the yellow bar from {giver} to {taker}",
        "{pass} the bar to the {taker} hand",
        "{take} the bar with the {giver} hand and {pass} it to the {taker} hand",
        "please {pass} the yellow bar over to the {taker} hand",
    ),
    "lift": (
        "lift the tray with both hands",
        "{raise} the tray with both hands",
        "{raise} the tray",
        "please {raise} the tray with two hands",
        "use both hands to {raise} the tray",
    ),
}
HELD_OUT_TEMPLATES = {
    "place": (
        "i want the {colour} cube {preposition} the {container}",
        "could you lift the {colour} one and then drop it {preposition} the {container} please",
        "{preposition} the {container} goes the {colour} block",
        "the {container} is where you should place the {colour} cube",
        "fetch the cube that is {colour} then set it {preposition} the {container}",
    ),
    "pass": (
        "give the bar over from the {giver} one to the {taker} one",
        "the yellow bar goes from {giver} to {taker}",
        "with the {taker} hand take the bar from the {giver} hand",
        "the {taker} hand should get the bar",
        "could you pass the bar to the {taker} hand please",
    ),
    "lift": (
        "both hands lift the tray",
        "i want the tray raised with both hands",
        "could you lift the tray please",
        "the tray goes up with two hands",
        "take the tray in both hands and lift it",
    ),
}
PHRASINGS = 5  # held out, of each kind
Choose = Callable[[Sequence[str]], str]


def parse(instruction: str) -> tuple[str, dict[str, str]]:
    """Returns the kind ("place" | "stack") and fields of a canonical instruction. Raises DataError for any other sentence."""
    for kind, pattern in CANONICAL.items():
        if match := pattern.fullmatch(instruction):
            return kind, match.groupdict()
    raise DataError(f"instruction {instruction!r} is not canonical: {EXPECTED}")


def is_canonical(instruction: str) -> bool:
    """Whether it is one of the suite's own sentences. Those of a foreign dataset are used as they are."""
    return any(pattern.fullmatch(instruction) for pattern in CANONICAL.values())


def keywords(instruction: str) -> set[str]:
    """Returns the words that make the task what it is (and their synonyms); without one of them nobody could tell what to do.

    Of a foreign sentence that may be any word.
    """
    if not is_canonical(instruction):
        return {instruction}
    _, fields = parse(instruction)
    names = [word for key, word in fields.items() if key not in ("preposition", "giver")]
    return {synonym for name in names for synonym in SYNONYMS.get(name, (name,))}


def rephrase(instruction: str, template: str, choose: Choose) -> str:
    """Says the canonical `instruction` by `template`; `choose` picks one of the synonyms of every slot."""
    _, fields = parse(instruction)
    filled = {}
    for _, slot, _, _ in Formatter().parse(template):
        if slot is not None:
            word = fields.get(slot, slot)
            filled[slot] = choose(SYNONYMS.get(word, (word,)))
    return template.format(**filled)


def held_out(instruction: str) -> list[str]:
    """Returns the five unseen phrasings of a canonical instruction, in the order of `HELD_OUT_TEMPLATES`."""
    kind, _ = parse(instruction)
    if kind not in HELD_OUT_TEMPLATES:
        raise DataError(f"instruction {instruction!r}: no held-out phrasings for {kind!r}, only for {', '.join(HELD_OUT_TEMPLATES)}")
    return [rephrase(instruction, template, lambda words: words[0]) for template in HELD_OUT_TEMPLATES[kind]]


def all_training_sentences(instructions: Sequence[str]) -> Iterator[str]:
    """Yields every training phrasing with every synonym, foreign sentences as they are; the vocabulary of a tokenizer."""
    for instruction in instructions:
        if not is_canonical(instruction):
            yield instruction
            continue
        kind, fields = parse(instruction)
        for template in TRAIN_TEMPLATES[kind]:
            slots = [slot for _, slot, _, _ in Formatter().parse(template) if slot is not None]
            words = [SYNONYMS.get(fields.get(slot, slot), (fields.get(slot, slot),)) for slot in slots]
            for choice in product(*words):
                yield template.format(**dict(zip(slots, choice, strict=True)))
