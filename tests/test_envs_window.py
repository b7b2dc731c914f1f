"""The text of a prompt that is rebuilt at each step."""

import os

import pytest

from spark_jax.envs.window import Window, window_message
from spark_jax.types import PastStep

FIRST = "find the key\nA hall."
PAST = [
    PastStep("go north", "A kitchen."),
    PastStep("go east", "A shed."),
    PastStep("", "No action found."),
    PastStep("open box", "The key."),
]

TEXTS = {
    # (style, steps played): the message, with a window of two
    ("short", 1): "find the key\nA hall.\n>go north\nA kitchen.",
    ("short", 2): "find the key\nA hall.\n>go north\nA kitchen.\n>go east\nA shed.",
    ("short", 3): "find the key\nA hall.\n...\nA kitchen.\n>go east\nA shed.\n>(none)\n"
    "No action found.",
    ("short", 4): "find the key\nA hall.\n...\nA shed.\n>(none)\nNo action found.\n"
    ">open box\nThe key.",
    ("full", 1): "find the key\nA hall.\n\nAction 1: go north\nObservation 1: A kitchen.",
    ("full", 3): "find the key\nA hall.\n\n(Step 1 is left out.)\nObservation 1: A kitchen.\n\n"
    "Action 2: go east\nObservation 2: A shed.\n\nAction 3: (none)\n"
    "Observation 3: No action found.",
    ("full", 4): "find the key\nA hall.\n\n(Steps 1 to 2 are left out.)\nObservation 2: A shed.\n\n"
    "Action 3: (none)\nObservation 3: No action found.\n\nAction 4: open box\n"
    "Observation 4: The key.",
}


@pytest.mark.parametrize("style, played", TEXTS)
def test_the_message(style, played):
    assert window_message(FIRST, PAST[:played], Window(2, style)) == TEXTS[style, played]


@pytest.mark.parametrize("style", ["short", "full"])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_a_message_begins_as_the_one_before(style, k):
    """What prompts have in common can stay in the cache: all of the message before while nothing
    is left out, and the first message always."""
    past = [PastStep(f"act {i}", f"seen {i}") for i in range(9)]
    texts = [window_message(FIRST, past[:n], Window(k, style)) for n in range(10)]
    assert texts[0] == FIRST
    for played, (before, after) in enumerate(zip(texts, texts[1:], strict=False)):
        common = os.path.commonprefix([before, after])
        assert common == before if played < k else common.startswith(FIRST)
        assert after.count("act ") == min(played + 1, k)
        # Before each action shown stands what it answers.
        assert after.count("seen ") == min(played + 1, k) + (played + 1 > k)
