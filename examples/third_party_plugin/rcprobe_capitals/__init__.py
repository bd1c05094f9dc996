"""The plugin: which names it adds, and where rcprobe finds what they stand for.

Keep this module light. Every rcprobe command imports it; the targets are imported when their name is used.
"""

from collections.abc import Callable

import rcprobe

Register = Callable[[str, str], None]


@rcprobe.hookimpl
def register_models(register: Register) -> None:
    register("word-bert", "rcprobe_capitals.model:WordBert")


@rcprobe.hookimpl
def register_datasets(register: Register) -> None:
    register("capitals-in-words", "rcprobe_capitals.data:capitals")


@rcprobe.hookimpl
def register_metrics(register: Register) -> None:
    register("margin", "rcprobe_capitals.metric:margin")
