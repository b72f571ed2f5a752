"""Data flows down the list of modules, imports only upward."""

import ast
import pathlib
import re

import pytest

PACKAGE = pathlib.Path(__file__).resolve().parent.parent / "jxfer"

# A module may import those above it. `jxfer` itself is the public face and may import any.
ORDER = [
    "errors",
    "choices",
    "disk",
    "machine",
    "trees",
    "json_fields",
    "sealed",
    "text",
    "statistics",
    "data.glyphs",
    "data.embedded",
    "data.remote",
    "data.copies",
    "data.prepared",
    "data.subsets",
    "data.folders",
    "data.readers",
    "data.sources",
    "data.randaugment",
    "data.transforms",
    "data.pictures",
    "data.augmentation",
    "data.mapped",
    "data.mixing",
    "data.sampling",
    "data.screen",
    "data.targets",
    "data.loader",
    "data.kept",
    "models.convolution",
    "models.initialise",
    "models.layers",
    "models.heads",
    "models.network",
    "models.alexnet",
    "models.resnet",
    "models.vgg",
    "models.architectures",
    "models.registry",
    "models.dense",
    "zoo.source_statistics",
    "zoo.card",
    "zoo.readers",
    "zoo.report",
    "zoo.torch_tables",
    "zoo.torch_names",
    "zoo.whole",
    "zoo.store",
    "zoo.zoos",
    "zoo.imagenet",
    "zoo.published",
    "zoo.hub",
    "zoo.download",
    "zoo.torchvision",
    "zoo.weights",
    "zoo.diff",
    "zoo.standalone",
    "zoo.export",
    "zoo.reuse",
    "zoo.transplant",
    "zoo.pretrained",
    "transfer.labels",
    "transfer.strategy",
    "transfer.optimizer",
    "losses.classification",
    "losses.regularise",
    "losses.adversarial",
    "losses.adaptation",
    "train.feature_room",
    "train.feature_store",
    "train.config",
    "train.hosts",
    "train.parallel",
    "train.preemption",
    "train.metrics",
    "train.target_scores",
    "train.regularisers",
    "train.adaptation",
    "train.selection",
    "train.state",
    "train.plans",
    "train.phases",
    "train.step",
    "train.checkpoint",
    "train.evaluate",
    "train.adabn",
    "train.feed",
    "train.program",
    "train.program_cache",
    "train.memory",
    "train.prefix_choice",
    "train.prefix",
    "train.judge",
    "train.profile",
    "train.writers",
    "train.log",
    "train.run_folder",
    "train.mirror",
    "train.flops",
    "train.summary",
    "train.least",
    "train.leaks",
    "train.audit",
    "train.fit",
    "train.prepare",
    "train.loop",
    "train.lr_find",
    "probe.features",
    "probe.feature_files",
    "probe.feature_writer",
    "probe.objective",
    "probe.solver",
    "probe.linear",
    "probe.neighbours",
    "probe.stages",
    "advise.overlap",
    "advise.transferability",
    "advise.source",
    "advise.similarity",
    "advise.mirror",
    "advise.cost",
    "advise.measure",
    "advise.rules",
    "advise.advice",
    "ablate.pairing",
    "ablate.claims",
    "ablate.verdicts",
    "ablate.experiment",
    "ablate.cells",
    "ablate.grid",
    "ablate.cell_log",
    "ablate.sweep",
    "ablate.worker",
    "ablate.launch",
    "ablate.results",
    "ablate.estimate",
    "report.output",
    "report.chart",
    "report.page",
    "report.tables",
    "report.figures",
    "report.results",
    "report.sweep_tables",
    "report.raw_tables",
    "report.sweep_charts",
    "report.sweep",
    "report.diagnostics",
    "report.run_results",
    "report.run_charts",
    "report.run_drawings",
    "report.run_tables",
    "report.run_raw_tables",
    "report.run",
    "commands.zoo_diff",
    "commands.zoo_export",
    "commands.zoo_import",
    "commands.zoo_statistics",
    "commands.zoo",
    "commands.train",
    "commands.lr_find",
    "commands.audit",
    "commands.evaluate",
    "commands.features",
    "commands.probe",
    "commands.advise",
    "commands.predict_dense",
    "commands.predict",
    "commands.ablate",
    "commands.report",
    "commands.main",
    "__main__",
]
PACKAGES = {
    *("data", "models", "zoo", "transfer", "losses", "train", "probe", "advise", "ablate"),
    *("report", "commands"),
}
FILES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
MODULES = {name: path for name, path in FILES.items() if not name.endswith("__init__")}


