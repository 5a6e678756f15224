"""Consumer samples that go into a bundle, filled in from its manifest."""

from __future__ import annotations

from string import Template

from edgekit.bundle.manifest import Manifest
from edgekit.errors import BundleError
from edgekit.runtime.tiling import step

_PYTHON = Template('''# SPDX-License-Identifier: MIT
"""Denoise an image file with this bundle.

    pip install 'edgekit[$extra]'        # or, in a clone of edgekit: pip install ".[$extra]"
    python samples/python.py noisy.png clean.png 25

The last argument is the noise level in 8-bit units, $low to $high.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

import edgekit

if len(sys.argv) != 4:
    sys.exit("usage: python samples/python.py NOISY CLEAN SIGMA, e.g. noisy.png clean.png 25")
source, destination, sigma = sys.argv[1], sys.argv[2], float(sys.argv[3])
noisy = np.asarray(Image.open(source).convert("$mode"))
with edgekit.open(Path(__file__).resolve().parents[1]) as denoiser:
    clean = denoiser(noisy, sigma=sigma)
Image.fromarray(clean).save(destination)
''')

_C = Template("""/* SPDX-License-Identifier: MIT
 *
 * Denoises one $tile x $tile tile with $file, through the TensorFlow Lite C API.
 *
 *   cc samples/denoise.c -I INCLUDE -L LIB -ltensorflowlite_c -lm -o denoise
 *   ./denoise $file 25 < noisy.$raw > clean.$raw
 *
 * The tile is raw $kind, $tile rows of $tile pixels, 8 bits a channel. The image tensor is $dtype at scale 1/255
 * and zero point $zero: $how. For a larger image mirror its border by $margin pixels ("reflect"), run
 * windows $step pixels apart that begin at multiples of $stride, and keep of each what lies at least $halo pixels
 * inside it: the result is then that of the whole image, bit for bit.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "tensorflow/lite/c/c_api.h"

#define BYTES ($tile * $tile * $channels)

static int fail(const char *what) {
  fprintf(stderr, "denoise: %s\\n", what);
  return 1;
}

int main(int argc, char **argv) {
  static unsigned char pixels[BYTES];
  if (argc != 3) return fail("expected a model file and a noise level, $low to $high");
  if (fread(pixels, 1, BYTES, stdin) != BYTES) return fail("expected $tile x $tile x $channels bytes on stdin");

  TfLiteModel *model = TfLiteModelCreateFromFile(argv[1]);
  if (!model) return fail("the model file cannot be read");
  TfLiteInterpreterOptions *options = TfLiteInterpreterOptionsCreate();
  TfLiteInterpreterOptionsSetNumThreads(options, 1);
  TfLiteInterpreter *interpreter = TfLiteInterpreterCreate(model, options);
  if (!interpreter || TfLiteInterpreterAllocateTensors(interpreter) != kTfLiteOk)
    return fail("the model cannot run here");

$encode
  for (int i = 0; i < TfLiteInterpreterGetInputTensorCount(interpreter); ++i) {
    TfLiteTensor *input = TfLiteInterpreterGetInputTensor(interpreter, i);
    TfLiteStatus status;
    if (TfLiteTensorNumDims(input) == 4) {
      status = TfLiteTensorCopyFromBuffer(input, pixels, BYTES);
    } else { /* the noise level: real = $sigma_scale * (integer - $sigma_zero) */
$level
      status = TfLiteTensorCopyFromBuffer(input, &level, sizeof level);
    }
    if (status != kTfLiteOk) return fail("an input does not fit the model");
  }
  if (TfLiteInterpreterInvoke(interpreter) != kTfLiteOk) return fail("the model failed");
  if (TfLiteTensorCopyToBuffer(TfLiteInterpreterGetOutputTensor(interpreter, 0), pixels, BYTES) != kTfLiteOk)
    return fail("the output does not fit the model");
$encode
  TfLiteInterpreterDelete(interpreter);
  TfLiteInterpreterOptionsDelete(options);
  TfLiteModelDelete(model);
  return fwrite(pixels, 1, BYTES, stdout) == BYTES ? 0 : fail("stdout cannot be written");
}
""")


def python(manifest: Manifest) -> str:
    """A script that denoises an image file through edgekit."""
    low, high = manifest.sigma
    default = next(v for v in manifest.variants if v.name == manifest.default_variant)
    mode = "RGB" if manifest.model.channels == 3 else "L"
    return _PYTHON.substitute(extra=default.engine, mode=mode, low=f"{low:g}", high=f"{high:g}")


def margin(manifest: Manifest) -> int:
    """Pixels that an image is mirrored by on top and left: the halo rounded up to the stride."""
    return -(-manifest.model.halo // manifest.model.stride) * manifest.model.stride


def c(manifest: Manifest) -> str | None:
    """A C program for one tile of a .tflite file with 8-bit images; None where the bundle has none.

    Raises: BundleError: the noise level is a map, which a scalar sample cannot feed.
    """
    variant = next(
        (
            v
            for v in manifest.variants
            if v.engine == "litert"
            and v.file.endswith(".tflite")
            and all(
                s.dtype in ("int8", "uint8") and s.layout == "NHWC"
                for s in (*v.inputs, *v.outputs)
                if s.role != "sigma"
            )
        ),
        None,
    )
    if variant is None:
        return None
    image = next(s for s in variant.inputs if s.role == "image")
    sigma = next((s for s in variant.inputs if s.role == "sigma"), None)
    if sigma is not None and sigma.layout != "N":
        raise BundleError(f"{variant.file}: input {sigma.name!r} is a map: the C sample feeds one level an image")
    signed = image.dtype == "int8"
    model = manifest.model
    if sigma is None:
        level = "      unsigned char level = 0;"
    elif sigma.scale is None:
        level = "      float level = (float)atof(argv[2]) / 255.0f;"
    else:
        low, high, kind = (-128, 127, "signed char") if sigma.dtype == "int8" else (0, 255, "unsigned char")
        level = (
            f"      double integer = rint(atof(argv[2]) / 255.0 / {sigma.scale!r}) + {sigma.zero_point};\n"
            f"      {kind} level = ({kind})(integer < {low} ? {low} : integer > {high} ? {high} : integer);"
        )
    flip = "  for (int i = 0; i < BYTES; ++i) pixels[i] ^= 0x80; /* unsigned to signed, or back */\n"
    return _C.substitute(
        tile=manifest.tile,
        file=variant.file,
        channels=model.channels,
        kind="RGB" if model.channels == 3 else "gray",
        raw="rgb" if model.channels == 3 else "gray",
        dtype=image.dtype,
        zero=image.zero_point,
        how="a byte less 128" if signed else "the byte itself",
        margin=margin(manifest),
        step=step(manifest.tile, model.halo, model.stride),
        stride=model.stride,
        halo=model.halo,
        low=f"{manifest.sigma[0]:g}",
        high=f"{manifest.sigma[1]:g}",
        encode=flip if signed else "",
        sigma_scale=sigma.scale if sigma and sigma.scale is not None else 1,
        sigma_zero=sigma.zero_point if sigma and sigma.zero_point is not None else 0,
        level=level,
    )
