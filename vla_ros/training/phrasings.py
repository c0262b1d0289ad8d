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
    "open": ("open", "pull open"),
    "close": ("close", "shut"),
    "clear": ("clear", "tidy", "empty"),
}
CANONICAL = {
    "place": re.compile(r"pick up the (?P<colour>\w+) block and put it (?P<preposition>on|in) the (?P<container>plate|bowl)"),
    "stack": re.compile(r"stack the (?P<colour>\w+) block on the (?P<base>\w+) block"),
    "pass": re.compile(r"pass the yellow bar from the (?P<giver>left|right) hand to the (?P<taker>left|right) hand"),
    "lift": re.compile(r"lift the tray with both hands"),
    "drawer": re.compile(r"open the drawer, put the (?P<colour>\w+) block in it and close it"),
    "clear": re.compile(r"clear the table into the (?P<container>bowl)"),
}
# Words beside the fields that make a task of several steps what it is.
_TELLING = {"drawer": {"drawer"}, "clear": {"table", "all", "every", "everything", *SYNONYMS["clear"]}}
EXPECTED = "expected 'pick up the X block and put it on the plate|in the bowl' or 'stack the X block on the Y block'"
EXPECTED += ", 'pass the yellow bar from the X hand to the Y hand', 'lift the tray with both hands'"
EXPECTED += ", 'open the drawer, put the X block in it and close it' or 'clear the table into the bowl'"
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
    "drawer": (
        "open the drawer, put the {colour} block in it and close it",
        "{open} the drawer, {put} the {colour} {block} {in} it and {close} it",
        "{open} the drawer, {take} the {colour} {block}, {put} it {in} and {close} the drawer",
        "please {open} the drawer, {put} the {colour} one {in} it and {close} it again",
        "{put} the {colour} {block} {in} the drawer and {close} it",
        "{put} the {colour} one {in} the drawer",
        "the {colour} {block} goes {in} the drawer, {close} it then",
        "can you {put} the {colour} {block} {in} the drawer",
    ),
    "clear": (
        "clear the table into the {container}",
        "{clear} the table {in} the {container}",
        "{put} all the {block}s {in} the {container}",
        "please {put} every {block} {in} the {container}",
        "{take} all the {block}s and {put} them {in} the {container}",
        "everything goes {in} the {container}",
        "can you {clear} the table {in} the {container}",
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
    "drawer": (
        "i want the {colour} cube in the drawer, then close it",
        "could you open the drawer, drop the {colour} block inside and shut it please",
        "in the drawer goes the {colour} cube, then close the drawer",
        "take the {colour} one, open the drawer and place it inside, then shut it",
        "the drawer is where you should put the {colour} block",
    ),
    "clear": (
        "i want all the cubes in the {container}",
        "could you place every block in the {container} please",
        "in the {container} goes everything on the table",
        "the {container} is where all the blocks should go",
        "get every cube from the table and drop it into the {container}",
    ),
}
PHRASINGS = 5  # held out, of each kind
Choose = Callable[[Sequence[str]], str]


def parse(instruction: str) -> tuple[str, dict[str, str]]:
    """Returns the kind (of `CANONICAL`) and fields of a canonical instruction. Raises DataError for any other sentence."""
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
    kind, fields = parse(instruction)
    names = [word for key, word in fields.items() if key not in ("preposition", "giver")]
    return {synonym for name in names for synonym in SYNONYMS.get(name, (name,))} | _TELLING.get(kind, set())


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
