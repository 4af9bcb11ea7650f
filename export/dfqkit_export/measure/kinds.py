"""Kinds of metrics: what is known of a metric before it is measured.

What belongs here: the table of all metrics, one entry each. Title, unit, decimals, direction and tolerance of a metric
stand here and nowhere else; tables, floors, the gate, model cards and plots read them. Other packages join the table
through the entry point group ``dfqkit.metrics`` (``name = "package.module:KIND"``). What a kind is says `metric`.
"""

from __future__ import annotations

from dataclasses import replace

from dfqkit_export.measure.metric import (
    GROUP,
    KINDS,
    Metric,
    MetricKind,
    PerImage,
    Tolerance,
    find_kind,
    kind_of_unit,
    known_kinds,
    load_plugins,
    register,
)

__all__ = [
    "GROUP", "KINDS", "Metric", "MetricKind", "PerImage", "Tolerance", "find_kind", "kind_of_unit", "known_kinds",
    "load_plugins", "register",
]  # fmt: skip

# Tolerances were set from W8A8 files of CIFAR-10 ResNet-20 that were calibrated on images of 16 kinds, 512 sentinel
# images: files of eight kinds that lose nothing on real images spread over 1.2 points of agreement, a factor of 1.41 in
# KL and 1.1 dB; that of noise lies 4.7 points, a factor of 2.3 and 3.2 dB from the best.

#: Whether the answers are the same, how far apart predictions are, the squared error of all outputs.
AGREES = PerImage(key="agrees", binary=True)
DIVERGES = PerImage(key="kl")
NOISE = PerImage(key="noise", total="dB")

# fmt: off
TOP1 = register(MetricKind(
    name="top1", title="Top-1 accuracy", unit="%", decimals=2, higher_is_better=True,
    tolerance=Tolerance(absolute=0.3), about="labels", on_card=True, short="top-1 %",
))
TOP5 = register(replace(TOP1, name="top5", title="Top-5 accuracy", on_card=False, short=""))
TOP1_DROP = register(MetricKind(
    name="top1_drop", title="Top-1 drop", unit="points", decimals=2, higher_is_better=False,
    tolerance=Tolerance(absolute=0.3), about="labels", headline=True, on_card=True, short="drop",
))
AGREEMENT = register(MetricKind(
    name="agreement", title="Agreement with the teacher", unit="%", decimals=2, higher_is_better=True,
    tolerance=Tolerance(absolute=1.5, flips=True), per_image=AGREES, headline=True, on_card=True, short="agreement %",
))
PLAIN_AGREEMENT = register(MetricKind(
    name="plain_agreement", title="Agreement on images drawn at random", unit="%", decimals=2, higher_is_better=True,
    tolerance=Tolerance(absolute=1.5), per_image=replace(AGREES, over="plain"),
))
FLIPS = register(MetricKind(
    name="flips", title="Sensitive images that flip", unit="images", higher_is_better=False,
    tolerance=Tolerance(absolute=1.0, of_images=0.04, flips=True),
    per_image=replace(AGREES, over="sensitive", total="sum"),
))
STUDENT_AGREEMENT = register(MetricKind(
    name="student_agreement", title="Agreement with the student", unit="%", decimals=2, higher_is_better=True,
    tolerance=Tolerance(absolute=0.1), on_card=True,
))
STUDENT_KEPT = register(MetricKind(
    name="student_kept", title="Answers of the student that stay", unit="%", decimals=2, higher_is_better=True,
    tolerance=Tolerance(absolute=2.0), on_card=True,
))
STUDENT_TOP1_GAP = register(MetricKind(
    name="student_top1_gap", title="Top-1 gap to the student", unit="points", decimals=2, higher_is_better=False,
    tolerance=Tolerance(absolute=0.05), about="labels",
))
KL = register(MetricKind(
    name="kl", title="KL from the teacher", unit="nats", significant=3, higher_is_better=False,
    tolerance=Tolerance(absolute=0.002, relative=0.5), per_image=DIVERGES, on_card=True,
))
LOGIT_SQNR_DB = register(MetricKind(
    name="logit_sqnr_db", title="Logit SQNR", unit="dB", decimals=1, higher_is_better=True,
    tolerance=Tolerance(absolute=1.5), per_image=NOISE, without_value="The logits are the teacher's exactly.",
))
LOGIT_MAX_ABS = register(MetricKind(name="logit_max_abs", title="Logits, largest difference", higher_is_better=False))

