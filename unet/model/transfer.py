"""Arrays on their way to the device that computes."""

import torch
from torch import Tensor


class Upload:
    """Copies tensors to `device`.

    A GPU is not waited for: while it does what was asked of it before, a tensor is copied on a stream of its own, from
    pinned memory. Threads may share it.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, tensor: Tensor) -> Tensor:
        """Return `tensor` on the device, for use on the current stream."""
        if self._stream is None or tensor.is_cuda:
            return tensor.to(self.device)
        with torch.cuda.stream(self._stream):
            copy = tensor.pin_memory().to(self.device, non_blocking=True)
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self._stream)
        copy.record_stream(current)  # its memory is free only when what is asked of the device by then is done
        return copy
