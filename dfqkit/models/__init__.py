"""Networks of the data-free quantization literature that torchvision lacks, as factories for `load_teacher`.

What belongs here: the names under which recipes reach the factories, and nothing that runs. Every factory returns a
module with random weights whose parameter names are those of the checkpoints in circulation; those of classifiers take
`classes`.

- `dfqkit.models:cifar_resnet8`, `cifar_resnet20`, `cifar_resnet32`, `cifar_resnet44`, `cifar_resnet56`,
  `cifar_resnet110`: He et al. 2016, option A shortcuts, 3x32x32.
- `dfqkit.models:wrn_16_1`, `wrn_16_2`, `wrn_40_1`, `wrn_40_2`, `wrn` (arguments `depth`, `width`): Zagoruyko and
  Komodakis 2016, 3x32x32.
- `dfqkit.models:mobilenet_v1_025`, `mobilenet_v1_050`, `mobilenet_v1_075`, `mobilenet_v1_100`, `mobilenet_v1`
  (argument `alpha`): Howard et al. 2017, TensorFlow padding, 3x224x224.
- `dfqkit.models:fd_mobilenet_025`, `fd_mobilenet_05`, `fd_mobilenet_10`, `fd_mobilenet` (argument `alpha`): Qin et
  al. 2018, 3x224x224.
- `dfqkit.models:rfb_320`: a face detector, Ultra-Light-Fast-Generic-Face-Detector-1MB, 3x240x320.
- `dfqkit.models:digits_cnn` (argument `width`): a ResNet-8 for 1x16x16 digits, the embedded example.
"""

from __future__ import annotations

from dfqkit.models.cifar_resnet import (
    CifarResNet,
    cifar_resnet8,
    cifar_resnet20,
    cifar_resnet32,
    cifar_resnet44,
    cifar_resnet56,
    cifar_resnet110,
)
from dfqkit.models.digits import DigitsCnn, digits_cnn
from dfqkit.models.fd_mobilenet import FDMobileNet, fd_mobilenet, fd_mobilenet_025, fd_mobilenet_05, fd_mobilenet_10
from dfqkit.models.mobilenet_v1 import (
    MobileNetV1,
    mobilenet_v1,
    mobilenet_v1_025,
    mobilenet_v1_050,
    mobilenet_v1_075,
    mobilenet_v1_100,
)
from dfqkit.models.ultra_light_face import UltraLightFace, rfb_320
from dfqkit.models.wrn import WideResNet, wrn, wrn_16_1, wrn_16_2, wrn_40_1, wrn_40_2

__all__ = [
    "CifarResNet", "DigitsCnn", "FDMobileNet", "MobileNetV1", "UltraLightFace", "WideResNet", "cifar_resnet8",
    "cifar_resnet20", "cifar_resnet32", "cifar_resnet44", "cifar_resnet56", "cifar_resnet110", "digits_cnn",
    "fd_mobilenet", "fd_mobilenet_025", "fd_mobilenet_05", "fd_mobilenet_10", "mobilenet_v1", "mobilenet_v1_025",
    "mobilenet_v1_050", "mobilenet_v1_075", "mobilenet_v1_100", "rfb_320", "wrn", "wrn_16_1", "wrn_16_2", "wrn_40_1",
    "wrn_40_2",
]  # fmt: skip
