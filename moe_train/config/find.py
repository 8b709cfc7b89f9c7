"""Finds the file of a recipe or of a base, by path or by the name of one that comes with moe-train.

A name that leads nowhere is answered with the files that it may have meant.
"""

import difflib
import os
from pathlib import Path

from moe_train.errors import RecipeError

SOURCE_TREE = Path(__file__).resolve().parents[2] / "recipes"
INSTALLED = Path(__file__).resolve().parents[1] / "_recipes"
SUFFIXES = (".yaml", ".yml")


def find_recipe(recipe: str | Path) -> Path:
    """The file a recipe argument means: a path, or a name below the recipes that come with moe-train."""
    given = Path(recipe)
    found = _file(given) or _shipped(given)
    if found is None:
        raise RecipeError(f"recipe={recipe}: {_missing(given)}")
    return found


def find_base(base: str, recipe: Path) -> Path:
    """The file that `_base: base` means in the file `recipe`: one relative to it, or one that comes with moe-train."""
    found = _file(recipe.parent / base) or _shipped(Path(base))
    if found is None:
        below = Path(*(part for part in Path(base).parts if part != ".."))
        hint = (
            f"did you mean _base: {below}, which comes with moe-train?"
            if _shipped(below)
            else _similar(recipe.parent / base)
            or "correct the path, which is relative to that file, or name a recipe that comes with moe-train, such as "
            "_base/tiny.yaml"
        )
        raise RecipeError(f"_base={base}: {recipe} names a base that is not there; {hint}")
    return found


def _file(path: Path) -> Path | None:
    # os.path instead of Path: it answers "no" where a name is too long for the file system.
    return next((name for name in (path, Path(f"{path}.yaml")) if os.path.isfile(name)), None)


def _shipped_folder() -> Path:
    return SOURCE_TREE if os.path.isdir(SOURCE_TREE) else INSTALLED


def _below_recipes(given: Path) -> Path:
    """The name below `recipes`, whether it begins with that or not."""
    return Path(*given.parts[1:]) if given.parts[:1] == ("recipes",) else given


def _shipped(given: Path) -> Path | None:
    return _file(_shipped_folder() / _below_recipes(given))


def _missing(given: Path) -> str:
    """What to say of a recipe that is not there."""
    shipped = _shipped_folder()
    name = _below_recipes(given)
    if os.path.isdir(given):
        return f"is a folder; name one YAML file in it{_listed(given, given)}"
    if os.path.isdir(shipped / name):
        return f"is a folder of recipes; name one file in it{_listed(shipped / name, Path('recipes') / name)}"
    if similar := _similar(given):
        return f"there is no such file; {similar}"
    known = sorted(str(path.relative_to(shipped)) for path in shipped.glob("[!_]*/*.yaml"))
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.7)
    folders = ", ".join(sorted({Path(each).parent.name for each in known})) or "none"
    hint = f"did you mean recipes/{close[0]}?" if close else f"recipes/ has one folder a system: {folders}"
    return f"there is no such file; {hint}"


def _listed(folder: Path, shown: Path) -> str:
    """`, such as FOLDER/tiny.yaml; it has ...` for the YAML files of a folder."""
    names = _yaml_files(folder)
    if not names:
        return "; it has none"
    first = "tiny.yaml" if "tiny.yaml" in names else names[0]
    return f", such as {shown / first}" + (f"; it has {', '.join(names)}" if len(names) > 1 else "")


def _similar(path: Path) -> str:
    """`did you mean FOLDER/my.yaml?` for a YAML file of the same folder whose name is like that of `path`."""
    stems = {Path(name).stem: name for name in _yaml_files(path.parent)}
    close = difflib.get_close_matches(path.stem, stems, n=1, cutoff=0.7)  # an ending alone is no likeness
    return f"did you mean {path.parent / stems[close[0]]}?" if close else ""


def _yaml_files(folder: Path) -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder) if name.endswith(SUFFIXES))
    except OSError:  # not there, too long, or closed to us
        return []
