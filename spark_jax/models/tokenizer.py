"""Byte-level BPE tokenizers: training one on texts, and building, reading and writing files.

Two kinds of extra tokens: *special* ones (turn marks) are never produced by encoding text, so
nothing an environment says can forge a turn; *tags* (`<action>`) are single tokens that are
matched inside text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.trainers import BpeTrainer

from spark_jax.types import UserError

COMPACT_SPECIAL = ("<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
TAGS = ("<think>", "</think>", "<explore>", "</explore>", "<action>", "</action>")

# How text is cut before merging, from the tokenizer.json files of the two families.
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_SPLIT = QWEN2_SPLIT.replace(r"\p{N}|", r"\p{N}{1,3}|", 1)
# GPT-2's, but a word keeps its colon ("size:") and a number's first digit what stands before it
# (" $1", "9"): where a text names a thing, one token then says what follows.
LABEL_SPLIT = r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}+:?| ?\$?\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def _pre_tokenizer(cut: str) -> pre_tokenizers.PreTokenizer:
    if cut == "smollm":
        return pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), _gpt2_bytes(use_regex=True)]
        )
    pattern = {"qwen2": QWEN2_SPLIT, "llama-bpe": LLAMA3_SPLIT, "labels": LABEL_SPLIT}[cut]
    split = pre_tokenizers.Split(Regex(pattern), "isolated", invert=False)
    return pre_tokenizers.Sequence([split, _gpt2_bytes(use_regex=False)])


def _gpt2_bytes(use_regex: bool) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def train_bpe(
    texts: Iterable[str],
    vocab_size: int = 2048,
    special_tokens: Sequence[str] = COMPACT_SPECIAL,
    tags: Sequence[str] = TAGS,
    cut: str = "smollm",
) -> Tokenizer:
    """A byte-level BPE of at most `vocab_size` tokens, the same for the same texts; `cut` as in
    `bpe_from_vocabulary`, or "labels".

    Ids: special tokens, tags, the 256 bytes, then merges. Any text can be encoded and decodes to
    itself. Raises UserError when the vocabulary has no room for merges.
    """
    fixed = list(special_tokens) + list(tags)
    if vocab_size <= len(fixed) + 256:
        raise UserError(
            f"a byte-level vocabulary of {vocab_size} tokens has no room for merges; "
            f"ask for more than {len(fixed) + 256}."
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = _pre_tokenizer(cut)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in fixed],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    # Marks that have their own ids must not teach merges such as "</".
    marks = re.compile("|".join(re.escape(token) for token in fixed))
    pieces = (piece for text in texts for piece in marks.split(text) if piece)
    tokenizer.train_from_iterator(pieces, trainer)
    # The trainer knows special tokens only; turn the tags into ordinary added tokens.
    state = json.loads(tokenizer.to_str())
    for token in state["added_tokens"]:
        token["special"] = token["content"] in special_tokens
    return Tokenizer.from_str(json.dumps(state))


def bpe_from_vocabulary(
    tokens: Sequence[str],
    merges: Sequence[str],
    special_ids: Sequence[int],
    tag_ids: Sequence[int],
    cut: str,
) -> Tokenizer:
    """A tokenizer from a byte-level vocabulary in id order and merges ("left right") by rank.

    `special_ids` are never produced by text, `tag_ids` are matched inside text as a whole; `cut`
    names how text is split first: "smollm", "qwen2" or "llama-bpe".
    """
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: i for i, token in enumerate(tokens)},
            merges=[tuple(merge.split(" ")) for merge in merges],
            ignore_merges=cut == "llama-bpe",
        )
    )
    if cut == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = _pre_tokenizer(cut)
    tokenizer.decoder = decoders.ByteLevel()
    for add, ids, special in (
        (tokenizer.add_special_tokens, special_ids, True),
        (tokenizer.add_tokens, tag_ids, False),
    ):
        add([AddedToken(tokens[i], special=special, normalized=False) for i in ids])
    return tokenizer


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Reads `tokenizer.json` in `folder`, or lets transformers build the tokenizer from an older
    model's `vocab.json` and `merges.txt`; UserError when both are missing or broken."""
    file = Path(folder) / "tokenizer.json"
    if not file.is_file() and (Path(folder) / "merges.txt").is_file():
        return _from_vocabulary_files(Path(folder))
    if not file.is_file():
        raise UserError(f"{folder} has no tokenizer.json; copy the one of the model there.")
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception
        raise UserError(
            f"{file} cannot be read as a tokenizer ({error}); copy it again from the model."
        ) from error


def _from_vocabulary_files(folder: Path) -> Tokenizer:
    from transformers import AutoTokenizer  # takes a second to import and is rarely needed

    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True).backend_tokenizer
    except Exception as error:  # whatever is wrong with the files, the answer is the same
        reason = str(error).strip().split("\n")[0][:120]
        raise UserError(
            f"vocab.json and merges.txt in {folder} make no tokenizer ({reason}); copy "
            "tokenizer.json of the model there."
        ) from error


def byte_of_character() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for (GPT-2's table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    table.update({chr(256 + i): byte for i, byte in enumerate(others)})
    return table


def token_bytes(tokenizer: Tokenizer, vocab_size: int) -> list[bytes]:
    """The bytes that each id decodes to; empty for ids that the tokenizer does not have."""
    table = byte_of_character()
    added = {i: token.content for i, token in tokenizer.get_added_tokens_decoder().items()}
    out = []
    for i in range(vocab_size):
        token = tokenizer.id_to_token(i)
        if i in added:
            out.append(added[i].encode())
        elif token is None:
            out.append(b"")
        elif all(character in table for character in token):
            out.append(bytes(table[character] for character in token))
        else:
            out.append(token.encode())
    return out
