"""Tasks; importing this package registers them with fairseq."""

from fairseq_samu.tasks.speech_to_text_config import SpeechToTextSamuConfig
from fairseq_samu.tasks.speech_to_text_samu import SpeechToTextSamuTask

__all__ = ["SpeechToTextSamuConfig", "SpeechToTextSamuTask"]
