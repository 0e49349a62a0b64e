"""The source files of a network."""

from pathlib import Path

import pytest

from compressor.checkpoint.user_code import code_of

FILES = {
    "nets/net.py": "import torch, blocks\nfrom models.resnet import Net as Base\n",
    "nets/blocks.py": "def lazy():\n    import models.late\n",
    "models/resnet.py": "from . import parts\nfrom .deep.layer import Layer\nfrom .......... import x\n",  # no __init__.py
    "models/parts.py": "import models.resnet\n",
    "models/deep/__init__.py": "",
    "models/deep/layer.py": "from ..common import *\n",
    "models/common.py": "",
    "models/late.py": "not Python",
    "models/unused.py": "",
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def found(arch: str) -> set[str]:
    return {str(path.relative_to(Path.cwd())) for path in code_of(arch)}


def test_all_that_is_imported_belongs_to_it() -> None:
    assert found("nets/net.py:Net") == FILES.keys() - {"models/unused.py"}
    assert found("models.deep.layer:Layer") == {"models/deep/__init__.py", "models/deep/layer.py", "models/common.py"}


@pytest.mark.parametrize("arch", ["torchvision:resnet18", "net.pt", "imagefolder:models", "none.py:Net", "a\0.py:x", ""])
def test_what_is_no_code_of_ones_own_has_no_files(arch: str) -> None:
    assert found(arch) == set()
