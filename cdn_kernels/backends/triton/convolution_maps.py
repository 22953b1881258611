"""The kernels of convolutions as products of matrices: one for the two maps to images, one for that to filters.

Images are stored channels last, filters as [outputs, size, size, inputs]. The output y of a convolution has ROWS x
COLUMNS pixels, its input x HEIGHT x WIDTH. All maps count in pixels of y: each stands for STRIDE x STRIDE pixels of x,
the phases, of which every one has taps of its own in the gradient by x. A product sums over pairs of a tap and a
channel, the channel fastest; what lies outside of an image is masked, and so is the padding.
"""

import triton
import triton.language as tl

from cdn_kernels.backends.triton.math import bound, gelu, load, product, rounded, store


@triton.jit
def _pixels(first, total, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr):
    """Return (the image of the first, in 64 bits; images from there, rows, columns and which exist) of BLOCK pixels."""
    place = first % (ROWS * COLUMNS) + tl.arange(0, BLOCK)
    return (
        (first // (ROWS * COLUMNS)).to(tl.int64),
        place // (ROWS * COLUMNS),
        place // COLUMNS % ROWS,
        place % COLUMNS,
        first + tl.arange(0, BLOCK) < total,
    )


@triton.jit
def _pairs(first, CHANNELS: tl.constexpr, BLOCK: tl.constexpr):
    """Return (taps, channels) of BLOCK pairs; where all of them have one tap, it is a single element."""
    tap = (first + tl.arange(0, 1 if CHANNELS % BLOCK == 0 else BLOCK)) // CHANNELS
    # In a remainder the compiler would not see how channels are aligned.
    return tap, first + tl.arange(0, BLOCK) - tap * CHANNELS


@triton.jit
def _inside(row, column, exists, HEIGHT: tl.constexpr, WIDTH: tl.constexpr):
    return (row >= 0) & (row < HEIGHT) & (column >= 0) & (column < WIDTH) & exists


@triton.jit
def to_images(
    source,
    filters,
    u,
    added,
    out,
    activation,
    kept,
    total,
    BACK: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    SIZE: tl.constexpr,
    STRIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    REAL: tl.constexpr,
):
    """Write y from x, or x from y (BACK), as out = phi'(u) product + added, rounded, and activation = phi(out).

    The product itself goes to kept. u, added, out, activation and kept may be None. Programs are tiles of BLOCK_M of
    the total pixels of y and BLOCK_N channels, and one for each phase of x.
    """
    K: tl.constexpr = OUTPUTS if BACK else INPUTS  # channels of the source, which has HEIGHT_K x WIDTH_K pixels
    N: tl.constexpr = INPUTS if BACK else OUTPUTS  # and of the result
    HEIGHT_K: tl.constexpr = ROWS if BACK else HEIGHT
    WIDTH_K: tl.constexpr = COLUMNS if BACK else WIDTH
    HEIGHT_N: tl.constexpr = HEIGHT if BACK else ROWS
    WIDTH_N: tl.constexpr = WIDTH if BACK else COLUMNS
    TILES: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    PAD: tl.constexpr = SIZE // 2
    # Programs that read the same pixels follow each other.
    base, image, row, column, exists = _pixels(tl.program_id(0) // TILES * BLOCK_M, total, ROWS, COLUMNS, BLOCK_M)
    n = tl.program_id(0) % TILES * BLOCK_N + tl.arange(0, BLOCK_N)

    # Tap t of a dimension reads the source at `from + t`, or `from - t` if BACK, and the filter at `head + t EVERY`.
    EVERY: tl.constexpr = STRIDE if BACK else 1
    if BACK:
        phase = tl.program_id(1) if STRIDE > 1 else 0
        phase_row, phase_column = phase // STRIDE, phase % STRIDE
        exists_n = exists & (row * STRIDE + phase_row < HEIGHT) & (column * STRIDE + phase_column < WIDTH)
        head_row, head_column = (phase_row + PAD) % STRIDE, (phase_column + PAD) % STRIDE
        from_row, from_column = row + (phase_row + PAD) // STRIDE, column + (phase_column + PAD) // STRIDE
        taps, taps_of_row = (SIZE - head_row + STRIDE - 1) // STRIDE, (SIZE - head_column + STRIDE - 1) // STRIDE
        taps *= taps_of_row
    else:
        phase_row, phase_column, exists_n = 0, 0, exists
        head_row, head_column = 0, 0
        from_row, from_column = row * STRIDE - PAD, column * STRIDE - PAD
        taps, taps_of_row = SIZE * SIZE, SIZE

    source += base * (HEIGHT_K * WIDTH_K * K)
    start = ((image * HEIGHT_K + from_row) * WIDTH_K + from_column) * K
    sums = tl.zeros([BLOCK_M, BLOCK_N], REAL)
    for first in range(0, bound(taps * K), BLOCK_K):
        tap, k = _pairs(first, K, BLOCK_K)
        tap_row, tap_column = tap // taps_of_row, tap % taps_of_row
        spot = (head_row + tap_row * EVERY) * SIZE + head_column + tap_column * EVERY
        if BACK:
            tap_row, tap_column = -tap_row, -tap_column
        used = tap < taps
        inside = _inside(
            from_row[:, None] + tap_row[None, :],
            from_column[:, None] + tap_column[None, :],
            exists[:, None] & used[None, :],
            HEIGHT_K,
            WIDTH_K,
        )
        a = tl.load(
            source + (start[:, None] + ((tap_row * WIDTH_K + tap_column) * K + k)[None, :]), mask=inside, other=0.0
        )
        if BACK:
            places = (k * (SIZE * SIZE * N) + spot * N)[:, None] + n[None, :]
        else:
            places = (spot * K + k)[:, None] + (n * (SIZE * SIZE * K))[None, :]
        b = tl.load(filters + places, mask=used[:, None] & (n < N)[None, :], other=0.0)
        sums = product(a, b, sums, PRECISION)

    # The phase goes with the pointer: as part of every place it would cost registers, and large tiles have none left.
    start_n = base * (HEIGHT_N * WIDTH_N * N) + (phase_row * WIDTH_N + phase_column) * N
    places_n = (((image * HEIGHT_N + row * EVERY) * WIDTH_N + column * EVERY) * N)[:, None] + n[None, :]
    inside_n = exists_n[:, None] & (n < N)[None, :]
    if kept is not None:
        store(kept + start_n, places_n, sums, inside_n)
    if u is not None:
        sums *= gelu(load(u + start_n, places_n, inside_n, REAL))[1]
    if added is not None:
        sums += load(added + start_n, places_n, inside_n, REAL)
    if out is not None:
        store(out + start_n, places_n, sums, inside_n)
    if activation is not None:
        value = rounded(sums, activation.dtype.element_ty).to(REAL)
        store(activation + start_n, places_n, gelu(value)[0], inside_n)


@triton.jit
def to_filters(
    x,
    grad,
    out,
    total,
    length,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    SIZE: tl.constexpr,
    STRIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    REAL: tl.constexpr,
):
    """Write the gradient by the filters, of parts of length pixels of y: [parts, outputs, taps, inputs].

    Programs are tiles of BLOCK_M outputs and BLOCK_N pairs of a tap and an input, for each part.
    """
    N: tl.constexpr = SIZE * SIZE * INPUTS
    TILES: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    m = tl.program_id(0) // TILES * BLOCK_M + tl.arange(0, BLOCK_M)
    first = tl.program_id(0) % TILES * BLOCK_N
    n = first + tl.arange(0, BLOCK_N)
    tap, channel = _pairs(first, INPUTS, BLOCK_N)
    tap_row, tap_column = tap // SIZE - SIZE // 2, tap % SIZE - SIZE // 2
    shift = (tap_row * WIDTH + tap_column) * INPUTS + channel
    sums = tl.zeros([BLOCK_M, BLOCK_N], REAL)
    for step in range(0, bound(length), BLOCK_K):
        base, image, row, column, exists = _pixels(tl.program_id(1) * length + step, total, ROWS, COLUMNS, BLOCK_K)
        place = (image * ROWS + row) * COLUMNS + column
        a = tl.load(
            grad + base * (ROWS * COLUMNS * OUTPUTS) + ((place * OUTPUTS)[None, :] + m[:, None]),
            mask=exists[None, :] & (m < OUTPUTS)[:, None],
            other=0.0,
        )
        row, column = row * STRIDE, column * STRIDE
        inside = _inside(
            row[:, None] + tap_row[None, :],
            column[:, None] + tap_column[None, :],
            exists[:, None] & (tap < SIZE * SIZE)[None, :],
            HEIGHT,
            WIDTH,
        )
        start = ((image * HEIGHT + row) * WIDTH + column) * INPUTS
        b = tl.load(x + base * (HEIGHT * WIDTH * INPUTS) + (start[:, None] + shift[None, :]), mask=inside, other=0.0)
        sums = product(a, b, sums, PRECISION)
    out += tl.program_id(1).to(tl.int64) * (OUTPUTS * N)
    store(out, (m * N)[:, None] + n[None, :], sums, (m < OUTPUTS)[:, None] & (n < N)[None, :])


@triton.jit
def add_up(parts, out, count, size, BLOCK: tl.constexpr, REAL: tl.constexpr):
    """Write the sum of count parts of size elements, added up in their order."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = load(parts, i, i < size, REAL)
    for _ in range(1, bound(count)):
        parts += size
        total += load(parts, i, i < size, REAL)
    store(out, i, total, i < size)
