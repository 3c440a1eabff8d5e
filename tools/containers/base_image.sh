#!/usr/bin/env bash
# base_image.sh OUT.tar: a base image for tests, made from Debian 12 packages only; run as root, about 25 s.
#
#   OUT.tar  a root file system (170 MB) with apt and python3 with venv. Kept when it is there and made by this script.
# Use it:  podman import -q OUT.tar localhost/grpo-base          (docker import OUT.tar localhost/grpo-base)
#          apptainer build OUT.sif docker-archive:SAVED.tar      (SAVED.tar from `podman save -o SAVED.tar localhost/grpo-base`)
#          grpo-hpc image build cpu --base localhost/grpo-base   (in the place of the public Debian image)
set -euo pipefail
[ $# = 1 ] || { echo "usage: base_image.sh OUT.tar" >&2; exit 2; }
out=$1 stamp=$1.stamp
wanted=$(sha256sum < "$0")
[ -f "$out" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && exit 0

export DEBIAN_FRONTEND=noninteractive
command -v mmdebstrap >/dev/null || {
  apt-get update -qq || true
  apt-get install -y -qq --no-install-recommends -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300 mmdebstrap >/dev/null
}
# Device nodes are left out: a container gets its own, and Apptainer cannot unpack them without privileges.
mirror() { apt-get indextargets --format "deb \$(REPO_URI) \$(CODENAME) main" 'Created-By: Packages' "Codename: $1" 'Component: main' | head -1; }
mkdir -p "$(dirname "$out")"
{ mirror bookworm; mirror bookworm-updates; mirror bookworm-security; } |
  mmdebstrap --quiet --variant=apt --skip=output/dev --include=python3,python3-venv \
    --dpkgopt=force-unsafe-io --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' --customize-hook='rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/*.bin' \
    bookworm "$out.new.tar" -
mv "$out.new.tar" "$out"
echo "$wanted" > "$stamp"
