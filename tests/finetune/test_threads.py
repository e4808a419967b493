"""One of torch's threads for a while, and all of them afterwards."""

from contextlib import suppress

import torch

from qra_bo.finetune.threads import one_thread


def test_threads_come_back_after_an_error_too() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with suppress(ValueError), one_thread():
            assert torch.get_num_threads() == 1
            raise ValueError
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
