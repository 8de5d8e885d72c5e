"""What adversarial training minimises. One file per method; the registry is the only list of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rift import plugins
from rift.errors import UserError
from rift.methods.aaer import aaer
from rift.methods.awp import awp
from rift.methods.mart import mart
from rift.methods.n_fgsm import n_fgsm
from rift.methods.pgd_at import pgd_at
from rift.methods.score import score
from rift.methods.trades import trades
from rift.methods.types import Method

METHODS: dict[str, Callable[..., Method]] = {
    "pgd_at": pgd_at,
    "trades": trades,
    "mart": mart,
    "score": score,
    "n_fgsm": n_fgsm,
    "aaer": aaer,
}


def make_method(name: str, options: dict[str, Any], label_smoothing: float = 0.0) -> Method:
    """A method by its name.

    Args:
        name: in `METHODS`, or `awp`, which needs `base` and the base's options among its own, or a plugin's.
        options: exactly those of the method, see its file.
        label_smoothing: of every method's classification loss.
    """
    if name not in (*METHODS, "awp"):
        chosen = plugins.with_options("method", name, options, ("label_smoothing",))
        method = plugins.load("method", name)(**chosen, label_smoothing=label_smoothing)
        if not isinstance(method, Method):
            raise UserError(
                f"method={name} made a {type(method).__name__}: it has to be a rift.methods.Method."
            )
        return method
    if name != "awp":
        return METHODS[name](**options, label_smoothing=label_smoothing)
    own = {option: options[option] for option in ("gamma", "warmup")}
    of_base = {option: value for option, value in options.items() if option not in ("base", *own)}
    return awp(make_method(options["base"], of_base, label_smoothing), **own)


__all__ = ["METHODS", "Method", "make_method"]
