"""Training: images, noise, and the loop. Called, as `edgekit.train(...)`, it is a whole run (`edgekit.api`)."""

from __future__ import annotations

from edgekit.batch import Batch
from edgekit.callable_package import make_callable
from edgekit.train.dead_leaves import dead_leaves
from edgekit.train.images import ImageSource, Picture, open_images
from edgekit.train.loop import fit
from edgekit.train.run import Trained, train
from edgekit.train.sampling import batches
from edgekit.train.validation import Quality, evaluate

__all__ = [
    "Batch",
    "ImageSource",
    "Picture",
    "Quality",
    "Trained",
    "batches",
    "dead_leaves",
    "evaluate",
    "fit",
    "open_images",
    "train",
]

make_callable(__name__)
