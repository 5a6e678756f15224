"""Running a bundle on a device: numpy and one inference engine, no torch.

    with edgekit.runtime.denoiser.open("dsunet-s-tflite.edgekit") as denoiser:
        clean = denoiser(noisy, sigma=25)

`denoiser` opens bundles and runs images of any size, tile by tile (`tiling`); `engines` holds one file per inference
engine; `estimate` guesses sigma; `quality` measures PSNR and SSIM; `images` reads and writes files; `check` judges.
"""
