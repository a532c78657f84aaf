"""What a trained model says of a split."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from vitbench.features.extract import decoded_batches, is_out_of_memory
from vitbench.features.featureset import IntArray
from vitbench.tasks.task import Split
from vitbench.tasks.transforms import Preprocessing
from vitbench.training import processes
from vitbench.training.options import TrainingOptions, halved, images_at_once
from vitbench.training.trainee import Trainee


def predict(
    trainee: Trainee, split: Split, rows: IntArray, preprocessing: Preprocessing, options: TrainingOptions
) -> Tensor:
    """Logits `[len(rows), K]` float32 on the CPU, in evaluation mode; the mode is as before afterwards.

    Several processes share the images, and each gets the logits of all.

    Args:
        trainee: The model, on the backbone's device.
        split: The images.
        rows: Which of them.
        preprocessing: That of the evaluation.
        options: Batch size and workers.

    Raises:
        DataError: An image is broken.
        UsageError: Memory does not suffice.
    """
    device = trainee.backbone.device
    at_once = images_at_once(options, device)
    training = trainee.training
    trainee.to(device).eval()
    own = rows[processes.index() :: processes.count()]
    found = [torch.zeros(0, trainee.head.out_features)]
    for _, pixels in decoded_batches(split, preprocessing, own, at_once, None) if len(own) else ():
        while True:
            try:
                found.append(
                    torch.cat([_logits(trainee, part, preprocessing) for part in torch.split(pixels, at_once)])
                )
                break
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                at_once = halved(at_once, options, device, error)
            # Outside the except clause, where the exception no longer holds the failed pass's tensors.
            if device.type == "cuda":
                torch.cuda.empty_cache()
    trainee.train(training)
    return processes.interleaved(torch.cat(found), len(rows), device)


def _logits(trainee: Trainee, pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Logits `[N, K]` float32 on the CPU of decoded images."""
    device, dtype = trainee.backbone.device, trainee.backbone.dtype
    autocast = nullcontext() if dtype == "float32" else torch.autocast(device.type, getattr(torch, dtype))
    with torch.inference_mode(), autocast:
        logits: Tensor = trainee(preprocessing.finish(pixels.to(device)))
    return logits.float().cpu()