LABEL_DROP = register(replace(TOP1_DROP, name="label_drop", title="Points lost beside the labels", short=""))
#: What a file loses on labelled images, whatever the task: what a verdict rests on where there are any.
DROPS = frozenset({TOP1_DROP.name, LABEL_DROP.name})

# Tasks other than classification. Their tolerances are what differs between processors, several times over: none was
# set from files of known loss.
SQNR_DB = register(MetricKind(
    name="sqnr_db", title="SQNR of the outputs", unit="dB", decimals=1, higher_is_better=True,
    tolerance=Tolerance(absolute=1.5), per_image=NOISE, headline=True, on_card=True, short="SQNR dB",
    without_value="The outputs are the teacher's exactly.",
))
COSINE = register(MetricKind(
    name="vector_cosine", title="Cosine with the teacher's outputs", decimals=4, higher_is_better=True,
    tolerance=Tolerance(absolute=0.005), headline=True, on_card=True,
))
LARGEST_ERROR = register(MetricKind(
    name="largest_error", title="Largest error, as a share of the output's range", unit="%", decimals=2,
    higher_is_better=False, tolerance=Tolerance(absolute=0.5, relative=0.5),
))
NEIGHBOUR = register(MetricKind(
    name="neighbour", title="Nearest other image the teacher's", unit="%", decimals=2, higher_is_better=True,
    tolerance=Tolerance(absolute=3.0), headline=True, on_card=True,
))
RETRIEVAL = register(MetricKind(
    name="retrieval", title="Nearest other image of the same label", unit="%", decimals=2, higher_is_better=True,
    tolerance=Tolerance(absolute=1.0), about="labels", headline=True, on_card=True,
))
PSNR_DB = register(MetricKind(
    name="psnr_db", title="PSNR beside the teacher", unit="dB", decimals=1, higher_is_better=True,
    tolerance=Tolerance(absolute=1.5), headline=True, on_card=True,
))
RELATIVE_ERROR = register(MetricKind(
    name="map_relative_error", title="Mean error, as a share of the teacher's mean size", unit="%", decimals=2,
    higher_is_better=False, tolerance=Tolerance(absolute=0.5, relative=0.2), headline=True, on_card=True,
))
TRUE_RELATIVE_ERROR = register(MetricKind(
    name="map_true_error", title="Mean error beside the labels, as a share of their mean size", unit="%",
    decimals=2, higher_is_better=False, tolerance=Tolerance(absolute=0.5, relative=0.1), about="labels", on_card=True,
))
MASK_IOU = register(MetricKind(
    name="mask_iou", title="IoU of the masks beside the teacher's, mean over classes", unit="%", decimals=2,
    higher_is_better=True, tolerance=Tolerance(absolute=1.0), headline=True, on_card=True, short="mask IoU %",
))
PIXEL_AGREEMENT = register(MetricKind(
    name="pixel_agreement", title="Pixels of the teacher's class", unit="%", decimals=2, higher_is_better=True,
    tolerance=Tolerance(absolute=0.5), on_card=True,
))
MASK_TRUE_IOU = register(MetricKind(
    name="mask_true_iou", title="IoU of the masks beside the labels, mean over classes", unit="%", decimals=2,
    higher_is_better=True, tolerance=Tolerance(absolute=0.5), about="labels", headline=True, on_card=True,
))
AP50 = register(MetricKind(
    name="ap50", title="AP50 of its boxes beside the teacher's", unit="%", decimals=2, higher_is_better=True,
    tolerance=Tolerance(absolute=2.0), headline=True, on_card=True, short="AP50 %",
))
AP50_CLASSES = register(replace(
    AP50, name="ap50_classes", title="AP50 beside the teacher, mean over classes", headline=False, short="",
))
AP50_WORST = register(replace(
    AP50, name="ap50_worst", title="AP50 beside the teacher, the worst class of ten boxes or more", headline=False,
    on_card=False, tolerance=Tolerance(absolute=8.0), short="",
))
AP50_SMALL = register(replace(
    AP50, name="ap50_small", title="AP50 beside the teacher, boxes below 32 x 32", headline=False, on_card=False,
    tolerance=Tolerance(absolute=4.0), short="",
))
AP50_MEDIUM = register(replace(AP50_SMALL, name="ap50_medium", title="AP50 beside the teacher, up to 96 x 96"))
AP50_LARGE = register(replace(AP50_SMALL, name="ap50_large", title="AP50 beside the teacher, larger boxes"))
TRUE_AP50 = register(replace(
    AP50, name="true_ap50", title="AP50 beside the labels", tolerance=Tolerance(absolute=0.5), about="labels", short="",
))
TRUE_AP = register(replace(TRUE_AP50, name="true_ap", title="AP beside the labels, mean over IoU 0.5 to 0.95"))
COCO_AP = register(replace(TRUE_AP, name="coco_ap", title="AP beside the labels, by pycocotools"))
BOXES_VANISHED = register(MetricKind(
    name="boxes_vanished", title="Boxes of the teacher that are gone", unit="%", decimals=2, higher_is_better=False,
    tolerance=Tolerance(absolute=2.0), headline=True, on_card=True,
))
BOXES_APPEARED = register(replace(
    BOXES_VANISHED, name="boxes_appeared", title="Boxes that the teacher has not, in % of its own",
))
BOX_IOU = register(MetricKind(
    name="box_iou", title="IoU of the boxes that both have", unit="%", decimals=2, higher_is_better=True,
    tolerance=Tolerance(absolute=1.0),
))
SCORE_ERROR = register(MetricKind(
    name="score_error", title="Error of the scores of the boxes that both have", unit="%", decimals=2,
    higher_is_better=False, tolerance=Tolerance(absolute=1.0),
))
POINTS_KEPT = register(MetricKind(
    name="points_kept", title="Points where the teacher has them", unit="%", decimals=2, higher_is_better=True,
    tolerance=Tolerance(absolute=1.5), headline=True, on_card=True, short="points %",
))
POINT_ERROR = register(MetricKind(
    name="point_error", title="Distance of the points, in % of the image's longer side", unit="%", decimals=3,
    higher_is_better=False, tolerance=Tolerance(absolute=0.2, relative=0.3), on_card=True,
))
POINTS_RIGHT = register(replace(
    POINTS_KEPT, name="points_right", title="Points where the labels have them", about="labels", short="",
))
LINE_AGREEMENT = register(MetricKind(
    name="line_agreement", title="Lines of the teacher's text", unit="%", decimals=2, higher_is_better=True,
    tolerance=Tolerance(absolute=1.5), headline=True, on_card=True, short="lines %",
))
CHARACTER_ERROR = register(MetricKind(
    name="character_error", title="Characters to change for the teacher's text", unit="%", decimals=2,
    higher_is_better=False, tolerance=Tolerance(absolute=0.5), on_card=True,
))
LINE_ACCURACY = register(replace(
    LINE_AGREEMENT, name="line_accuracy", title="Lines of the right text", about="labels", short="",
    tolerance=Tolerance(absolute=0.5),
))
TRUE_CHARACTER_ERROR = register(replace(
    CHARACTER_ERROR, name="true_character_error", title="Characters to change for the right text", about="labels",
))
LABELS_F1 = register(MetricKind(
    name="labels_f1", title="F1 of the labels named", unit="%", decimals=2, higher_is_better=True,
    tolerance=Tolerance(absolute=0.5), about="labels", headline=True, on_card=True,
))
INTEGER_OPS = register(MetricKind(
    name="integer_ops", title="Layers in integer kernels", unit="%", decimals=2, higher_is_better=True,
    about="file", headline=True, short="integer ops %",
))
PORTABLE = register(MetricKind(
    name="portable", title="Kernel families with the same bits", unit="%", decimals=0, higher_is_better=True,
    about="file",
))
LATENCY = register(MetricKind(
    name="latency", title="Latency, median", unit="ms", decimals=3, higher_is_better=False,
    about="file", gated=False, timed=True,
))
SPEEDUP = register(MetricKind(
    name="speedup", title="Speed-up", unit="x", decimals=2, higher_is_better=True,
    about="file", gated=False, timed=True, headline=True,
))
SIZE = register(MetricKind(
    name="size", title="File size", unit="bytes", higher_is_better=False,
    about="file", gated=False, ratio_words=("smaller", "larger"), headline=True,
))
STRUCTURE = register(MetricKind(
    name="structure", title="Layers of another kind than recorded", unit="layers", higher_is_better=False,
    about="file",
))
PREPROCESSING = register(MetricKind(
    name="preprocessing", title="Statements of another normalisation", unit="statements", higher_is_better=False,
    about="file",
))
# fmt: on
