"""Dynamics: does a step that helps the forward query help the reverse query of the same fact?"""

from torch import Tensor

from rcprobe import Condition, Observation, metric


@metric(
    reads={"gradients"},
    pairing=("same_target", "swapped"),
    title="dynamics",
    conditions=(
        Condition("cos matched − same target, other evidence", "mean", ("matched", "same_target"), 0.02, "cosine"),
        Condition("cos matched", "mean", ("matched",), 0.0, "cosine"),
    ),
)
def gradient_alignment(seen: Observation) -> dict[str, Tensor]:
    """cos(g→, g←) over all parameters, by group and by layer, beside its controls (Thm 4.6, App. C).

    ``share layer k`` is layer k's part of the whole cosine (shares and what lies outside the layers add up to it).
    With low-rank adapters the whole is theirs; ``dense`` columns are of the weights under them, whose cosine doesn't
    depend on an adapter's random start.
    """
    products = seen.gradients
    assert products is not None
    kept, dense = products.indices(), products.indices(dense=True)
    forward, reverse = products.forward_norm2[:, kept].sum(1), products.reverse_norm2[:, kept].sum(1)
    columns = {
        "matched": products.cosine(),
        "same_target": products.control_cosine("same_target"),
        "other_target": products.control_cosine("other_target"),
        "other_fact": products.control_cosine("other_fact"),
        "forward_norm": forward.sqrt(),
        "reverse_norm": reverse.sqrt(),
    }
    if dense:
        columns["dense matched"] = products.cosine(dense)
        columns["dense same_target"] = products.control_cosine("same_target", dense)
    for group in dict.fromkeys(products.parts[i].group for i in kept):
        of = products.indices(group=group)
        columns[f"cos {group}"] = products.cosine(of)
        columns[f"same_target {group}"] = products.control_cosine("same_target", of)
    for layer in sorted({part.layer for part in products.parts if part.layer is not None}):
        inside = products.indices(layer=layer)
        columns[f"cos layer {layer}"] = products.cosine(inside)
        columns[f"same_target layer {layer}"] = products.control_cosine("same_target", inside)
        columns[f"share layer {layer}"] = products.inner[:, inside].sum(1) / (forward * reverse).sqrt()
    return columns
