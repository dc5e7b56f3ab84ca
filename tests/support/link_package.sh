#!/bin/sh
# Link the checkout's folders into FOLDER/edgellama, in the layout of the installed package. The type checker and
# import-linter read it there, because neither follows the package_dir of setup.cfg.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
rm -rf "$1/edgellama"
mkdir -p "$1"
cp -rs "$root/runtime" "$1/edgellama"
cp -rs "$root/exporter" "$root/kernels" "$1/edgellama/"
