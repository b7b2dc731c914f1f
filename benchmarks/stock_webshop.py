"""Times the original WebShop's text environment; run by its own Python, inside its checkout.

    cd WEBSHOP && STOCK_PYTHON .../benchmarks/stock_webshop.py < request.json > answer.json

benchmarks/environments.py starts it (--webshop-stock, --webshop-python). It imports nothing of this
project: the original's packages and ours do not install side by side.

The request: {"goals": [as the original's dictionaries], "prices": {asin: price}, "actions": for
each goal the actions to play, "fork_depths": [...], "forked": how many of the goals are forked}.
Goals and prices replace those that the original draws at its start, so that pages and rewards can
be compared. The answer: times in milliseconds, memory in megabytes, and what was seen.
"""

import json
import os
import pathlib
import sys
import time


def main() -> None:
    request = json.load(sys.stdin)
    answer, sys.stdout = sys.stdout, sys.stderr  # the original prints while it loads
    began = time.perf_counter()
    env = open_environment()
    env.server.goals = request["goals"]
    env.server.product_prices = request["prices"]
    result = {"start_s": time.perf_counter() - began, "reset_ms": [], "step_ms": []}
    result.update(pages=[], rewards=[], fork_ms={str(d): [] for d in request["fork_depths"]})

    for number, actions in enumerate(request["actions"]):
        result["reset_ms"].append(_ms(lambda: env.reset(session=number)))  # noqa: B023
        pages, reward = [env.observation], 0.0
        for action in actions:
            before = time.perf_counter()
            page, reward, _, _ = env.step(action)
            result["step_ms"].append(1000 * (time.perf_counter() - before))
            pages.append(page)
        result["pages"].append(pages)
        result["rewards"].append(float(reward))
    for number, actions in enumerate(request["actions"][: request["forked"]]):
        actions = actions[:-1]  # without the purchase
        for depth in request["fork_depths"]:
            repeated = [actions[i % len(actions)] for i in range(depth)]
            took = _ms(lambda: (env.reset(session=number), [env.step(a) for a in repeated]))  # noqa: B023
            result["fork_ms"][str(depth)].append(took)
    result["memory_mb"] = resident_mb()
    json.dump(result, answer)


def open_environment():
    """As its README says: text observations, the set of 1,000 products, goals made of them."""
    # Instead of the folder of this file, where other modules have the names of its packages.
    sys.path[0] = os.getcwd()
    from web_agent_site.envs.web_agent_text_env import WebAgentTextEnv

    file = os.path.join("data", "items_shuffle_1000.json")
    # Ours always shows the button of the attributes.
    return WebAgentTextEnv("text", file, num_products=1000, human_goals=0, show_attrs=True)


def resident_mb() -> float:
    status = pathlib.Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if "VmRSS" in line) / 1024


def _ms(call) -> float:
    began = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - began)


if __name__ == "__main__":
    main()
