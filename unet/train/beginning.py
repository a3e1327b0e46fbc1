"""The weights that a run begins with: random ones, and over them those of a model or of a pretrained encoder."""

import torch

from unet.data.labels import LabelSet
from unet.model.artifact import Model
from unet.model.encoder import read_encoder_weights
from unet.model.network import UNet
from unet.model.settings import architecture
from unet.settings import RequestError
from unet.train.run import TrainingRun


def first_network(run: TrainingRun, *, verbose: bool = False) -> UNet:
    """Return the network of a run as it begins; if `verbose`, print what is taken of which source.

    Raises:
        RequestError: --init-from names no model of which weights fit, or --encoder-weights no weights of --encoder.
    """
    fit, encoder = run.settings.fit, run.settings.model.encoder
    torch.manual_seed(fit.seed)
    network = new_network(run)
    if fit.init_from is not None:
        matching = _matching_tensors(Model.load(fit.init_from, "--init-from"), network, run.labels)
        if not any(tensor.ndim > 1 for name, tensor in matching.items() if not name.startswith("head.")):
            raise RequestError(
                f"--init-from {fit.init_from}: none of its weights fit; give the --model, --width, --norm, --upsample, "
                "--block and --encoder that it was trained with"
            )
        if verbose:
            print(f"--init-from: {len(matching)} of {len(network.state_dict())} tensors taken")
        network.load_state_dict(matching, strict=False)
    if fit.encoder_weights is not None:
        assert encoder is not None
        assert network.encoder is not None
        given = read_encoder_weights(fit.encoder_weights, encoder, run.channels.count)
        left_out = ", ".join(given.left_out[:4]) + ", ..." * (len(given.left_out) > 4)
        if verbose:
            print(f"--encoder-weights: {len(given.tensors)} tensors taken; left out: {left_out or 'none'}")
        network.encoder.load_state_dict(given.tensors)
    return network


def new_network(run: TrainingRun) -> UNet:
    """Return a network of the run's architecture, of random weights."""
    classes = len(run.labels.classes)
    return UNet(classes=classes, channels=run.channels.count, **architecture(run.settings.model))


def _matching_tensors(model: Model, network: UNet, labels: LabelSet) -> dict[str, torch.Tensor]:
    """Return the weights of `model` that `network` can start from: of equal name and shape; the head only for equal
    classes."""
    given = model.network.state_dict()
    return {
        name: given[name]
        for name, tensor in network.state_dict().items()
        if name in given
        and given[name].shape == tensor.shape
        and (model.labels.names == labels.names or not name.startswith("head."))
    }
