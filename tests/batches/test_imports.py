import subprocess
import sys
from pathlib import Path

import bi_ray.batches


def test_the_room_is_free_of_torch():
    """The driver loads it, and evaluates nothing itself."""
    folder = Path(bi_ray.batches.__file__).parent
    lines = [f"import bi_ray.batches.{file.stem}" for file in sorted(folder.glob("[a-z]*.py"))]
    assert "import bi_ray.batches.groups" in lines
    code = "\n".join(["import sys", *lines, "print('torch' in sys.modules)"])
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "False\n", result.stderr
