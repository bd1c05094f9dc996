"""Dynamics of training itself: does a step of the training objective help the reverse query?"""

from torch import Tensor

from rcprobe import Condition, Observation, metric


@metric(
    reads={"training_gradients"},
    pairing="swapped",
    title="dynamics of the training step",
    on_request=True,
    conditions=(Condition("cos(g_train, g←)", "mean", ("cosine",), 0.0, "cosine"),),
)
def training_alignment(seen: Observation) -> dict[str, Tensor]:
    """cos(g_train, g←) over all parameters: g_train is the gradient of the model's own objective on the fact's forward
    statement, all tokens of it, averaged over draws of the masks (§4.3; the figure by which masked and causal
    models are compared).
    """
    assert seen.training_cosine is not None
    return {"cosine": seen.training_cosine}
