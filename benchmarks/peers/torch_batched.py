"""Batches of trials in torch, on its GPU where it has one.

`bmm` and grouped convolutions; the fixed inputs meet all first layers of a batch in one product.
Sixteen random bits decide on a removal, four decisions a word. Chosen by a short sweep before
timing: the batch, and `kthvalue` or `topk` for magnitudes. Full float32 precision everywhere.
"""

import functools
import itertools
import os

import torch
import torch.nn.functional as F

from peers import LAYERS, Candidate, Workload, batch_sizes, fastest, torch_trial

WORKLOADS = ("sampled", "conv", "trial")
PLACE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
torch.backends.cudnn.allow_tf32 = False
if "OMP_NUM_THREADS" in os.environ:
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def device() -> str:
    """What it runs on."""
    return torch.cuda.get_device_name() if PLACE.type == "cuda" else "cpu"


def prepare(workload: Workload) -> Candidate:
    """Chooses the batch and the selection."""
    make = {"sampled": _sampled, "conv": _conv, "trial": torch_trial.make}[workload.kind]
    selections = (_by_kth, _by_top) if workload.pruning == "magnitude" else (_by_coin,)
    names = ("sampled", "lower", "upper") if workload.kind == "trial" else ("sampled",)

    def candidate(size, select):
        batch = make(workload, functools.partial(_draw, workload, size, select), PLACE)

        @torch.inference_mode()
        def run(trials, seed):
            source = torch.Generator(PLACE).manual_seed(seed)
            found = [batch(source) for _ in range(trials // size)]
            columns = (torch.cat(column).cpu().numpy() for column in zip(*found, strict=True))
            return dict(zip(names, columns, strict=True))

        return Candidate(run, size)

    numbers = LAYERS * workload.size + workload.width * workload.pixels * workload.inputs
    # Both networks; the bound of a trial holds several forms and factors in float64 beside them.
    copies = 12 if workload.kind == "trial" else 2
    sizes = batch_sizes(4 * copies * numbers, PLACE.type == "cpu")
    made = {
        f"batches of {size}, {select.__doc__}": candidate(size, select)
        for size, select in itertools.product(sizes, selections)
    }
    words, chosen = fastest(made)
    return chosen._replace(choices=words)


# --- sampling and pruning ------------------------------------------------------------------------


def _draw(workload, size, select, source):
    """Targets `(3, size, ...)`, and what is left of the pruned layers `(m, size, ...)`."""
    shape = LAYERS, size, *workload.weight_shape
    w = torch.rand(shape, generator=source, device=PLACE)
    w.sub_(0.5).mul_(2 * workload.half_width)
    return w, select(workload, source, w[workload.pruned])


def _by_coin(workload, source, w):
    """coins of 16 bits"""
    words = torch.empty(-(-w.numel() // 4), dtype=torch.int64, device=PLACE)
    words.random_(-(2**63), None, generator=source)
    coins = words.view(torch.int16)[: w.numel()].view(w.shape)
    return w * (coins >= round(workload.fraction * 2**16) - 2**15)


def _above(workload, w, last):
    """Weights above the last removed of each layer."""
    magnitudes = w.abs().view(*w.shape[:2], -1)
    return w * (magnitudes > last(magnitudes, workload.removed)).view(w.shape)


def _by_kth(workload, source, w):
    """kthvalue"""
    return _above(workload, w, lambda x, k: x.kthvalue(k, keepdim=True).values)


def _by_top(workload, source, w):
    """topk"""
    smallest = lambda x, k: x.topk(k, largest=False, sorted=False).values.amax(-1, keepdim=True)
    return _above(workload, w, smallest)


# --- fixed inputs --------------------------------------------------------------------------------


def _sampled(workload, draw, place):
    d = workload.width
    x = torch.from_numpy(workload.points()).to(place).T.contiguous()

    def network(w):
        h = (w[0].reshape(-1, d) @ x).view(-1, d, workload.inputs).relu_()
        h = torch.bmm(w[1], h).relu_()
        return torch.bmm(w[2], h)

    def batch(source):
        w, kept = draw(source)
        return (torch.linalg.vector_norm(network(w) - network(kept), dim=1).amax(1),)

    return batch


def _conv(workload, draw, place):
    """The trials of a batch are groups of channels."""
    x = torch.from_numpy(workload.points()).to(place)

    def network(w):
        groups = w.shape[1]
        w = w.flatten(1, 2)
        h = F.conv2d(x, w[0], padding="same").relu_()
        h = F.conv2d(h, w[1], padding="same", groups=groups).relu_()
        return F.conv2d(h, w[2], padding="same", groups=groups)

    def batch(source):
        w, kept = draw(source)
        d = network(w).sub_(network(kept)).view(workload.inputs, w.shape[1], -1)
        return (torch.linalg.vector_norm(d, dim=2).amax(0),)

    return batch
