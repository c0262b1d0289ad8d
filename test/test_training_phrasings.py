"""Phrasings: what is trained on, what is kept for evaluation, and how words become numbers."""

import numpy as np
import pytest

from vla_ros.core.errors import DataError
from vla_ros.policies.text import PAD_ID, UNKNOWN_ID, build_tokenizer, encode
from vla_ros.training.phrasings import HELD_OUT_TEMPLATES, TRAIN_TEMPLATES, all_training_sentences, held_out, keywords, parse, rephrase

PLACES = [
    f"pick up the {colour} block and put it {where}" for colour in ("red", "green", "blue") for where in ("on the plate", "in the bowl")
]
TASKS = [*PLACES, "stack the red block on the green block"]


def test_parse_names_colour_and_container():
    assert parse(PLACES[0]) == ("place", {"colour": "red", "preposition": "on", "container": "plate"})
    assert parse(TASKS[-1]) == ("stack", {"colour": "red", "base": "green"})


@pytest.mark.parametrize("sentence", ["", "pick up the red block", "Pick up the red block and put it on the plate", "put it on the plate"])
def test_other_sentences_are_not_canonical(sentence):
    with pytest.raises(DataError, match="not canonical"):
        parse(sentence)


def test_five_held_out_phrasings_that_are_never_trained_on():
    assert len(HELD_OUT_TEMPLATES["place"]) == 5
    trained = set(all_training_sentences(TASKS))
    for instruction in PLACES:
        said = held_out(instruction)
        assert len(set(said)) == 5
        assert not trained & set(said)


def test_held_out_phrasings_keep_colour_and_container():
    for instruction in PLACES:
        _, fields = parse(instruction)
        for sentence in held_out(instruction):
            assert fields["colour"] in sentence.split() and fields["container"] in sentence.split()


def test_every_training_template_can_be_said_and_is_in_the_vocabulary():
    tokenizer = build_tokenizer(all_training_sentences(TASKS))
    rng = np.random.default_rng(0)
    for instruction in TASKS:
        for template in TRAIN_TEMPLATES[parse(instruction)[0]]:
            sentence = rephrase(instruction, template, lambda words: words[rng.integers(len(words))])
            assert "{" not in sentence
            assert UNKNOWN_ID not in encode(tokenizer, sentence, 32)


def test_case_and_punctuation_do_not_matter_and_unknown_words_are_marked():
    tokenizer = build_tokenizer(all_training_sentences(TASKS))
    plain = encode(tokenizer, "put the red block on the plate", 12)
    assert np.array_equal(plain, encode(tokenizer, "Put the RED block, on the plate!", 12))
    assert encode(tokenizer, "put the purple block", 6)[2] == UNKNOWN_ID
    assert list(encode(tokenizer, "put", 3)[1:]) == [PAD_ID, PAD_ID]
    assert len(encode(tokenizer, "put " * 50, 12)) == 12
    assert encode(tokenizer, "", 4)[0] == UNKNOWN_ID


def test_keywords_are_what_nobody_can_do_without():
    assert keywords(PLACES[0]) == {"red", "plate", "dish"}
    assert keywords(TASKS[-1]) == {"red", "green"}
