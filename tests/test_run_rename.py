import random

from spark_jax.learn.pack import chain_tree
from spark_jax.run.rename import name_tokens, renamed

BYTES = [b"<a>", b" the", b"beaver", b" toad", b" x", b" Red", b" green", b"wolf", b" go"]
A, THE, BEAVER, TOAD, X, RED, GREEN, WOLF, GO = range(len(BYTES))


def dialogue(animal):
    return chain_tree(
        [THE, animal, GREEN], [([GO, animal], [A, animal, THE]), ([A, animal, GREEN], [])]
    )


def tokens(tree):
    return [t for node in tree.nodes for t in node.response_ids + node.context_ids]


def test_names_are_words_that_few_dialogues_share():
    trees = [dialogue(BEAVER), dialogue(TOAD), chain_tree([THE, X], [([GO], [])])]
    assert name_tokens(trees, BYTES) == [BEAVER, TOAD, WOLF]  # GREEN is in 2 of 3


def test_a_name_is_swapped_everywhere_alike():
    names = [BEAVER, TOAD, WOLF]
    changed = set()
    for seed in range(30):
        tree = renamed(dialogue(BEAVER), names, 1.0, random.Random(seed))
        new = tree.nodes[0].context_ids[1]
        assert tokens(tree) == tokens(dialogue(new))  # one permutation, of nothing but names
        changed.add(new)
    assert changed == set(names)  # drawn from all, itself included
    assert tokens(dialogue(BEAVER)) == tokens(renamed(dialogue(BEAVER), names, 0.0, random))


def test_two_names_of_a_dialogue_stay_apart():
    tree = chain_tree([BEAVER, TOAD], [([TOAD, BEAVER], [])])
    for seed in range(50):
        out = renamed(tree, [BEAVER, TOAD, WOLF, GREEN], 1.0, random.Random(seed))
        a, b = out.nodes[0].context_ids
        assert a != b and out.nodes[1].response_ids == [b, a]


def test_what_a_response_says_first_stays():
    """The model could not know a new word for it, and no other name may take its place."""
    tree = chain_tree([THE, BEAVER], [([GO, TOAD], [TOAD, BEAVER]), ([BEAVER], [])])
    for seed in range(30):
        out = renamed(tree, [BEAVER, TOAD, WOLF], 1.0, random.Random(seed))
        assert out.nodes[1].response_ids == [GO, TOAD]
        assert out.nodes[0].context_ids[1] in (BEAVER, WOLF)


def test_the_original_is_left_alone_and_draws_repeat():
    tree = dialogue(BEAVER)
    first = renamed(tree, [BEAVER, TOAD, WOLF], 1.0, random.Random(2))
    assert tokens(tree) == tokens(dialogue(BEAVER))
    assert first == renamed(tree, [BEAVER, TOAD, WOLF], 1.0, random.Random(2))
