"""Slips: expert dialogues in which an action goes wrong before it is said right.

Experts make no mistakes, so a policy that imitates them has never read what the environment says
to one: after its first wrong name it babbles. Here some actions are first said with a word that
is nowhere in the dialogue; the environment refuses, which changes nothing; then the expert says
so, reads again, and repeats the action. The retry is an `<explore>` step: what to try after a
failure is a real choice, and RL forks there. What was refused is context and carries no loss
(`learn.credit.sft_weights`), so mistakes are answered and not imitated. It is noise injection
as in DART (arXiv 1703.09327), with words for noise.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence

from spark_jax.envs.response import METAREASONING, THINKING, Kind, parse_response, render_tagged

AGAIN = "That was not understood; read again."
IN_A_ROW = 2  # slips before one action, at most
MISREAD = 0.5  # share of the slips whose reasoning is wrong too

_WORD = re.compile(r"[a-z]{3,}")

Turn = tuple[str, str]  # response, the observation it brings


def spoken_words(dialogues: Iterable[Sequence[Turn]]) -> list[str]:
    """Words that actions of these dialogues hold after their verb, sorted."""
    actions = (parse_response(response).action for turns in dialogues for response, _ in turns)
    return sorted({word for action in actions for word in _names(action)})


def with_slips(
    user: str,
    turns: Sequence[Turn],
    share: float,
    words: Sequence[str],
    refusal: str,
    retry: Kind,
    rng: random.Random,
) -> list[Turn]:
    """The dialogue with slips before a `share` of its actions.

    Args:
      user: its first message.
      words: what a name may be mistaken for, where the dialogue does not hold it.
      refusal: what the environment says to an action that it does not understand.
      retry: tag of the step that says it right; it belongs to THINKING or METAREASONING, and so do
        those of the dialogue.
    """
    tags = THINKING if retry in THINKING else METAREASONING
    text = " ".join([user, *(part for turn in turns for part in turn)])
    known = set(_WORD.findall(text))
    strange = [word for word in words if word not in known]
    out: list[Turn] = []
    for response, observation in turns:
        said = parse_response(response, tags)
        # What is refused already (RLVMR's experts make mistakes of their own) goes wrong once only.
        names = _names(said.action) if said.well_formed and observation != refusal else []
        kind, lead = said.kind, ""
        for _ in range(IN_A_ROW):
            if not strange or not names or rng.random() >= share:
                break
            name, word = rng.choice(names), rng.choice(strange)
            misread = rng.random() < MISREAD
            reasoning = _replaced(said.reasoning, name, word) if misread else said.reasoning
            wrong = _replaced(said.action, name, word)
            out.append((render_tagged(lead + reasoning, kind, wrong), refusal))
            kind, lead = retry, f"{AGAIN} "
        if lead:
            response = render_tagged(lead + said.reasoning, kind, said.action)
        out.append((response, observation))
    return out


def _names(action: str) -> list[str]:
    """Words of an action after its first one that may be names."""
    return [word for word in action.split()[1:] if _WORD.fullmatch(word)]


def _replaced(text: str, name: str, word: str) -> str:
    return re.sub(rf"\b{name}\b", word, text)
