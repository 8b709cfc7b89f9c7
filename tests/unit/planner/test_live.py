"""The counter of live bytes, on tensors whose life is known line by line."""

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from moe_train.planner.live import LiveBytes
from moe_train.planner.watch import Watch


def test_a_tensor_counts_until_it_is_freed_and_its_views_not_at_all():
    live = LiveBytes()
    with Watch(live):
        first = torch.zeros(100)
        view = first[10:20].t()
        second = first + 1
        assert live.now == 800
        del first
        assert live.now == 800, "the view keeps it"
        del view
        assert live.now == 400
        del second
    assert (live.now, live.peak) == (0, 800)


def test_fake_tensors_count_as_real_ones():
    live = LiveBytes()
    with FakeTensorMode(), Watch(live):
        tensor = torch.zeros(1 << 40)
        assert live.now == 4 << 40
        del tensor
    assert live.now == 0


def test_tensors_on_the_meta_device_take_none():
    live = LiveBytes()
    with Watch(live):
        shape = torch.zeros(100, device="meta")
        with FakeTensorMode():
            other = torch.zeros(100, device="meta")
    assert (live.now, live.peak, shape.shape, other.shape) == (0, 0, (100,), (100,))


def test_a_storage_that_is_emptied_counts_no_more():
    live = LiveBytes()
    with live.following_resizes(), Watch(live):
        tensor = torch.zeros(100)
        tensor.untyped_storage().resize_(0)
        assert live.now == 0
        tensor.untyped_storage().resize_(400)
        assert live.now == 400


def test_the_peak_of_a_backward_pass_has_what_was_saved_for_it():
    live = LiveBytes()
    x = torch.ones(100, requires_grad=True)
    with Watch(live):
        y = x.exp().exp()  # both are saved
        assert live.now == 800
        y.sum().backward()
        del y
    assert live.now == 400, "the gradient is left"
