"""Inputs as rows of patches and back.

A patch's values are ordered (row in the patch, column, channel), as the published reconstruction targets are.
The patch embedding takes the same rows, so a batch is cut up once for both.
"""

from __future__ import annotations

from einops import rearrange
from torch import Tensor


def patchify_audio(fbank: Tensor, patch_size: int) -> Tensor:
    """Cuts a spectrogram in patches; frequency runs down the grid's rows and time along its columns.

    Args:
        fbank: (B, T, F).
        patch_size: Side P of a patch.

    Returns:
        (B, F/P * T/P, P*P), row-major over (frequency, time).
    """
    return rearrange(fbank, "b (w q) (h p) -> b (h w) (p q)", p=patch_size, q=patch_size)


def unpatchify_audio(patches: Tensor, grid: tuple[int, int], patch_size: int) -> Tensor:
    """The inverse of `patchify_audio`: (B, L, P*P) of a (rows, columns) grid -> (B, T, F)."""
    return rearrange(patches, "b (h w) (p q) -> b (w q) (h p)", h=grid[0], p=patch_size)


def patchify_visual(frames: Tensor, patch_size: int) -> Tensor:
    """Cuts pictures in patches.

    Args:
        frames: (B, 3, H, W).
        patch_size: Side P of a patch.

    Returns:
        (B, H/P * W/P, P*P*3), row-major.
    """
    return rearrange(frames, "b c (h p) (w q) -> b (h w) (p q c)", p=patch_size, q=patch_size)


def unpatchify_visual(patches: Tensor, grid: tuple[int, int], patch_size: int) -> Tensor:
    """The inverse of `patchify_visual`: (B, L, P*P*3) of a (rows, columns) grid -> (B, 3, H, W)."""
    return rearrange(patches, "b (h w) (p q c) -> b c (h p) (w q)", h=grid[0], p=patch_size, q=patch_size)


def patchify_film(frames: Tensor, tubelet: int, patch_size: int) -> Tensor:
    """Cuts films in tubelets, the same patch of some frames in a row.

    Args:
        frames: (B, N, 3, H, W).
        tubelet: Frames in each.
        patch_size: Side P of a patch.

    Returns:
        (B, N/tubelet * H/P * W/P, tubelet*P*P*3), row-major over (moment, row, column); values ordered (frame, row in
        the patch, column, channel).
    """
    return rearrange(
        frames, "b (n k) c (h p) (w q) -> b (n h w) (k p q c)", k=tubelet, p=patch_size, q=patch_size
    )


def unpatchify_film(tubelets: Tensor, grid: tuple[int, int, int], tubelet: int, patch_size: int) -> Tensor:
    """The inverse of `patchify_film`: (B, L, tubelet*P*P*3) of a (moments, rows, columns) grid -> (B, N, 3, H, W)."""
    moments, rows, _ = grid
    return rearrange(
        tubelets, "b (n h w) (k p q c) -> b (n k) c (h p) (w q)",
        n=moments, h=rows, k=tubelet, p=patch_size, q=patch_size,
    )  # fmt: skip
