"""Tasks; importing this package registers them with fairseq."""

from fairseq_samu.tasks.speech_to_text_samu import SpeechToTextSamuConfig, SpeechToTextSamuTask

__all__ = ["SpeechToTextSamuConfig", "SpeechToTextSamuTask"]
