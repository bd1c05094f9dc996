"""Accuracy both ways, one column a reading: 1 where the right answer beats every rival, 0 elsewhere."""

from torch import Tensor

from rcprobe import Observation, metric


@metric(reads={"log_probs"}, pairing=("same_target", "swapped"), title="accuracy")
def accuracy(seen: Observation) -> dict[str, Tensor]:
    """Right or wrong at once at all target tokens; a tie is wrong; NaN where a reading can't judge (Tab. 1, 2).

    Of a causal model also, where the dataset asks for it, whether it writes the answer in what it adds to the prompt.
    """
    assert seen.readings is not None
    columns = {}
    for name, (_, right) in seen.readings.items():
        columns[f"forward, {name}"] = right[:, 0]
        columns[f"reverse, {name}"] = right[:, 1]
    if seen.continued is not None:
        columns["forward, greedy to the end"] = seen.continued[:, 0]
        columns["reverse, greedy to the end"] = seen.continued[:, 1]
    return columns
