"""Rows of a manifest by source language, to train on some languages and score all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fairseq_samu.data.manifest import Manifest
from fairseq_samu.data.manifest_index import ManifestError


def rows_of_source_langs(
    manifest: Manifest, langs: Sequence[str], *, need_all: bool
) -> NDArray[np.int64]:
    """Numbers of the rows whose source language is one of some languages.

    Args:
        manifest: the rows.
        langs: source languages, as in ``src_lang``.
        need_all: every language has to occur; False = one of them has to, because a validation
            split may be one language's.

    Raises:
        ManifestError: a language that has to occur does not.
    """
    there = sorted({source for source, _ in manifest.pairs})
    absent = [lang for lang in langs if lang not in there]
    if absent and (need_all or len(absent) == len(langs)):
        raise ManifestError(
            f"{manifest.path}: expected rows of the source languages {', '.join(langs)}, found none "
            f"of {', '.join(absent)}; source languages there: {', '.join(there)}"
        )
    wanted = [i for i, (source, _) in enumerate(manifest.pairs) if source in langs]
    return np.flatnonzero(np.isin(manifest.pair_ids, wanted))