def imports(path: pathlib.Path) -> set[str]:
    """Dotted names that a file imports, wherever the statement stands."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def own_imports(path: pathlib.Path) -> set[str]:
    """The modules of jxfer among them: `jxfer.data.sources.Source` is `data.sources`."""
    found = set()
    for name in imports(path):
        first, _, rest = name.partition(".")
        if first == "jxfer":
            parent = rest.rpartition(".")[0]
            found.add(rest if rest in MODULES or rest in PACKAGES else parent)
    return found


STANDS = re.compile(r"\b(After|Before) ((?:`[\w.]+`(?:, | and )?)+)", re.IGNORECASE)


def misplaced(name: str, docstring: str) -> list[str]:
    """What a module's docstring says of its place that is not so: `After config`.

    A name is that of a module in the same package, or of any module or package.
    """
    wrong, at = [], ORDER.index(name)
    package = f"{name.rpartition('.')[0]}."
    for word, places in STANDS.findall(" ".join(docstring.split())):
        for place in re.findall(r"`([\w.]+)`", places):
            known = [other for other in (f"{package}{place}", place) if other in ORDER][:1]
            known = known or [other for other in ORDER if other.startswith(f"{place}.")]
            above = {ORDER.index(other) < at for other in known}
            if above != {word.lower() == "after"} and not place.endswith(".json"):
                wrong.append(f"{word} {place}")
    for word, end in (("First", 0), ("Last", -1)):
        mine = [other for other in ORDER if other.startswith(package)]
        if re.search(rf"\b{word} of the \w", docstring) and mine[end] != name:
            wrong.append(f"{word} of {package}")
    return wrong


def importers(*packages: str) -> set[str]:
    """Modules that import one of these third-party packages."""
    return {
        name
        for name, path in FILES.items()
        if {imported.partition(".")[0] for imported in imports(path)} & set(packages)
    }


def test_the_list_holds_every_module_once():
    assert len(set(ORDER)) == len(ORDER)
    assert set(ORDER) == set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_only_those_above_it(name):
    above = set(ORDER[: ORDER.index(name)])
    assert own_imports(MODULES[name]) <= above


@pytest.mark.parametrize("name", MODULES)
def test_a_module_stands_where_its_docstring_says(name):
    docstring = ast.get_docstring(ast.parse(MODULES[name].read_text())) or ""
    assert misplaced(name, docstring) == []


@pytest.mark.parametrize(
    ("said", "wrong"),
    [
        ("After `card`, before `zoos`.", []),
        ("After `card` and `hub`, which it reads.", ["After hub"]),
        ("Before `data`, after `train.step`.", ["Before data", "after train.step"]),
        ("Before `errors`. After `nothing`.", ["Before errors", "After nothing"]),
        ("First of the zoo's files.", ["First of zoo."]),
    ],
)
def test_a_docstring_that_is_stale_is_seen(said, wrong):
    assert misplaced("zoo.store", said) == wrong


@pytest.mark.parametrize("name", sorted(set(FILES) - set(MODULES) - {"__init__"}))
def test_a_package_itself_imports_nothing_but_what_it_defers(name):
    assert imports(FILES[name]) <= {"importlib", "typing.Any"}


def test_only_the_models_and_parallel_import_flax():
    found = importers("flax")
    assert found
    assert {name for name in found if not name.startswith("models.")} == {"train.parallel"}


def test_only_checkpoints_and_the_zoos_store_import_orbax():
    assert importers("orbax") == {"train.checkpoint", "zoo.store"}


def test_only_parallel_says_pmap():
    assert {name for name, path in FILES.items() if "pmap" in path.read_text()} == {
        "train.parallel"
    }


def test_this_test_sees_an_import_inside_a_function_and_for_types_alone(tmp_path):
    file = tmp_path / "module.py"
    file.write_text(
        "import typing\n"
        "if typing.TYPE_CHECKING:\n"
        "    from jxfer.train import loop\n"
        "def f():\n"
        "    import jxfer.data.sources\n"
        "    from jxfer.zoo.card import Card\n"
    )
    assert own_imports(file) == {"train.loop", "data.sources", "zoo.card"}
