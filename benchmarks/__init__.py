"""Benchmarks: scripts that print tables and write results/*.json, from which the tables of the README are made.

python -m benchmarks.quality      PSNR and SSIM: models x image sets x noise levels
python -m benchmarks.latency      milliseconds per megapixel, beside FFDNet
python -m benchmarks.picture      docs/images/compare.png
python -m benchmarks.tables       the tables of README.md and docs/ from results/*.json; --check compares
"""
