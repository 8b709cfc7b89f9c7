"""A row's figures of the losses since the last one, also after a resume."""

import json
import math

from moe_train.monitor.losses import LossWindow


def test_a_row_has_mean_and_highest_loss_of_its_own_updates():
    window = LossWindow()
    for loss in (1.0, 4.0, 1.0):
        window.add(loss)
    assert window.close() == {"loss_mean": 2.0, "loss_max": 4.0}
    window.add(3.0)
    assert window.close() == {"loss_mean": 3.0, "loss_max": 3.0}


def test_a_loss_that_is_not_finite_is_left_out_and_a_window_of_these_has_no_figures():
    window = LossWindow()
    for loss in (math.nan, 2.0, math.inf):
        window.add(loss)
    assert window.close() == {"loss_mean": 2.0, "loss_max": 2.0}
    window.add(math.nan)
    assert all(math.isnan(value) for value in window.close().values())


def test_a_resumed_window_ends_as_one_that_was_never_left():
    whole, before, after = LossWindow(), LossWindow(), LossWindow()
    for window in (whole, before):
        window.add(0.1)
        window.add(0.7)
    after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    for window in (whole, after):
        window.add(0.3)
    assert after.close() == whole.close()
