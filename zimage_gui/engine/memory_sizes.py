"""The memory of one training step, worked out from sizes alone.

Knows which tensors a step holds at its fullest moments. Must not know torch, options or files. All numbers
are bytes; tests hold them to what a counter finds in real steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from zimage_gui.model.sizes import TransformerConfig

FP32 = 4
LARGEST_TABLE = 2**25
"""Attention weights of a layer that the CPU's half-precision products keep at most (`model/attention.py`)."""

NUMBER_BYTES = {"none": 0.0, "fp8": 1 + 2 / 64, "int8": 1.0, "nf4": 0.5 + 4 / 64}
"""Of a weight in each `base_quant` for a model in 16 bits; none: as the model computes."""


@dataclass(frozen=True)
class Rows:
    """One batch: tokens of its pictures and captions, both padded."""

    image: int
    text: int

    @property
    def all(self) -> int:
        return self.image + self.text


@dataclass(frozen=True)
class Step:
    """What one update does. `numbers`: bytes of a number in the computation, of a trained number, its
    gradient and its optimizer state.

    recomputed: of the main blocks, the first so many keep their input alone; embedding: gradients reach the
    first half (embedders, refiners); first: the main block from which on they are needed, where they do not;
    per_block: trained numbers in a main block; largest: in a tensor; beside: numbers that the adapters of a
    main block keep per row; table: bytes of attention weights that a block keeps; opened: bytes that are made
    beside a product, of a quantised weight or of a change that is a whole matrix; summed: gradients of the
    batch before are held; casts: weights are of another format than the computation; copies: fp32 copies of
    a tensor while it is updated; updating: bytes that these add to all gradients at most.
    """

    config: TransformerConfig
    rows: Rows
    computing: int
    trained: int
    gradient: int
    state: float
    recomputed: int
    per_block: float
    largest: int
    inputs_away: bool = False
    embedding: bool = False
    first: int = 0
    beside: float = 0.0
    table: float = 0.0
    opened: float = 0.0
    summed: bool = False
    in_backward: bool = False
    casts: bool = False
    copies: float = 0.0
    updating: float = 0.0


@dataclass(frozen=True)
class Moment:
    """What a step holds beside weights and optimizer state at one moment."""

    activations: float
    gradients: float

    @property
    def all(self) -> float:
        return self.activations + self.gradients


@dataclass(frozen=True)
class BlockRow:
    """Bytes of one row of tokens in a block: its input; what is kept when products are; what is kept when
    everything is, as a recomputed block does for a moment; what its backward pass adds to either."""

    input: float
    kept: float
    whole: float
    working: float
    working_whole: float


def block_row(config: TransformerConfig, item: int, beside: float) -> BlockRow:
    """Kept are x, q, k, v, attention, its projection, their sum, w2's product (8 widths), w1's and w3's (2
    hidden widths), what the adapters keep, and fp32 statistics of attention and norms. Everything else
    that a plain block keeps: two normed inputs, turned queries and keys, the gate's product."""
    dim, hidden, heads = config.dim, config.ffn_dim, config.n_heads
    statistics = FP32 * (3 * heads + 4)
    kept = (8 * dim + 2 * hidden + beside) * item + statistics
    return BlockRow(
        input=dim * item,
        kept=kept,
        whole=kept + (4 * dim + hidden) * item,
        working=3 * hidden * item,
        working_whole=(2 * dim + 2 * hidden) * item,
    )


def block_numbers(config: TransformerConfig) -> int:
    """Numbers in the matrices of one block."""
    return 4 * config.dim**2 + 3 * config.dim * config.ffn_dim


def largest_matrix(config: TransformerConfig) -> int:
    return config.dim * config.ffn_dim


def state_bytes(step: Step) -> float:
    return step.trained * step.state


def fullest(step: Step) -> Moment:
    """The moment of an update at which most is held."""
    return max(_moments(step), key=lambda moment: moment.all)


def _moments(step: Step) -> list[Moment]:
    """The turn from forward to backward, the last recomputed block, the first block, the update: what is held
    changes evenly between these."""
    config, rows = step.config, step.rows
    row = block_row(config, step.computing, step.beside)
    recomputed = max(0, min(step.recomputed, config.n_layers) - step.first)
    kept = config.n_layers - step.first - recomputed
    casts = block_numbers(config) * step.computing if step.casts else 0.0
    inputs = row.input * rows.all * (min(recomputed, 2) if step.inputs_away else recomputed)
    half = _first_half(step, row, casts)
    products = row.kept * rows.all + casts + step.table
    anew = row.whole * rows.all + casts + step.table
    moments: list[Moment] = []
    if kept:
        turn = half + inputs + kept * products
        moments += _block_moments(step, turn, row.working, 1)
    if kept and not recomputed:
        moments += _block_moments(step, half + products, row.working, kept)
    if recomputed:
        others = inputs - row.input * rows.all
        moments += _block_moments(step, half + max(0.0, others) + anew, row.working_whole, kept + 1)
        moments += _block_moments(step, half + anew, row.working_whole, kept + recomputed)
    if step.embedding:
        last, working = (anew, row.working_whole) if recomputed else (products, row.working)
        moments += _block_moments(step, last, working, config.n_layers + 2 * config.n_refiner_layers)
    if not step.in_backward:
        moments.append(Moment(step.updating, step.trained * step.gradient))
    return moments


def _block_moments(step: Step, held: float, working: float, blocks: int) -> list[Moment]:
    """Within the backward pass of a block, the last of so many: those before it have their gradients, and
    while it holds most, it has that of its first matrix. working: bytes per row."""
    rows, gate = step.rows.all, step.config.ffn_dim * step.computing
    # a matrix is open while the gate's gradient goes through w2, before the rest is made; the weights of
    # attention have a gradient, and one before the softmax, when that rest and the gate's inputs are gone
    most = max(working * rows, gate * rows + step.opened, 2 * (step.table - gate * rows))
    largest = min(step.largest, step.trained)
    if not step.in_backward:
        done = (blocks - 1) * step.per_block + min(largest, step.per_block)
        gradients = min(done, step.trained)
        if step.summed:  # all those of the batch before, and the one that is added to them
            gradients = step.trained + min(largest, step.per_block)
        return [Moment(held + most, gradients * step.gradient)]
    largest = min(largest, largest_matrix(step.config))  # a modulation's comes when the rest is gone
    gradient = largest * step.gradient
    updating = step.config.dim * step.computing * rows
    return [
        Moment(held + most, gradient),
        Moment(held + updating, gradient + largest * FP32 * step.copies),
    ]


def _first_half(step: Step, row: BlockRow, casts: float) -> float:
    """What the refiners keep until their turn in the backward pass, if they have one."""
    if not step.embedding:
        return 0.0
    refiners = step.config.n_refiner_layers
    if step.recomputed:
        return refiners * row.input * step.rows.all
    return refiners * (row.kept * step.rows.all + 2 * (casts + step.table))


def forward_bytes(config: TransformerConfig, rows: Rows, item: int) -> float:
    """The most that a pass without gradients holds: three rows of the width and the gate's three."""
    return (4 * config.dim + 3 * config.ffn_dim) * item * rows.all


def pinned_bytes(size: float) -> float:
    """What torch takes for a piece of pinned memory: the next power of two."""
    return 2.0 ** math.ceil(math.log2(size)) if size > 0 else 0.0
