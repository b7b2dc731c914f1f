"""Makes tests/golden/lucene.json: how Lucene itself cuts texts and ranks products.

    python tests/make_lucene_golden.py request > request.json    # our Python; see PACKED
    python tests/make_lucene_golden.py answer < request.json > answer.json    # pyserini's
    python tests/make_lucene_golden.py keep < answer.json    # ours again

pyserini (0.22.1) needs Java; it is what the original WebShop searches with. PACKED is the folder
that test_envs_webshop_real.py describes.
"""

from __future__ import annotations

import json
import lzma
import os
import pathlib
import random
import subprocess
import sys
import tempfile

FILE = pathlib.Path(__file__).parent / "golden" / "lucene.json"
PACKED = os.environ.get("WEBSHOP_PACKED", "")
TEXTS = [
    "The Lamps' 3.5-inch mug's of U.S.A",
    "★ ★★ ❤️❤️ ✔fast 👍🏽 👩‍👩‍👧 🇺🇸🇩🇪 ™brand © 2020",
    "a¼b ²x 10² comfort：bring 5,3；a;b 1;2 x·y 3:4 a:b",
    "us as is it's o'clock it’s 's U_S _ __ a_b",
    "assembly assemble possibly responsible humbly technology technologies apology logi ably",
    "relational conditional rational valency operator feudalism decisiveness hopefulness",
    "formality sensitivity triplicate formative formalize electrical goodness revival",
    "allowance inference airliner adjustable defensible irritant replacement adjustment dependent",
    "adoption communism activate angularity homologous effective bowdlerize probate cease roll",
    "caresses ponies ties cats feed agreed plastered motoring conflated troubled sized hopping",
    "falling hissing fizzed failing filing happy sky dying lying news innings y yy says toys",
    'naïve café crème brûlée ßtraße 日本 vitamin-c 100% cotton/polyester 28" x 28" $19.99 #1',
    "wi-fi 2.4ghz 4k@60hz usb-c 5g t-shirt men's mens' women’s v-neck 3xl (m-3xl) size:large",
]


def request() -> dict:
    """What Lucene is asked: texts, and of two shops documents (asin, text) and queries."""
    sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
    from spark_jax.envs.webshop.environment import open_shop
    from spark_jax.envs.webshop.search import contents

    shop = open_shop()
    documents = [(product.asin, contents(product)) for product in shop.products]
    asked = [goal.instruction for goal in random.Random(0).sample(list(shop.goals), 15)]
    asked += [product.title for product in random.Random(1).sample(list(shop.products), 15)]
    out = {"texts": TEXTS, "embedded": {"documents": documents, "queries": asked}}
    if PACKED:
        with lzma.open(f"{PACKED}/documents_1k.json.xz", "rt", encoding="utf-8") as file:
            packed = json.load(file)
        documents = [(document["id"], document["contents"]) for document in packed]
        chosen = random.Random(0).sample([document["product"] for document in packed], 60)
        asked = [f"{p['query']} {p['category']}" for p in chosen[:20]]
        asked += [p["name"] for p in chosen[20:40]]
        asked += [" ".join(p["name"].split()[:5]) for p in chosen[40:]]
        out["packed"] = {"documents": documents, "queries": asked}
    return out


def answer(asked: dict) -> dict:
    """Terms of each text; for each query the asins of the 50 best, best first."""
    from pyserini.analysis import Analyzer, get_lucene_analyzer

    analyzer = Analyzer(get_lucene_analyzer())
    out: dict = {"texts": [[text, analyzer.analyze(text)] for text in asked.pop("texts")]}
    return out | {name: ranked(**shop) for name, shop in asked.items()}


def ranked(documents: list, queries: list[str]) -> list:
    from pyserini.search.lucene import LuceneSearcher

    with tempfile.TemporaryDirectory() as folder:
        lines = [json.dumps({"id": asin, "contents": text}) for asin, text in documents]
        pathlib.Path(folder, "in").mkdir()
        pathlib.Path(folder, "in", "documents.jsonl").write_text("\n".join(lines))
        command = f"-m pyserini.index.lucene --collection JsonCollection --input {folder}/in"
        command += f" --index {folder}/out --generator DefaultLuceneDocumentGenerator --threads 1"
        subprocess.run([sys.executable, *command.split()], check=True, stdout=sys.stderr)
        searcher = LuceneSearcher(f"{folder}/out")
        return [[query, [hit.docid for hit in searcher.search(query, k=50)]] for query in queries]


def main(task: str) -> None:
    if task == "keep":
        text = json.dumps(json.load(sys.stdin), ensure_ascii=False, separators=(",", ":"))
        FILE.write_text(text.replace("]],", "]],\n") + "\n", encoding="utf-8")
    else:
        print(json.dumps(request() if task == "request" else answer(json.load(sys.stdin))))


if __name__ == "__main__":
    main(sys.argv[1])
