"""Semantically aligned speech encoders and speech translation for fairseq.

Give this folder to any fairseq command as ``--user-dir``. Importing the package registers the task, the
models, the criterions and the optimiser explicitly: fairseq scans ``tasks/`` and ``models/`` only when it
is the first to import a user directory, and never scans the others.
"""

import logging
from pathlib import Path

# Importing fairseq logs that tensorboardX would be nice for text-to-speech.
logging.getLogger("fairseq.tasks.text_to_speech").setLevel(logging.WARNING)

from fairseq_samu import compat

compat.apply()

from fairseq_samu import criterions, models, optim, scoring, tasks  # noqa: E402,F401  (register on import)

__version__ = "0.1.0"

#: What to pass as ``--user-dir`` wherever the package is installed.
USER_DIR = str(Path(__file__).resolve().parent)
