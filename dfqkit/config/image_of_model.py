"""What images a model of a known library takes, where a recipe does not say it.

What belongs here: reading the library's own facts; nothing is made or downloaded, and libraries are imported late.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path, PurePath
from typing import Any

from dfqkit.config.files import find_file
from dfqkit_export.errors import ArtefactError, RecipeError
from dfqkit_export.words import did_you_mean, some

_LOG = logging.getLogger(__name__)

_NEEDED = ("shape", "mean", "std", "classes")
_CLASS_ARGUMENTS = ("num_classes", "classes")
_COLOURS = 3
_FORMS = {"shape": "C,H,W", "mean": "M,...", "std": "S,..."}
_IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
#: What a library says beside the image: how validation images become one.
_OF_VALIDATION = ("resize", "crop", "interpolation")


def filled(recipe: dict[str, Any], name: str) -> None:
    """Complete a recipe's image section, in place, by what its teacher's library says of the model; it is told.

    Where images for validation are read from a folder, an archive or a data set, their resize and crop too.

    Raises:
        RecipeError: The shape is left out, and a file leaves it open as well.
    """
    teacher, image, validation = (recipe.get(key) for key in ("teacher", "image", "validate"))
    image = {} if image is None else image
    if not isinstance(teacher, dict) or not isinstance(image, dict) or not isinstance(teacher.get("factory"), str):
        return
    missing = [key for key in _NEEDED if image.get(key) is None]
    if not missing or not isinstance(teacher.get("args") or {}, dict):
        return
    factory = teacher["factory"]
    beside = Path(name).parent if Path(name).is_file() else None
    known = image_values(factory, teacher.get("args") or {}, teacher.get("weights"), beside)
    if _otherwise(image):
        known = {key: value for key, value in known.items() if key not in ("mean", "std")}
    added = {key: known[key] for key in missing if key in known}
    if "shape" in missing and "shape" not in added and (told := open_axes(factory, beside)):
        message = f"Recipe '{name}' leaves out image.shape.{told} Set image.shape to [channels, height, width]."
        raise RecipeError(message)
    if not added:
        return
    recipe["image"] = {**image, **added, "filled_from": f"{factory} ({', '.join(added)})"}
    told = ", ".join(f"image.{key} {value}" for key, value in added.items())
    if "shape" in added and isinstance(validation, dict) and _has_any_size(validation) and "resize" in known:
        sizes = {"resize": known["resize"], "crop": known["crop"]}
        recipe["validate"] = {**validation, **sizes}
        told += f", validate.resize {sizes['resize']} and crop {sizes['crop']} (bicubic; the model's own interpolation "
        told += f"is {known['interpolation']})"
    _LOG.warning("Recipe '%s' leaves out what %s knows: %s.", name, factory, told)


def image_values(
    factory: str, args: Mapping[str, Any], weights: object = None, beside: Path | None = None
) -> dict[str, Any]:
    """Return shape, mean, std, classes, and resize, crop, interpolation, of a library's model; empty of any other.

    Of a file with a network, its shape where it states one. ``weights`` is the file of a model's weights, whose name
    tells which of several recipes it was trained by; ``beside`` is the folder in which files are looked up.
    """
    library, _, model = factory.partition(":")
    read = _LIBRARIES.get(library)
    try:
        if library in _FILES:
            model = str(find_file(model, beside or Path.cwd()))
        found = {} if read is None else read(model, str(weights or ""))
    except (ImportError, ValueError, RuntimeError, KeyError, AttributeError, ArtefactError, RecipeError):
        return {}  # making the teacher says what is wrong with the name, or which package is missing
    classes = next((args[key] for key in _CLASS_ARGUMENTS if key in args), found.get("classes"))
    if args.get("in_chans", _COLOURS) != _COLOURS:
        found = {}  # the library's normalisation is of three colours
    elif "img_size" in args and found:
        size = args["img_size"]
        found |= {"shape": [_COLOURS, *([size, size] if isinstance(size, int) else size)]}
        found = {key: value for key, value in found.items() if key not in ("resize", "crop")}
    return found | ({} if classes is None else {"classes": classes})


def validation_sizes(
    factory: str, args: Mapping[str, Any], weights: object, shape: Sequence[int], validation: Mapping[str, Any]
) -> dict[str, int]:
    """Return resize and crop of a library's model at its own size, where images for validation may have any size."""
    known = image_values(factory, args, weights)
    fits = "resize" in known and tuple(known["shape"]) == tuple(shape) and _has_any_size(validation)
    return {key: known[key] for key in ("resize", "crop")} if fits else {}


