"""Makes the vocabulary of a published text model, every symbol with the number of its embedding."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import sentencepiece

from data_prep.manifest import read_column
from data_prep.vocabulary_files import (
    SPECIAL_SYMBOLS,
    KeptRows,
    Vocabulary,
    load_sentencepiece,
    write_vocabulary,
)

# Languages in the order of their embeddings.
MBART_25 = """
    ar_AR cs_CZ de_DE en_XX es_XX et_EE fi_FI fr_XX gu_IN hi_IN it_IT ja_XX kk_KZ ko_KR lt_LT lv_LV
    my_MM ne_NP nl_XX ro_RO ru_RU si_LK tr_TR vi_VN zh_CN
"""
MBART_50 = f"""
{MBART_25}
    af_ZA az_AZ bn_IN fa_IR he_IL hr_HR id_ID ka_GE km_KH mk_MK ml_IN mn_MN mr_IN pl_PL ps_AF pt_XX
    sv_SE sw_KE ta_IN te_IN th_TH tl_XX uk_UA ur_PK xh_ZA gl_ES sl_SI
"""
NLLB_200 = """
    ace_Arab ace_Latn acm_Arab acq_Arab aeb_Arab afr_Latn ajp_Arab aka_Latn amh_Ethi apc_Arab
    arb_Arab ars_Arab ary_Arab arz_Arab asm_Beng ast_Latn awa_Deva ayr_Latn azb_Arab azj_Latn
    bak_Cyrl bam_Latn ban_Latn bel_Cyrl bem_Latn ben_Beng bho_Deva bjn_Arab bjn_Latn bod_Tibt
    bos_Latn bug_Latn bul_Cyrl cat_Latn ceb_Latn ces_Latn cjk_Latn ckb_Arab crh_Latn cym_Latn
    dan_Latn deu_Latn dik_Latn dyu_Latn dzo_Tibt ell_Grek eng_Latn epo_Latn est_Latn eus_Latn
    ewe_Latn fao_Latn pes_Arab fij_Latn fin_Latn fon_Latn fra_Latn fur_Latn fuv_Latn gla_Latn
    gle_Latn glg_Latn grn_Latn guj_Gujr hat_Latn hau_Latn heb_Hebr hin_Deva hne_Deva hrv_Latn
    hun_Latn hye_Armn ibo_Latn ilo_Latn ind_Latn isl_Latn ita_Latn jav_Latn jpn_Jpan kab_Latn
    kac_Latn kam_Latn kan_Knda kas_Arab kas_Deva kat_Geor knc_Arab knc_Latn kaz_Cyrl kbp_Latn
    kea_Latn khm_Khmr kik_Latn kin_Latn kir_Cyrl kmb_Latn kon_Latn kor_Hang kmr_Latn lao_Laoo
    lvs_Latn lij_Latn lim_Latn lin_Latn lit_Latn lmo_Latn ltg_Latn ltz_Latn lua_Latn lug_Latn
    luo_Latn lus_Latn mag_Deva mai_Deva mal_Mlym mar_Deva min_Latn mkd_Cyrl plt_Latn mlt_Latn
    mni_Beng khk_Cyrl mos_Latn mri_Latn zsm_Latn mya_Mymr nld_Latn nno_Latn nob_Latn npi_Deva
    nso_Latn nus_Latn nya_Latn oci_Latn gaz_Latn ory_Orya pag_Latn pan_Guru pap_Latn pol_Latn
    por_Latn prs_Arab pbt_Arab quy_Latn ron_Latn run_Latn rus_Cyrl sag_Latn san_Deva sat_Beng
    scn_Latn shn_Mymr sin_Sinh slk_Latn slv_Latn smo_Latn sna_Latn snd_Arab som_Latn sot_Latn
    spa_Latn als_Latn srd_Latn srp_Cyrl ssw_Latn sun_Latn swe_Latn swh_Latn szl_Latn tam_Taml
    tat_Cyrl tel_Telu tgk_Cyrl tgl_Latn tha_Thai tir_Ethi taq_Latn taq_Tfng tpi_Latn tsn_Latn
    tso_Latn tuk_Latn tum_Latn tur_Latn twi_Latn tzm_Tfng uig_Arab ukr_Cyrl umb_Latn urd_Arab
    uzn_Latn vec_Latn vie_Latn war_Latn wol_Latn xho_Latn ydd_Hebr yor_Latn yue_Hant zho_Hans
    zho_Hant zul_Latn
