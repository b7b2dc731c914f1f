"""A household as text in the format that the planner's native library plays
(https://www.fast-downward.org/TranslatorOutputFormat, version 3): a variable for each atom, with
the value 0 where the atom is true and 1 where it is false."""

from __future__ import annotations

from spark_jax.envs.alfworld.goals import Atom
from spark_jax.envs.alfworld.grounding import Effect, Household, Operator

_VALUES = {True: 0, False: 1, None: -1}


def write_sas(household: Household) -> str:
    """The text. All costs are 1, as without a metric."""
    number = {atom: i for i, atom in enumerate(household.atoms)}
    won = len(number)  # true as soon as one of the ways to win is
    variables = [_variable(i, f"{atom[0]}({', '.join(atom[1])})") for atom, i in number.items()]
    state = [_VALUES[true] for true in household.atoms.values()]
    return "\n".join(
        [
            "begin_version\n3\nend_version\nbegin_metric\n0\nend_metric",
            str(won + 1),
            *variables,
            _variable(won, "new-axiom@0()", layer=0),
            "0",  # groups of which one is true at most
            "begin_state",
            *map(str, state),
            f"1\nend_state\nbegin_goal\n1\n{won} 0\nend_goal",
            str(len(household.operators)),
            *[_operator(operator, number) for operator in household.operators],
            str(len(household.wins)),
            *[_rule([number[atom] for atom in atoms], won) for atoms in household.wins],
            "",
        ]
    )


def _variable(number: int, atom: str, layer: int = -1) -> str:
    names = f"Atom {atom}\nNegatedAtom {atom}"
    return f"begin_variable\nvar{number}\n{layer}\n2\n{names}\nend_variable"


def _operator(operator: Operator, number: dict[Atom, int]) -> str:
    lines = ["begin_operator", operator.name, str(len(operator.needs))]
    lines += [f"{number[atom]} 0" for atom in operator.needs]
    lines.append(str(len(operator.effects)))
    lines += [_effect(effect, number[effect.atom]) for effect in operator.effects]
    return "\n".join([*lines, "1\nend_operator"])


def _effect(effect: Effect, number: int) -> str:
    condition = "0" if effect.only_if is None else f"1 {number} {_VALUES[effect.only_if]}"
    return f"{condition} {number} {_VALUES[effect.before]} {_VALUES[effect.after]}"


def _rule(needs: list[int], won: int) -> str:
    lines = [f"{number} 0" for number in needs]
    return "\n".join(["begin_rule", str(len(needs)), *lines, f"{won} 1 0\nend_rule"])
