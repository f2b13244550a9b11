"""Models: loading, adapters, per-record gradients and their proof, shapes of batches, heads."""

import logging
import sys
from typing import Any, cast

# PEFT imports bitsandbytes where it is installed, and that fetches compiled code from a hub where `kernels` is; here an
# import of it fails, and what bitsandbytes says about that in every process is not shown
cast(dict[str, Any], sys.modules).setdefault("kernels", None)
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
