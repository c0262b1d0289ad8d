"""Words to numbers: a word-level tokenizer whose vocabulary is the training phrasings; everything else is <unk>."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

PAD, UNKNOWN = "<pad>", "<unk>"
PAD_ID, UNKNOWN_ID = 0, 1


def build_tokenizer(sentences: Iterable[str]) -> Tokenizer:
    """Returns a tokenizer over the lower-case words of `sentences` (punctuation is dropped)."""
    tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(r"'", " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Punctuation("removed")])
    words = sorted({word for sentence in sentences for word in split_words(tokenizer, sentence)})
    vocabulary = {PAD: PAD_ID, UNKNOWN: UNKNOWN_ID} | {word: i + 2 for i, word in enumerate(words)}
    tokenizer.model = models.WordLevel(vocabulary, unk_token=UNKNOWN)
    return tokenizer


def split_words(tokenizer: Tokenizer, sentence: str) -> list[str]:
    """Returns the words as the tokenizer sees them, before the vocabulary is asked."""
    return [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(sentence))]


def encode(tokenizer: Tokenizer, sentence: str, length: int) -> np.ndarray:
    """Returns int64 [length] ids, cut or padded with `PAD_ID` on the right."""
    ids = tokenizer.encode(sentence).ids[:length] or [UNKNOWN_ID]
    return np.array(ids + [PAD_ID] * (length - len(ids)), dtype=np.int64)
