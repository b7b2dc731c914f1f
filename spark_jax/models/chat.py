"""Text to tokens and back, one segment of a conversation at a time.

A tree stores segments (prompt, response, what comes between two responses), so each is encoded on
its own; turn marks are single special tokens, which makes the segments concatenate to exactly
what the whole conversation encodes to.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tokenizers import Tokenizer

from spark_jax.models.tokenizer import load_tokenizer, token_bytes
from spark_jax.types import UserError


class ChatFormat(NamedTuple):
    """How a family of models writes turns."""

    marks: tuple[str, ...]  # the special tokens it uses
    begin: str  # before everything
    header: str  # opens a turn of {role}
    end: str  # the end-of-turn token
    after_end: str  # between the end-of-turn token and the next header
    close_prompts: bool  # system and user turns end with `end` too
    strip: bool  # the family's template strips texts
    pad: tuple[str, ...]  # first of these that exists pads rows; else the end-of-turn token


CHATML = ChatFormat(
    marks=("<|im_start|>", "<|im_end|>"),
    begin="",
    header="<|im_start|>{role}\n",
    end="<|im_end|>",
    after_end="\n",
    close_prompts=True,
    strip=False,
    pad=("<|endoftext|>",),
)
LLAMA3 = ChatFormat(
    marks=("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    begin="<|begin_of_text|>",
    header="<|start_header_id|>{role}<|end_header_id|>\n\n",
    end="<|eot_id|>",
    after_end="",
    close_prompts=True,
    strip=True,
    pad=("<|finetune_right_pad_id|>", "<|end_of_text|>"),
)
COMPACT = ChatFormat(
    marks=("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
    begin="",
    header="<|{role}|>",
    end="<|end|>",
    after_end="",
    close_prompts=False,
    strip=False,
    pad=("<|pad|>",),
)

FORMATS = {"chatml": CHATML, "llama3": LLAMA3, "compact": COMPACT}


def template(chat: ChatFormat) -> str:
    """The same in the language of transformers' chat templates (Jinja). A model's own template may
    say more, such as a system turn that nobody asked for; this is what a policy was trained on."""
    role, text = chat.header.split("{role}"), "m['content']" + (" | trim" if chat.strip else "")
    end = f"{{{{ {chat.end + chat.after_end!r} }}}}"
    if not chat.close_prompts:
        end = f"{{% if m['role'] == 'assistant' %}}{end}{{% endif %}}"
    turn = f"{{{{ {role[0]!r} + m['role'] + {role[1]!r} + {text} }}}}{end}"
    begin = f"{{{{ {chat.begin!r} }}}}" if chat.begin else ""
    open_turn = f"{{{{ {chat.header.format(role='assistant')!r} }}}}"
    return (
        f"{begin}{{% for m in messages %}}{turn}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{open_turn}{{% endif %}}"
    )


def detect_format(tokenizer: Tokenizer) -> str:
    """Name of the chat format whose marks the vocabulary has; UserError when there is none."""
    for name, chat in FORMATS.items():
        if all(tokenizer.token_to_id(mark) is not None for mark in chat.marks):
            return name
    raise UserError(
        "the tokenizer has the turn marks of no known chat format (chatml, llama3, compact); "
        "use an instruct model of the Qwen, SmolLM or Llama 3 family."
    )


class Codec:
    """Encodes the segments of a conversation and decodes what was sampled.

    Texts never produce special tokens: a turn mark written by an environment is plain text.

    Attributes: `end_of_turn_id`, `pad_id`, `vocab_size` (rows of the model's vocabulary, which
    may be padded beyond the tokenizer's), `format` (name of the chat format).
    """

    def __init__(self, tokenizer: Tokenizer, format: str = "", vocab_size: int | None = None):
        self._tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.encode_special_tokens = True
        self.format = format or detect_format(tokenizer)
        self._chat = FORMATS[self.format]
        self._special = {
            token.content: i
            for i, token in self._tokenizer.get_added_tokens_decoder().items()
            if token.special
        }
        self.vocab_size = max(self._tokenizer.get_vocab_size(), vocab_size or 0)
        absent = [mark for mark in self._chat.marks if mark not in self._special]
        if absent:
            raise UserError(
                f"the tokenizer has no special token {absent[0]}, which the {self.format} chat "
                "format needs; choose the model's own format."
            )
        self._marks = re.compile("(" + "|".join(map(re.escape, self._chat.marks)) + ")")
        self.end_of_turn_id: int = self._special[self._chat.end]
        pads = [self._special[token] for token in self._chat.pad if token in self._special]
        self.pad_id: int = (pads + [self.end_of_turn_id])[0]
        self._bytes: list[bytes] = []  # of each id, once they were asked for

    def _plain(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids if text else []

    def _header(self, role: str, text: str = "") -> list[int]:
        """A turn's header and its text; the text is encoded together with what follows the
        header's last mark, as it would be inside a whole conversation."""
        # split() with a group alternates plain pieces and marks, and ends with a plain piece.
        pieces = self._marks.split(self._chat.header.format(role=role))
        pieces[-1] += text.strip() if self._chat.strip else text
        ids = []
        for i, piece in enumerate(pieces):
            ids += self._plain(piece) if i % 2 == 0 else [self._special[piece]]
        return ids

    def _turn(self, role: str, text: str) -> list[int]:
        ids = self._header(role, text)
        if self._chat.close_prompts:
            ids += [self.end_of_turn_id, *self._plain(self._chat.after_end)]
        return ids

    def encode_prompt(self, system: str, user: str) -> list[int]:
        """System turn (left out when empty), user turn, header of the assistant's turn."""
        ids = [self._special[self._chat.begin]] if self._chat.begin else []
        if system:
            ids += self._turn("system", system)
        return ids + self._turn("user", user) + self._header("assistant")

    def encode_turn(self, observation: str, ended: bool) -> list[int]:
        """What comes between two responses: end-of-turn (unless the model itself `ended` its turn
        with it), the observation as a user turn, header of the next assistant turn."""
        ids = [] if ended else [self.end_of_turn_id]
        ids += self._plain(self._chat.after_end)
        return ids + self._turn("user", observation) + self._header("assistant")

    def encode_response(self, text: str) -> list[int]:
        """A response alone, without end-of-turn (for supervised training)."""
        return self._plain(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens included; broken UTF-8 becomes U+FFFD."""
        known = self._tokenizer.get_vocab_size()
        return self._tokenizer.decode([int(i) for i in ids if i < known], skip_special_tokens=False)

    def token_bytes(self) -> list[bytes]:
        """The bytes of each id, [vocab_size]; their concatenation is what `decode` decodes."""
        self._bytes = self._bytes or token_bytes(self._tokenizer, self.vocab_size)
        return self._bytes

    def token_ids(self) -> dict[str, int | None]:
        """The special tokens by the names that a Hugging Face config.json has for them."""
        return {
            "bos_token_id": self._special[self._chat.begin] if self._chat.begin else None,
            "eos_token_id": self.end_of_turn_id,
            "pad_token_id": self.pad_id,
        }

    def save_for_transformers(self, folder: str | Path) -> None:
        """Writes what `transformers.AutoTokenizer` loads, with the chat template of the format."""
        from transformers import PreTrainedTokenizerFast

        names = {i: token for token, i in self._special.items()}
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=self._tokenizer,
            eos_token=names[self.end_of_turn_id],
            pad_token=names[self.pad_id],
        )
        tokenizer.chat_template = template(self._chat)
        tokenizer.save_pretrained(folder)

    def save(self, folder: str | Path) -> None:
        """Writes tokenizer.json and codec.json."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        about = json.dumps({"format": self.format, "vocab_size": self.vocab_size}) + "\n"
        files = {"tokenizer.json": self._tokenizer.to_str(pretty=True), "codec.json": about}
        for name, text in files.items():
            temporary = folder / f".{name}.tmp"  # a killed run leaves whole files or none
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(folder / name)

    @classmethod
    def load(cls, folder: str | Path, vocab_size: int | None = None) -> Codec:
        """Reads what `save` wrote, or the tokenizer.json of a model's folder."""
        tokenizer = load_tokenizer(folder)
        file = Path(folder) / "codec.json"
        if not file.is_file():
            return cls(tokenizer, vocab_size=vocab_size)
        try:
            saved = json.loads(file.read_text())
            return cls(tokenizer, saved["format"], vocab_size or saved["vocab_size"])
        except (ValueError, KeyError) as error:
            raise UserError(f"{file} is broken ({error}); delete it or save it again.") from error
