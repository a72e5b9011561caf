"""Makes manifests, audio archives and vocabularies, one `prep_<corpus>` module per corpus.

Every module here is a pure function behind a thin command (`python -m data_prep.prep_espeak
--help`) and depends neither on fairseq nor on `fairseq_samu`, so that data can be prepared on a
machine that has no torch.
"""
