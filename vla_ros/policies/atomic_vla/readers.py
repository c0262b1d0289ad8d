"""What reads an observation for thinking and acting alike, and goes on from it in words. `sizes.READERS` is the table.

The first thing that follows an observation is one of two reserved ids, THINK or ACT; THINK is followed by a plan's words and END.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from vla_ros.core.errors import PolicyError
from vla_ros.policies.atomic_vla.expert import Prefix
from vla_ros.policies.atomic_vla.writer import Writer
from vla_ros.policies.qwen_vla.reader import SmallReader
from vla_ros.policies.qwen_vla.rope import Rope, rotate, text_positions
from vla_ros.policies.text import PAD_ID
from vla_ros.policies.vlms.decoder_only import Part
from vla_ros.policies.vlms.families import PaliGemma
from vla_ros.policies.vlms.presets import need_transformers

RESERVED = 3  # ids behind the words of a vocabulary: END, THINK, ACT
Choose = Callable[[Tensor], int]  # logits [vocabulary] -> id


class SmallThinker(SmallReader):
    """The convolutional backbone: its state, a token a camera and the words of the instruction, and a small decoder that writes."""

    SIZES: Mapping[str, object] = {**SmallReader.SIZES, "writer_width": 128, "writer_layers": 2, "writer_heads": 4}

    def __init__(self, cameras: tuple[str, ...], sizes: Mapping[str, object]) -> None:
        super().__init__(cameras, sizes["state_width"], sizes)
        self.key_heads, self.rope = sizes["expert_key_heads"], Rope(sizes["expert_head_size"], sizes["theta"])
        self.read_words, self.norm = nn.Linear(sizes["text_width"], self.hidden_size), nn.LayerNorm(self.hidden_size)
        keys_values = 2 * self.key_heads * sizes["expert_head_size"]
        self.keys_values = nn.ModuleList(nn.Linear(self.hidden_size, keys_values) for _ in range(sizes["expert_layers"]))
        words = sizes["vocabulary"]
        self.end, self.think, self.act = range(words, words + RESERVED)
        own = [sizes[f"writer_{key}"] for key in ("width", "layers", "heads")]
        self.writer = Writer(words + RESERVED, self.hidden_size, *own, length=sizes["plan_length"] + 2)

    def prefix(self, images: Tensor, state: Tensor, tokens: Tensor, cameras: tuple[str, ...], written: Tensor | None = None) -> Prefix:
        """Reads B observations.

        Args:
            images: float [B, C, 3, H, W] in [-1, 1].
            state: float [B, state_width].
            tokens: int64 [B, L], 0 where there is no word.
            cameras: names of the C views.
            written: int64 [B, n], ids that follow (training).
        """
        reading = self.read(images, state, tokens, cameras)
        text = self.network.text
        words = self.read_words(text.embed(tokens) + text.position[: tokens.shape[1]])
        mask = torch.cat([reading.mask, tokens != PAD_ID], 1)
        positions = text_positions(mask)
        angles = self.rope.angles(positions)
        layers = []
        with torch.autocast(tokens.device.type, enabled=False):  # places in a picture, which bfloat16 is too coarse for
            memory = self.norm(torch.cat([reading.sequence, words.to(reading.sequence.dtype)], 1).to(self.norm.weight.dtype))
            for project in self.keys_values:
                key, value = project(memory).unflatten(-1, (2 * self.key_heads, -1)).transpose(1, 2).chunk(2, dim=1)
                layers.append((rotate(key, angles), value))
        logits = self.writer(memory, mask, tokens[:, :0] if written is None else written)
        return Prefix(tuple(layers), mask, positions, logits, reading.hidden, reading.visual, memory)

    @torch.no_grad()
    def write(self, prefix: Prefix, count: int, choose: Choose) -> list[int]:
        """Returns the ids that follow THINK for one observation, up to END or `count` of them."""
        ids = [self.think]
        while len(ids) <= count:
            found = choose(self.writer(prefix.memory, prefix.mask, torch.tensor([ids], device=prefix.mask.device))[0, -1])
            if found == self.end:
                break
            ids.append(found)
        return ids[1:]

    def train_writer(self) -> None:
        """Lets what thinks learn, and what acts read stay as it is."""
        self.writer.requires_grad_(True)


class PaliGemmaThinker(PaliGemma):
    """The body of pi0: its keys and values are the observation, and its own language head writes on from them."""

    def __init__(self, cameras: tuple[str, ...], sizes: Mapping[str, object]) -> None:
        super().__init__(cameras, sizes["state_width"], sizes, vocabulary_head=True)
        text = self.vlm.config.text_config
        wanted = (sizes["expert_layers"], sizes["expert_key_heads"], sizes["expert_head_size"], sizes["theta"])
        found = (text.num_hidden_layers, text.num_key_value_heads, text.head_dim, text.rope_parameters["rope_theta"])
        if found != wanted:
            raise PolicyError(
                f"network: expert_layers, expert_key_heads, expert_head_size and theta are {wanted}; the expert reads keys and values of a "
                f"language model with {found}"
            )
        rows = self.vocabulary_size
        if int(sizes["vocabulary"]) > rows - RESERVED:
            raise PolicyError(f"network.vocabulary = {sizes['vocabulary']}: of the language model's {rows} ids {RESERVED} are reserved")
        self.end, self.think, self.act = range(rows - RESERVED, rows)

    def prefix(self, images: Tensor, state: Tensor, tokens: Tensor, cameras: tuple[str, ...], written: Tensor | None = None) -> Prefix:
        """See `SmallThinker.prefix`. What is written does not change the observation, which sees nothing of it."""
        features = self._look(images)
        # One learnable token ends the observation: behind padding there would be no place for the first id to come from.
        parts = [*self._views(features, 0), self._words(tokens, 0), *self._proprioception(state, 0), self._learnable(len(tokens), 0)]
        count = sum(part.mask.shape[1] for part in parts)
        if written is not None:
            parts += [Part(self._embed(ids[:, None]), ids[:, None] != PAD_ID, 1 + i) for i, ids in enumerate(written.unbind(1))]
        output = self._run(parts, use_cache=True)
        mask = torch.cat([part.mask for part in parts], 1)[:, :count]
        layers = tuple((layer.keys[:, :, :count], layer.values[:, :, :count]) for layer in output.past_key_values.layers)
        hidden = output.last_hidden_state
        logits = self._vocabulary(hidden[:, count - 1 :])
        return Prefix(layers, mask, text_positions(mask), logits, hidden[:, count - 1].float(), self._pooled(features, cameras))

    @torch.no_grad()
    def write(self, prefix: Prefix, count: int, choose: Choose) -> list[int]:
        """See `SmallThinker.write`. Goes on from the keys and values of `prefix`, which stay as they are."""
        cache = need_transformers().DynamicCache()
        for i, (key, value) in enumerate(prefix.layers):
            cache.update(key, value, i)
        ids, mask, position = [self.think], prefix.mask, prefix.mask.sum(1, keepdim=True)
        while len(ids) <= count:
            mask = torch.cat([mask, mask.new_ones(1, 1)], 1)
            word = self._embed(torch.tensor([ids[-1:]], device=mask.device))
            output = self._language(word, mask, None, position, past_key_values=cache, use_cache=True)
            found = choose(self._vocabulary(output.last_hidden_state[0, -1]))
            if found == self.end:
                break
            ids.append(found)
            position = position + 1
        return ids[1:]

    def train_writer(self) -> None:
        """Raises PolicyError: what writes is what acts read, so it cannot learn alone."""
        raise PolicyError("this backbone writes its plans itself: if it learnt, the old skills would act differently; leave the writer out")
