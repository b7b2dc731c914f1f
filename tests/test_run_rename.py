import random

from scripted import END, ByteCodec

from spark_jax.learn.pack import chain_tree
from spark_jax.rollout.dialogue import Dialogue
from spark_jax.run.rename import Name, free_names, name_tokens, renamed, swap_table, swapper
from spark_jax.types import Start, Task

BYTES = [b"<a>", b" the", b" beaver", b" toad", b" x", b" Red", b" green", b" wolf", b" go"]
A, THE, BEAVER, TOAD, X, RED, GREEN, WOLF, GO = range(len(BYTES))


def spaced(*tokens):
    return [Name(token, -1) for token in tokens]


def dialogue(animal):
    return chain_tree(
        [THE, animal, GREEN], [([GO, animal], [A, animal, THE]), ([A, animal, GREEN], [])]
    )


def tokens(tree):
    return [t for node in tree.nodes for t in node.response_ids + node.context_ids]


def test_names_are_words_that_few_dialogues_share():
    trees = [dialogue(BEAVER), dialogue(TOAD), chain_tree([THE, X], [([GO], [])])]
    assert name_tokens(trees, BYTES) == spaced(BEAVER, TOAD, WOLF)  # GREEN is in 2 of 3


def test_a_word_has_a_token_at_the_beginning_of_a_line_too():
    more = [*BYTES, b"toad", b"wolf", b"crane"]
    toad, wolf, crane = len(BYTES), len(BYTES) + 1, len(BYTES) + 2
    names = name_tokens([dialogue(BEAVER)] * 9, more)
    assert names == [Name(TOAD, toad), Name(WOLF, wolf), Name(-1, crane)]
    # Both tokens change, or neither; a name that lacks one of them cannot stand for such a word.
    tree = chain_tree([THE, TOAD], [([GO, toad], [crane, toad])])
    seen = set()
    for seed in range(20):
        out = renamed(tree, names, 1.0, random.Random(seed))
        seen.add(tuple(tokens(out)))
    assert seen == {(THE, TOAD, GO, toad, crane, toad), (THE, WOLF, GO, wolf, crane, wolf)}
    table = swap_table(names, 1.0, random.Random(0))
    assert table == {TOAD: WOLF, WOLF: TOAD, toad: wolf, wolf: toad}
    # What a response says first stays, whichever of its tokens it says.
    said = chain_tree([THE], [([GO, toad], [TOAD, toad])])
    assert free_names([said], names) == [Name(WOLF, wolf), Name(-1, crane)]
    assert tokens(renamed(said, names, 1.0, random.Random(1))) == tokens(said)


def test_names_may_be_given():
    assert name_tokens([dialogue(BEAVER)] * 3, BYTES, {"the", "green", "gone"}) == spaced(
        THE, GREEN
    )


def test_a_name_is_swapped_everywhere_alike():
    names = spaced(BEAVER, TOAD, WOLF)
    changed = set()
    for seed in range(30):
        tree = renamed(dialogue(BEAVER), names, 1.0, random.Random(seed))
        new = tree.nodes[0].context_ids[1]
        assert tokens(tree) == tokens(dialogue(new))  # one permutation, of nothing but names
        changed.add(new)
    assert changed == {BEAVER, TOAD, WOLF}  # drawn from all, itself included
    assert tokens(dialogue(BEAVER)) == tokens(renamed(dialogue(BEAVER), names, 0.0, random))


def test_two_names_of_a_dialogue_stay_apart():
    tree = chain_tree([BEAVER, TOAD], [([TOAD, BEAVER], [])])
    for seed in range(50):
        out = renamed(tree, spaced(BEAVER, TOAD, WOLF, GREEN), 1.0, random.Random(seed))
        a, b = out.nodes[0].context_ids
        assert a != b and out.nodes[1].response_ids == [b, a]


def test_what_a_response_says_first_stays():
    """The model could not know a new word for it, and no other name may take its place."""
    tree = chain_tree([THE, BEAVER], [([GO, TOAD], [TOAD, BEAVER]), ([BEAVER], [])])
    for seed in range(30):
        out = renamed(tree, spaced(BEAVER, TOAD, WOLF), 1.0, random.Random(seed))
        assert out.nodes[1].response_ids == [GO, TOAD]
        assert out.nodes[0].context_ids[1] in (BEAVER, WOLF)


def test_the_original_is_left_alone_and_draws_repeat():
    tree = dialogue(BEAVER)
    first = renamed(tree, spaced(BEAVER, TOAD, WOLF), 1.0, random.Random(2))
    assert tokens(tree) == tokens(dialogue(BEAVER))
    assert first == renamed(tree, spaced(BEAVER, TOAD, WOLF), 1.0, random.Random(2))


def test_a_name_that_a_response_says_first_is_not_free():
    trees = [dialogue(BEAVER), chain_tree([THE], [([TOAD], [TOAD]), ([X], [])])]
    assert free_names(trees, spaced(BEAVER, TOAD, WOLF)) == spaced(BEAVER, WOLF)


def test_a_swap_table_pairs_a_share_of_the_names():
    names = spaced(*range(40))
    table = swap_table(names, 0.3, random.Random(0))
    assert len(table) == 12
    assert all(table[table[name]] == name != table[name] for name in table)
    assert len(swap_table(names, 1.0, random.Random(0))) == 40
    assert swap_table(names, 0.0, random.Random(0)) == {}
    drawn = [name for seed in range(200) for name in swap_table(names, 0.3, random.Random(seed))]
    assert set(drawn) == set(range(40))


def test_the_swapper_leaves_out_other_dialogues_and_types_whose_names_are_known():
    trees = [dialogue(BEAVER), dialogue(TOAD), chain_tree([THE, X], [([GO], [])])]
    words = [b" " + bytes([letter] * 3) for letter in range(ord("a"), ord("s"))]
    swap_for = swapper(trees, BYTES + words, 0.5, known_names=("lifespan",))
    tables = [swap_for(Task("toy", "find", 0), random.Random(seed)) for seed in range(100)]
    assert 30 < sum(bool(table) for table in tables) < 70
    assert {len(table) for table in tables} == {0, 2}, "a tenth of 21 names, in pairs"
    assert {name for table in tables for name in table} == {BEAVER, TOAD, WOLF, *range(9, 27)}
    assert not any(swap_for(Task("toy", "lifespan", 0), random.Random(s)) for s in range(100))


def test_a_swapped_dialogue_reads_and_writes_other_words_for_the_same_text():
    swap = {ord("a"): ord("z"), ord("z"): ord("a")}
    plain = Dialogue(ByteCodec(), "s", lambda start: start.observation)
    swapped = Dialogue(ByteCodec(), "s", lambda start: start.observation, swap)
    start = Start("goal", "a bazaar")
    assert swapped.prompt(start)[0] == plain.prompt(start)[0] == "s\na bazaar"
    assert bytes(swapped.prompt(start)[1]) == b"s\nz bzazzr\n>"
    assert swapped.turn("a", [1]) == ("a", [END, *b"z\n>"])
    assert swapped.text([*b"open z", END]) == "open a"
