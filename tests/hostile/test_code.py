"""No code of this package loads what can run code, or trusts an archive; by machine."""

import ast
from pathlib import Path

import pytest

from tests.conftest import ROOT

FILES = [path for top in ("megatron_sbp", "tools") for path in sorted((ROOT / top).rglob("*.py"))]
PLACES = {str(path.relative_to(ROOT)): path for path in FILES}

# Module or call -> what to use.
FORBIDDEN = {
    **dict.fromkeys(["marshal", "shelve", "dill", "cloudpickle", "joblib"], "no pickles"),
    **dict.fromkeys(["tarfile", "shutil.unpack_archive"], "no archives"),
    **dict.fromkeys(["eval", "exec", "compile", "os.system", "os.popen"], "no code from data"),
    **dict.fromkeys(["numpy.load", "np.load", "np.fromfile"], "megatron_sbp.npy"),
    **dict.fromkeys(["yaml.load", "yaml.full_load", "yaml.unsafe_load"], "yaml.safe_load"),
}
PICKLES = {
    "megatron_sbp/torchrun.py": "values that the processes of one job send each other",
    "megatron_sbp/models/checkpoint_metadata.py": "an unpickler that knows only torch's classes",
}
"""Files that import pickle, and what they do with it."""
ARCHIVES = {"megatron_sbp/npy.py": "members that are not compressed, into memory"}
"""Files that open zip archives likewise."""


def dotted(node: ast.expr) -> str:
    """Name of what is called; "?" stands for what has no name."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


@pytest.mark.parametrize("place", PLACES)
def test_nothing_loads_what_can_run_code(place: str) -> None:
    tree = ast.parse(PLACES[place].read_text())
    for node in ast.walk(tree):
        if not isinstance(node, ast.Import | ast.ImportFrom | ast.Call):
            continue
        names: list[str]
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            names = [dotted(node.func)]
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if names[0] == "torch.load":
                assert keywords.get("weights_only") == "True", f"{place}:{node.lineno}"
            for name, harmless in (("allow_pickle", "False"), ("shell", "False")):
                assert keywords.get(name, harmless) == harmless, f"{place}:{node.lineno}: {name}"
            assert keywords.get("trust_remote_code", "False") == "False", f"{place}:{node.lineno}"
        for name in names:
            assert name not in FORBIDDEN, f"{place}:{node.lineno}: {name}: {FORBIDDEN[name]}"
            assert name.split(".")[0] != "pickle" or place in PICKLES, f"{place}: pickle"
            assert name.split(".")[0] != "zipfile" or place in ARCHIVES, f"{place}: zipfile"


def test_the_exceptions_are_still_needed() -> None:
    for place, module in [*((p, "pickle") for p in PICKLES), *((p, "zipfile") for p in ARCHIVES)]:
        assert f"import {module}" in Path(PLACES[place]).read_text()
