"""Make torchvision importable where its compiled operators do not fit torch: ``python torchvision_cpu.py``.

vLLM imports torchvision for families with a vision tower. Package indexes without a CPU build of it have one for CUDA,
whose library does not load beside a CPU build of torch; its Python part, which is what processors of images use, then
stops at two operators that it describes and does not find. This declares them, in the installed package.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

IMPORT = [sys.executable, "-c", "import torchvision"]
DECLARED = """

if not _has_ops():  # declared by grpo-hpc's tools/env/torchvision_cpu.py
    _declared = torch.library.Library("torchvision", "FRAGMENT")
    for _name in ("nms", "qnms"):
        _declared.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


def main() -> int:
    if subprocess.run(IMPORT, capture_output=True, check=False).returncode == 0:
        return 0
    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None:
        print("torchvision is not installed", file=sys.stderr)
        return 2
    extension = Path(found.origin).with_name("extension.py")
    extension.write_text(extension.read_text() + DECLARED)
    return subprocess.run(IMPORT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