def spec_values(model: object) -> dict[str, Any] | None:
    """Return what `ImageSpec` takes for a module that carries its library's facts, as timm's do; None for others."""
    facts = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    if facts is None:
        return None
    found = _of_facts(facts)
    first = next((value for value in model.parameters() if value.dim() == 4), None)  # type: ignore[attr-defined]
    if not found or (first is not None and first.shape[1] != found["shape"][0]):
        return None
    classes = getattr(model, "num_classes", found["classes"])
    return {key: found[key] for key in ("shape", "mean", "std")} | {"classes": int(classes)}


def _otherwise(image: Mapping[str, Any]) -> bool:
    """Return whether an image is said to be other than the libraries' facts are about: RGB from 0 to 1."""
    shape = image.get("shape")
    channels = shape[0] if isinstance(shape, list | tuple) and shape else _COLOURS
    return channels != _COLOURS or (image.get("pixel_range") or 1, image.get("channels") or "RGB") != (1, "RGB")


def _has_any_size(validation: Mapping[str, Any]) -> bool:
    data = validation.get("data")
    given = validation.get("resize") or validation.get("crop")
    return isinstance(data, str) and not given and PurePath(data).suffix.lower() != ".npz"


def _timm(model: str, _: str) -> dict[str, Any]:
    from timm.models import get_pretrained_cfg

    facts = get_pretrained_cfg(model)
    return {} if facts is None else _of_facts(facts)


def _of_facts(facts: Any) -> dict[str, Any]:
    def get(name: str) -> Any:
        return facts.get(name) if isinstance(facts, Mapping) else getattr(facts, name, None)

    size, mean, std = get("input_size"), get("mean"), get("std")
    if not size or mean is None or std is None:
        return {}
    found = {"shape": list(size), "mean": list(mean), "std": list(std), "classes": get("num_classes")}
    if size[1] == size[2]:
        found |= {"resize": int(size[1] / (get("crop_pct") or 1.0)), "crop": size[1]}
    return found | {"interpolation": get("interpolation")}


def _torchvision(model: str, weights: str) -> dict[str, Any]:
    from torchvision.models import get_model_weights

    members = list(get_model_weights(model))
    name = PurePath(weights).name
    chosen = next((member for member in members if name and member.url.rpartition("/")[2] == name), members[0])
    made = chosen.transforms()
    resize, crop = int(made.resize_size[0]), int(made.crop_size[0])
    return {
        "shape": [_COLOURS, crop, crop],
        "mean": list(made.mean),
        "std": list(made.std),
        "classes": len(chosen.meta["categories"]),
        "resize": resize,
        "crop": crop,
        "interpolation": made.interpolation.value,
    }


def _onnx(path: str, _: str) -> dict[str, Any]:
    """Return the shape that a file states; its normalisation stands in no ONNX file."""
    from dfqkit_export.onnxfile.model import load_onnx
    from dfqkit_export.onnxfile.shapes import stated_image

    found = stated_image(load_onnx(path, weights=False))
    return {} if found is None else {"shape": list(found)}


