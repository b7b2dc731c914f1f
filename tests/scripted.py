"""Stand-ins for slow parties of a rollout: a policy that follows a script instead of a model, and
environments that answer at once. What a leaf does depends on its identity only."""

import collections
import random

from spark_jax.cache.pool import Pages
from spark_jax.rollout.dialogue import Dialogue
from spark_jax.rollout.identity import host_random
from spark_jax.types import PastStep, Start, StepResult, Task

END = 0


class ByteCodec:
    """Token ids are bytes."""

    end_of_turn_id = END

    def encode_prompt(self, system, user):
        return list((system + "\n" + user + "\n>").encode())

    def encode_turn(self, observation, ended):
        return ([] if ended else [END]) + list((observation + "\n>").encode())

    def token_bytes(self):
        return [bytes([i]) for i in range(256)]

    def decode(self, ids):
        return bytes(ids).decode(errors="replace")


DIALOGUE = Dialogue(ByteCodec(), "play", lambda start: f"{start.goal}: {start.observation}")


class ScriptedEngine:
    """Finishes a random choice of its rows each round; `latency` seeds the choice."""

    end_of_turn = END

    def __init__(self, explore_rate, latency=0, fork_at="next_step"):
        self.capacity, self.rows = 8, []
        self.explore_rate, self.fork_at = explore_rate, fork_at
        self.latency = random.Random(latency)
        self.alive = 0
        self.resting = False

    @property
    def busy(self):
        return bool(self.rows)

    def add(self, row):
        if not row.pages.ids:
            row.pages.ids = [1]
            self.alive += 1
        self.rows.append(row)

    def fork(self, pages):
        self.alive += 1
        return Pages([1], pages.length)

    def keep(self, pages, tokens):
        assert pages.ids, "given up already"

    def release(self, pages):
        assert pages.ids, "released twice"
        pages.ids = []
        self.alive -= 1

    def rest(self):
        assert not self.rows
        self.resting = True

    def round(self):
        done = []
        for row in list(self.rows):
            if row.keep_prefix and row.prefix is None:
                row.prefix = self.fork(row.pages)
            if self.latency.random() < 0.5:
                continue
            if row.budget:
                row.response = self.script(row)
                row.logprobs = self.logprobs(row)
                row.tokens += row.response
            self.rows.remove(row)
            done.append(row)
        return done

    def logprobs(self, row):
        return [-1.0] * len(row.response)

    def script(self, row):
        draw = host_random(row.key.tolist())
        explore = draw.random() < self.explore_rate
        tag = "explore" if explore else "think"
        reasoning = f"<{tag}>{draw.randrange(5)}</{tag}>"
        verb = draw.choice(["go", "win", "lose", "look", "wait"])
        action = f"<action>{verb} {draw.randrange(9)}</action>"
        if draw.random() < 0.1:
            action = "I forgot"
        if bytes(row.tokens[-10:]).endswith(b"</explore>"):
            return list(action.encode())
        if self.fork_at == "same_step" and explore:
            return list(reasoning.encode())
        return list((reasoning + action).encode())


class InstantEnvironments:
    """An environment pool without environments: the answer is a function of the whole path."""

    def __init__(self, workers=3, latency=0):
        self.workers, self.latency = workers, random.Random(latency)
        self.jobs, self.played = [], {}
        self.held = set()
        self.stats = collections.Counter()

    def waiting(self):
        return 0

    def submit(self, key, task, past, action):
        self.held.add(key)
        self.jobs.append((key, task, past, action))

    def rename(self, old, new):
        if old in self.held:
            self.held.remove(old)
            self.held.add(new)

    def release(self, key):
        self.held.discard(key)

    def collect(self, wait):
        if wait == "all":
            taken, self.jobs = self.jobs, []
        else:
            self.latency.shuffle(self.jobs)
            n = self.latency.randrange(len(self.jobs) + 1)
            if wait == "any" and self.jobs:
                n = max(n, 1)
            taken, self.jobs = self.jobs[:n], self.jobs[n:]
        return [(key, self.answer(*job)) for key, *job in taken]

    def answer(self, task, past, action):
        if action is None:
            return Start(f"goal {task.variation}", "a room")
        text = " ".join([*(p.action for p in past), action])
        done = action.startswith(("win 1", "lose 1", "lose 2"))
        won = action.startswith("win 1")
        score = 100.0 if won else 40.0 if action.startswith("lose 2") else 0.0
        return StepResult(f"seen {hash_text(text)}", score, done, won, action != "wait 3")


def hash_text(text):
    return host_random(text).randrange(1000)


TASK = Task("scripted", "maze", 0)
__all__ = ["DIALOGUE", "TASK", "InstantEnvironments", "PastStep", "ScriptedEngine"]