"""


class Family(NamedTuple):
    """How a family of models numbers what follows the pieces.

    Attributes:
        langs: its languages, in its order.
        template: of a language's tag, with "{}" for the language.
        last: symbols after the tags.
    """

    langs: tuple[str, ...]
    template: str
    last: tuple[str, ...]


#: NLLB's last three rows were marks of the source of training data; Hugging Face put <mask> there.
FAMILIES = {
    "mbart-25": Family(tuple(MBART_25.split()), "[{}]", ("<mask>",)),
    "mbart-50": Family(tuple(MBART_50.split()), "[{}]", ("<mask>",)),
    "nllb-200": Family(
        tuple(NLLB_200.split()), "{}", ("<mask>", "madeupword0000", "madeupword0001")
    ),
}

# Beginning of a published SentencePiece model; fairseq numbers what follows from 4.
FIRST_PIECES = ("<unk>", "<s>", "</s>")

# In a piece of the protocol buffer: field 3 (type), variable-length number, 5 (unused). Of several
# values of a field the last counts. github.com/google/sentencepiece, sentencepiece_model.proto
UNUSED_TYPE = b"\x18\x05"


def adopt_vocab(
    model_path: Path, family: str, out_dir: Path, prune_to: Sequence[Path] = ()
) -> Vocabulary:
    """Writes `spm.model` and `dict.txt` of a published model, the tags of its languages included.

    Args:
        model_path: its SentencePiece model, such as `sentence.bpe.model`.
        family: a key of `FAMILIES`.
        out_dir: folder to write to.
        prune_to: manifests; beside special symbols and tags only the pieces of their target texts
            and the characters of those stay. `dict.rows.json` says which rows of the embedding
            they have, and the model no longer gives out other pieces.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: the file is no published SentencePiece model.

    Source: fairseq's `examples/mbart`, `examples/multilingual`; MBartTokenizer, MBart50Tokenizer and
    NllbTokenizer of transformers.
    """
    serialized, model = load_sentencepiece(model_path)
    pieces = [model.id_to_piece(index) for index in range(model.get_piece_size())]
    if tuple(pieces[:3]) != FIRST_PIECES:
        raise ValueError(
            f"{model_path}: expected a published model, whose pieces begin with "
            f"{', '.join(FIRST_PIECES)}; found {', '.join(pieces[:3])}"
        )
    langs, template, last = FAMILIES[family]
    tags = tuple(template.replace("{}", lang) for lang in langs)
    symbols = [*pieces[3:], *tags, *last]
    kept: KeptRows | None = None
    if prune_to:
        used = _used_pieces(model, prune_to)
        unused = set(range(3, len(pieces))) - used
        serialized = _mark_unused(serialized, unused)
        # Piece i is row i + 1: fairseq has a fourth special symbol.
        rows = [index + 1 for index in sorted(used)]
        rows += range(len(pieces) + 1, len(pieces) + 1 + len(tags) + len(last))
        whole = [*SPECIAL_SYMBOLS, *symbols]
        kept = KeptRows([*range(len(SPECIAL_SYMBOLS)), *rows], len(whole))
        symbols = [whole[row] for row in rows]
    paths = write_vocabulary(out_dir, "", serialized, symbols, kept)
    return Vocabulary(*paths, len(symbols) - len(tags) - len(last) + 3, len(symbols), tags)


def _used_pieces(
    model: sentencepiece.SentencePieceProcessor, manifests: Iterable[Path]
) -> set[int]:
    """Numbers of the pieces of all target texts, and of the characters in these pieces."""
    used: set[int] = set()
    for manifest in manifests:
        for text in read_column(manifest, "tgt_text"):
            used.update(model.encode(text))
    if not used:
        raise ValueError("expected target texts to prune the vocabulary to, found none")
    letters = {letter for index in used for letter in model.id_to_piece(index)}
    used.update(model.piece_to_id(letter) for letter in letters)
    return {index for index in used if index >= len(FIRST_PIECES)}


def _mark_unused(serialized: bytes, unused: set[int]) -> bytes:
    """Forbids pieces of a SentencePiece model.

    It then writes texts with the remaining ones: those that need no other as before.
    """
    out = bytearray()
    position = index = 0
    while position < len(serialized):
        key, start = _read_varint(serialized, position)
        if key & 7 != 2:
            raise ValueError("expected a SentencePiece model, found a field that it does not have")
        length, start = _read_varint(serialized, start)
        content = serialized[start : start + length]
        position = start + length
        if key >> 3 == 1:
            content += UNUSED_TYPE if index in unused else b""
            index += 1
        out += _varint(key) + _varint(len(content)) + content
    return bytes(out)


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    """A number of seven bits a byte, and where it ends."""
    number = shift = 0
    while data[position] & 0x80:
        number |= (data[position] & 0x7F) << shift
        position, shift = position + 1, shift + 7
    return number | data[position] << shift, position + 1


def _varint(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])
