"""From a data source to batches: samples, their tokens and labels, the resumable order in which they are seen."""

from raysft.data.batch import Batch, collate
from raysft.data.order import SampleOrder
from raysft.data.render import end_token_ids, render, render_prompt
from raysft.data.sources import Example, load_examples
from raysft.data.tokenized import TokenizedData, prepare, split

__all__ = [
    "Batch",
    "Example",
    "SampleOrder",
    "TokenizedData",
    "collate",
    "end_token_ids",
    "load_examples",
    "prepare",
    "render",
    "render_prompt",
    "split",
]
