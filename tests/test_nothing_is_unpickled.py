"""No file makes the library run code: nothing in it unpickles, evaluates, or trusts what a model's folder brings."""

import ast
from pathlib import Path

import pytest

import fedreft_lib

LIBRARY = Path(fedreft_lib.__file__).parent
MODULES = {"pickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
CALLS = {"read_pickle", "unsafe_load", "full_load", "Unpickler"}
# Arguments that switch a guard off, unless they are the constant that leaves it on.
GUARDS = {"weights_only": True, "allow_pickle": False, "trust_remote_code": False}


def unsafe(source: str) -> list[str]:
    """What in a module could run code that comes from a file."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        root, _, last = name.rpartition(".")
        arguments = {keyword.arg: keyword.value for keyword in node.keywords}
        if root in MODULES or name in BUILTINS or last in CALLS:
            found.append(name)
        if name in ("torch.load", "load_state_dict") and "weights_only" not in arguments:
            found.append(name)
        if name == "yaml.load" and "Loader" not in arguments:
            found.append(name)
        for guard, safe in GUARDS.items():
            value = arguments.get(guard)
            if value is not None and not (isinstance(value, ast.Constant) and value.value is safe):
                found.append(f"{name}({guard}=...)")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module in MODULES:
            found.append(f"from {node.module}")
    return found


def test_no_module_runs_what_a_file_brings():
    modules = sorted(LIBRARY.rglob("*.py"))
    found = {path.relative_to(LIBRARY): unsafe(path.read_text(encoding="utf-8")) for path in modules}
    assert len(found) > 100 and {path: what for path, what in found.items() if what} == {}


@pytest.mark.parametrize(
    "source",
    [
        "pickle.load(file)",
        "dill.loads(b'')",
        "from pickle import loads",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "pd.read_pickle(path)",
        "yaml.load(text)",
        "yaml.unsafe_load(text)",
        "eval(text)",
        "AutoModel.from_pretrained(name, trust_remote_code=trusted)",
    ],
)
def test_the_search_would_find_it(source):
    assert unsafe(source)


def test_the_search_lets_the_safe_forms_pass():
    assert not unsafe("torch.load(p, weights_only=True); np.load(p); re.compile('a'); model.eval(); json.loads(t)")