def open_axes(factory: str, beside: Path | None = None) -> str:
    """Return a sentence on the axes that an ONNX file leaves open, for whoever chooses them; "" where none is open."""
    from dfqkit_export.onnxfile.model import load_onnx
    from dfqkit_export.onnxfile.shapes import image_inputs, stated_image, told_sizes

    kind, _, path = factory.partition(":")
    try:
        model = load_onnx(find_file(path, beside or Path.cwd()), weights=False) if kind in _FILES else None
        if model is None or stated_image(model) is not None:
            return ""
        value = image_inputs(model)[0]
    except (ArtefactError, RecipeError):
        return ""
    return (
        f" Its input '{value.name}' is {told_sizes(value)}: choose the size at which images are made and ranges found, "
        "that of deployment; the int8 file keeps open axes open."
    )


_LIBRARIES: dict[str, Callable[[str, str], dict[str, Any]]] = {
    "timm": _timm, "torchvision": _torchvision, "onnx": _onnx,
}  # fmt: skip


#: What names a file, which its own model is in.
_FILES = frozenset({"onnx"})


def nearest(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return shape, mean and std by what is known of them, and else what is usual of networks of photographs."""
    channels = _channels(found)
    usual = {"mean": (0.5,) * channels, "std": (0.5,) * channels} | (_IMAGENET if channels == _COLOURS else {})
    known = {key: value for key, value in found.items() if value is not None}
    return {"shape": (channels, 224, 224)} | usual | known


def _channels(found: Mapping[str, Any]) -> int:
    return int(found["shape"][0]) if found.get("shape") else len(found.get("mean") or range(_COLOURS))


def _require_name(factory: str) -> None:
    """Refuse what names no factory, or none that its library has, before anything else is asked for."""
    library, colon, model = factory.partition(":")
    if not colon:
        message = f"'{factory}' is no factory: give FILE.py:FUNCTION, MODULE:FUNCTION, torchvision:NAME or timm:NAME."
        raise RecipeError(message)
    try:
        known = import_module({"timm": "timm", "torchvision": "torchvision.models"}[library]).list_models()
    except (ImportError, KeyError):
        return  # making the teacher says which package is missing
    name = model.partition(".")[0]  # timm's names may end in a tag
    if name not in known and name.isidentifier():
        message = f"{library} has no network '{model}'.{did_you_mean(model, known, n=3)} It has {some(known, 5)}."
        raise RecipeError(message)


def require_values(
    factory: str,
    given: Mapping[str, Any],
    args: Mapping[str, Any] | None = None,
    weights: object = None,
    *,
    usual: bool = False,
) -> dict[str, Any]:
    """Return what `ImageSpec` takes of a model, by what is given and, beyond that, what its library or file says.

    Args:
        factory: The model, and with ``args`` and ``weights`` how it is made (`image_values`).
        given: What is said already; None counts as not said.
        args: Further keyword arguments of the factory.
        weights: File of its weights.
        usual: Pixels from 0 to 1 are taken where nothing says mean and std; never of a file.

    Raises:
        RecipeError: The shape, mean or std is missing; says which, and the nearest guess.
    """
    found = image_values(factory, args or {}, weights)
    if _otherwise(given):
        found = {key: value for key, value in found.items() if key not in ("mean", "std")}
    found |= {key: value for key, value in given.items() if value is not None}
    channels = _channels(found)
    usual = usual and factory.partition(":")[0] not in _FILES
    missing = [key for key in _NEEDED[: 1 if usual else 3] if key not in found]
    if missing:
        _require_name(factory)
        told = f" It says the shape {tuple(found['shape'])}." if "shape" in found and "shape" not in given else ""
        forms = " ".join(f"--{key} {_FORMS[key]}" for key in missing)
        guess = nearest(found)
        told_guess = " ".join(f"--{key} {','.join(map(str, guess[key]))}" for key in missing)
        message = (
            f"Nothing says {', '.join(missing)} of '{factory}'.{told}{open_axes(factory)} Give {forms}, as it was "
            "trained, and, of a classifier, --classes N; in Python, image=ImageSpec(...). The nearest guess, usual of "
            f"networks of photographs: {told_guess}"
        )
        raise RecipeError(message)
    plain = {"mean": (0.0,) * channels, "std": (1.0,) * channels}
    return {key: value for key, value in (plain | found).items() if key not in _OF_VALIDATION}
