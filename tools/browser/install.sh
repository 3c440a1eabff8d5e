#!/usr/bin/env bash
# install.sh: Debian's or Ubuntu's Chromium and its driver; run as root. 20-40 s the first time, then nothing.
# Exit code 3: this machine cannot have them, because of its user or its distribution.
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive
command -v chromium >/dev/null && command -v chromedriver >/dev/null && exit 0
[ "$(id -u)" = 0 ] || { echo "install.sh: Chromium is not installed, and only root can install it" >&2; exit 3; }
command -v apt-get >/dev/null || { echo "install.sh: Chromium is not installed, and there is no apt-get" >&2; exit 3; }
get() {
  apt-get install -y -qq --no-install-recommends -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300 \
    chromium chromium-driver fonts-dejavu-core >/dev/null
}
get 2>/dev/null || { apt-get update -qq && get; }
