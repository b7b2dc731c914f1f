"""What a shop of the size of WebShop's full set costs: time to open, memory, time of a search.

    python benchmarks/catalogue.py                     # 1,181,436 products: files of 2 GB in /tmp
    python benchmarks/catalogue.py --data_dir=/data/webshop    # the original's own files

Without --data_dir the products are invented, in the original's file format, with texts as long as
those of its small set on average: titles of 116 characters, descriptions of 510, bullet points of
754. Their options are fewer (48 characters of JSON a product; the small set has 595, half of its
products none), and there are no links to images. What is measured runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import random
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.measured import peak_gb  # noqa: E402

PRODUCTS = 1_181_436  # of the original's full set
WORDS = 200_000  # different ones, by Zipf's law


def write_catalogue(folder: pathlib.Path, products: int) -> None:
    """Product and attribute file in the original's format."""
    import numpy as np

    from spark_jax.envs.webshop.generate import generated_files

    rng, draw = random.Random(0), np.random.default_rng(0)
    vocabulary = [
        "".join(rng.choices("abcdefghiklmnoprstu", k=rng.randint(3, 9))) for _ in range(WORDS)
    ]
    models = generated_files()
    known_file = (folder / "items_ins_v2.json").open("w", encoding="utf-8")
    with known_file, (folder / "items_shuffle.json").open("w", encoding="utf-8") as file:
        for i in range(products):
            ranks = iter((draw.zipf(1.2, 240) % WORDS).tolist())

            def text(words: int) -> str:
                return " ".join(vocabulary[next(ranks)] for _ in range(words))  # noqa: B023

            raw, known = models[i % len(models)]
            raw = raw | {
                "asin": f"B{i:09d}",
                "name": text(18),
                "full_description": text(79),
                "small_description": [text(24) for _ in range(5)],
            }
            if i % 2:
                raw["customization_options"] = {}
            start = "[" if i == 0 else ",\n"
            file.write(start + json.dumps(raw))
            known_file.write(("{" if i == 0 else ",\n") + f'"{raw["asin"]}": {json.dumps(known)}')
        file.write("]")
        known_file.write("}")


def measure(folder: str) -> dict[str, float]:
    from spark_jax.envs.webshop.environment import open_shop

    began = time.perf_counter()
    shop = open_shop(folder)
    out = {"products": len(shop.products), "open_s": time.perf_counter() - began}
    queries = [goal.instruction for goal in random.Random(0).sample(list(shop.goals), 200)]
    began = time.perf_counter()
    for query in queries:
        shop.index.search(query)
    out["search_ms"] = 1000 * (time.perf_counter() - began) / len(queries)
    out["peak_gb"] = peak_gb()
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--products", type=int, default=PRODUCTS)
    parser.add_argument("--data_dir", default="", help="of the original's files")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.data_dir)))
        return
    with tempfile.TemporaryDirectory() as made:
        folder = pathlib.Path(options.data_dir or made)
        if not options.data_dir:
            write_catalogue(folder, options.products)
        size = sum(file.stat().st_size for file in folder.glob("*.json")) / 2**30
        command = [sys.executable, __file__, "--measure", f"--data_dir={folder}"]
        result = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    print(
        f"{result['products']:,} products, {size:.2f} GB of files: open in "
        f"{result['open_s']:.0f} s, {result['peak_gb']:.1f} GB at most, "
        f"{result['search_ms']:.1f} ms a search"
    )


if __name__ == "__main__":
    main()
