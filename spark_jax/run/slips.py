"""Slips: expert dialogues in which an action goes wrong before it is said right.

Experts make no mistakes, so a policy that imitates them has never read what the environment says
to one: after its first wrong name it babbles. Here some actions are first said with a word that
is nowhere in the dialogue; the environment refuses, which changes nothing; then the expert says
so, reads again, and repeats the action. The retry is an `<explore>` step: what to try after a
failure is a real choice, and RL forks there. What was refused is context and carries no loss
(`learn.credit.sft_weights`), so mistakes are answered and not imitated. It is noise injection
as in DART (arXiv 1703.09327), with words for noise.

A world may know a mistake of judgement too (`Judgement`): taking what is not there. The refusal is
the same, but what helps is to judge again; so actions of that verb never go wrong by a name, and
after a refused one the dialogues always say the contrary.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from spark_jax.envs.response import (
    METAREASONING,
    THINKING,
    Kind,
    Parsed,
    parse_response,
    render_tagged,
)

AGAIN = "That was not understood; read again."
IN_A_ROW = 2  # wrong words before one action, at most
MISREAD = 0.5  # share of the slips whose reasoning is wrong too
MISJUDGED = 2.0  # a judgement goes wrong so many times as often as a name

_WORD = re.compile(r"[a-z]{3,}")

Turn = tuple[str, str]  # response, the observation it brings


class Judgement(NamedTuple):
    """A mistake of judgement that an environment refuses."""

    verb: str  # first word of the actions it leads to
    # (responses, observations they bring, step) -> reasoning and action of one who judges wrongly
    # there; None: nobody can
    wrong: Callable[[Sequence[Parsed], Sequence[str], int], tuple[str, str] | None]


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
    judgement: Judgement | None = None,
) -> list[Turn]:
    """The dialogue with slips.

    Args:
      user: its first message.
      share: of the actions, those that go wrong by a word; judgements do so `MISJUDGED` times as
        often.
      words: what a name may be mistaken for, where the dialogue does not hold it.
      refusal: what the environment says to an action that it does not understand.
      retry: tag of the step that says it right; it belongs to THINKING or METAREASONING, and so do
        those of the dialogue.
      judgement: the world's mistake of judgement; None: it has none.
    """
    tags = THINKING if retry in THINKING else METAREASONING
    text = " ".join([user, *(part for turn in turns for part in turn)])
    known = set(_WORD.findall(text))
    strange = [word for word in words if word not in known]
    steps = [parse_response(response, tags) for response, _ in turns]
    observations = [observation for _, observation in turns]
    out: list[Turn] = []
    for i, ((response, observation), said) in enumerate(zip(turns, steps, strict=True)):
        # What is refused already (RLVMR's experts make mistakes of their own) goes wrong once only.
        may_slip = said.well_formed and observation != refusal
        names = _names(said.action) if may_slip else []
        kind, lead = said.kind, ""
        if judgement and may_slip:
            wrong = judgement.wrong(steps, observations, i)
            if wrong and rng.random() < MISJUDGED * share:
                out.append((render_tagged(wrong[0], kind, wrong[1]), refusal))
                kind, lead = retry, f"{AGAIN} "
            if said.action.startswith(f"{judgement.verb} "):
                names = []
        for _ in range(IN_A_ROW):
            if not strange or not names or rng.random() >= share:
                break
            name, word = rng.choice(names), rng.choice(strange)
            misread = rng.random() < MISREAD
            reasoning = _replaced(said.reasoning, name, word) if misread else said.reasoning
            action = _replaced(said.action, name, word)
            out.append((render_tagged(lead + reasoning, kind, action), refusal))
            kind, lead = retry, f"{AGAIN} "
        if lead:
            response = render_tagged(lead + said.reasoning, kind, said.action)
        out.append((response, observation))
    return out


def _names(action: str) -> list[str]:
    """Words of an action after its first one that may be names; none of `search[words]`, which is
    answered whatever the words are."""
    verb, *words = action.split() or [""]
    return [word for word in words if "[" not in verb and _WORD.fullmatch(word)]


def _replaced(text: str, name: str, word: str) -> str:
    return re.sub(rf"\b{name}\b", word, text)
