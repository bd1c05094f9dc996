"""A query pair as a notebook shows it: the tokens of both queries, what is masked, and the evidence."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rcprobe.markup import EVIDENCE, MASK, MONO, TOKEN, Markup, element, quiet, table

if TYPE_CHECKING:
    from rcprobe.facts import Query, QueryPair


def pair_html(pair: "QueryPair", beside: Sequence[object] = ("", ""), heading: str = "") -> Markup:
    """Both queries, a row each, with a remark ``beside`` each of them."""
    rows = [
        (query.direction, drawn(query), query.target, query.evidence, *([remark] if heading else []))
        for query, remark in zip((pair.forward, pair.reverse), beside, strict=True)
    ]
    headings = ("query", "tokens", "asked for", "evidence", *([heading] if heading else []))
    about = f"fact {pair.fact}, template {pair.template}, {pair.pairing}"
    if pair.unsupported is None:
        about += ", distances δ→ {}, δ← {}".format(*pair.distances).replace("-", "−")
    return element("div", quiet(about), table(headings, rows), style="overflow-x:auto")


def drawn(query: "Query") -> Markup:
    """A query's tokens: evidence in blue, the place that is asked in a dashed box."""
    if query.unsupported is not None:
        return element("span", query.text, " ", quiet(f"can't be asked: {query.unsupported}"))
    if not query.tokens:
        return element("span", query.text)
    masked = None in query.tokens
    given = () if masked else query.rows[1:]  # of a causal model's target, all tokens but the last are in the prompt
    parts = [_token(query, i, i in given) for i in range(len(query.tokens))]
    if not masked:
        parts.append(element("span", "?", style=MASK, title=f"asked for {query.target}"))
    return element("span", *parts, style=MONO)


def _token(query: "Query", i: int, given: bool) -> Markup:
    shown = query.tokens[i]
    if shown is None:
        return element("span", "mask", style=MASK, title=f"position {i}: a mask, asked for {query.target}")
    if i in query.evidence_positions:
        return element("span", shown, style=EVIDENCE, title=f"position {i}: evidence")
    return element("span", shown, style=MASK if given else TOKEN, title=f"position {i}")
