"""Which step of NumPyro's `scan` a sample site is at."""

from typing import Any

import jax
from numpyro.contrib.control_flow.scan import scan_wrapper
from numpyro.handlers import infer_config
from numpyro.primitives import Messenger

_LENGTH = "_length_of_reversed_scan"


class CountScans(Messenger):
    """Tell the sites in the body of a reversed scan how long it is.

    NumPyro counts steps from zero in the order in which they are taken, and stacks values in the order of the data: in
    a reversed scan the last come first.
    """

    def process_message(self, msg: dict) -> None:
        """Mark what is in the body of a reversed scan."""
        if msg["type"] != "control_flow" or msg["fn"] is not scan_wrapper:
            return
        function, init, xs, length, is_reversed = msg["args"]
        if is_reversed:
            length = jax.tree.leaves(xs)[0].shape[0] if length is None else length
            marked = infer_config(function, config_fn=lambda site: {_LENGTH: length})
            msg["args"] = marked, init, xs, length, is_reversed


def step_of_scan(site: dict) -> Any:
    """The index of a site among the values of its scan, in the order of the data; None outside of scans."""
    step, length = site["infer"].get("_scan_current_index"), site["infer"].get(_LENGTH)
    return step if step is None or length is None else length - 1 - step
