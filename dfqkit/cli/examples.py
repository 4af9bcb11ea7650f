"""Examples that `--help` shows, by command: one or two lines each that can be typed as they are.

What belongs here: lines behind the program's name, of at most 70 characters. A test parses all of them.
"""

EXAMPLES = {
    "": ("quantize model.onnx --mean 0.5,0.5,0.5 --std 0.5,0.5,0.5 --out out", "run digits/dfq-w4a4-ort --out digits"),
    "init": ("init best.pth", "init model.onnx --mean 0.5,0.5,0.5 --std 0.5,0.5,0.5 --bits w4a8"),
    "quantize": (
        "quantize best.pth --factory my_model.py:build --shape 3,32,32 \\\n"
        "      --classes 10 --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 --out out",
        "quantize resnet18.pth --factory torchvision:resnet18 --data photos/",
        "quantize model.onnx --mean 0.5,0.5,0.5 --std 0.5,0.5,0.5 --bits w4a8",
    ),
    "run": (
        "run digits/dfq-w4a4-ort --set distill.steps=200 --out digits",
        "run --resume digits                   # goes on after an interrupt",
        "run out/recipe.yaml --set quant.bits=w4a8 --out out2",
    ),
    "synthesize": ("synthesize digits/dfq-w8a8-ort --n 256 --out bank",),
    "inspect": ("inspect --factory torchvision:resnet18", "inspect model.onnx --target tensorrt --runtime onnxruntime"),
    "list": ("list recipes", "list targets tensorrt"),
    "recipe": ("recipe show digits/dfq-w4a4-ort", "recipe schema > recipe.schema.json"),
    "recipe show": ("recipe show digits/dfq-w4a4-ort --set distill.steps=200",),
    "recipe schema": ("recipe schema > recipe.schema.json",),
    "record": ("record recipe.yaml --data photos/train --out records.safetensors",),
    "report": ("report out --open", "report out out2 --out comparison.html"),
    "check": (
        "check model.zip --baseline dfqkit-baseline.json --update",
        "check model.zip --baseline dfqkit-baseline.json --junit-xml check.xml",
    ),
    "ci": ("ci github --bundle models/classifier.zip", "ci gitlab --bundle models/classifier.zip --out -"),
    "compare": ("compare out/teacher.onnx out/model.onnx --limit 64", "compare model.onnx --runtime-b openvino"),
    "profile": ("profile out/model.onnx --against out/teacher.onnx --threads 4",),
    "prove": ("prove model.zip --on avx2,sse", "prove --prepare --on neon"),
    "bundle": (
        "bundle out --out model.zip",
        "bundle int8.onnx --teacher float.onnx --images photos/ --out model.zip",
    ),
    "sentinel": ("sentinel --model int8.onnx --teacher float.onnx --images bank",),
    "bank": ("bank info bank", "bank verify bank"),
    "bank info": ("bank info out/images/calibration.safetensors",),
    "bank verify": ("bank verify bank",),
    "bank export": ("bank export bank --npz images.npz", "bank export bank --png images"),
    "bank sheet": ("bank sheet bank --out sheet.png",),
    "bank rank": ("bank rank recipe.yaml photos/ faces.npz",),
    "bench": (
        "bench 'digits/*-w8a8-ort' --seeds 0 --out bench",
        "bench 'digits/*-w8a8-ort' --passes 20000 --dry-run --out bench",
    ),
    "completion": (
        "completion bash > ~/.local/share/bash-completion/completions/dfqkit",
        "completion zsh > ~/.dfqkit.zsh      # `source` it behind compinit",
        "completion fish > ~/.config/fish/completions/dfqkit.fish",
    ),
    "env": ("env --json",),
}
