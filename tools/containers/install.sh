#!/usr/bin/env bash
# install.sh RUNTIME...: install container runtimes for tests on a Debian 12 machine; run as root.
#
#   RUNTIME     podman | apptainer | docker
#   afterwards  `podman`, `apptainer` and `dockerd` are on PATH and work, also as root without CAP_SYS_RESOURCE
#               (a virtual machine inside a container). docker needs its daemon: see dockerd.sh.
# Does nothing for what is installed already; prints one line for each runtime. Packages come from the Debian mirrors
# that apt is configured with. Apptainer is in Debian's unstable suite only: it is unpacked with that suite's C library
# beside it under /opt/apptainer, so that nothing of the system is upgraded.
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive
apptainer_prefix=/opt/apptainer

stop() { echo "install.sh: $1" >&2; exit 2; }

apt_install() {
  # An old package list names files that the mirror has no more, so a first failure gets new lists and a second try.
  local options=(-y -qq --no-install-recommends -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300)
  apt-get install "${options[@]}" "$@" >/dev/null 2>&1 && return
  apt-get update -qq -o DPkg::Lock::Timeout=300 || true
  apt-get install "${options[@]}" "$@" >/dev/null
}

root_is_full() {  # does this root have CAP_SYS_RESOURCE (bit 24), so that it may raise limits?
  (( (0x$(sed -n 's/^CapEff:\s*//p' /proc/self/status) >> 24) & 1 ))
}

install_podman() {
  command -v podman runc catatonit >/dev/null || apt_install podman runc catatonit
  root_is_full && return
  # Podman's default limits are above what this root may set; Podman lowers its own number of processes to pid_max.
  local files processes most
  files=$(ulimit -Hn) processes=$(ulimit -Hu) most=$(cat /proc/sys/kernel/pid_max)
  if [ "$processes" = unlimited ] || [ "$processes" -gt "$most" ]; then processes=$most; fi
  mkdir -p /etc/containers/containers.conf.d
  printf '[containers]\ndefault_ulimits = ["nofile=%s:%s", "nproc=%s:%s"]\n' "$files" "$files" "$processes" "$processes" \
    > /etc/containers/containers.conf.d/50-one-machine.conf
}

unpack_apptainer() {  # into $1
  local work prefix=$1 mirror
  work=$(mktemp -d); mkdir -p "$work"/{lists,cache/archives}/partial "$work"/{parts,debs,own,newer}
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Codename: bookworm' 'Component: main' | head -1)
  [ -n "$mirror" ] || stop "apt knows no mirror of Debian 12 (run apt-get update)"
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror sid main" > "$work/parts/sid.list"
  local apt=(apt-get -qq -o Dir::Etc::SourceList=/dev/null -o "Dir::Etc::SourceParts=$work/parts" -o "Dir::State::Lists=$work/lists"
             -o "Dir::Cache=$work/cache" -o APT::Sandbox::User=root)
  "${apt[@]}" update
  (cd "$work/debs" && "${apt[@]}" download apptainer libc6 libseccomp2 libsqlite3-0)
  dpkg -x "$work"/debs/apptainer_*.deb "$work/own"
  for deb in "$work"/debs/lib*.deb; do dpkg -x "$deb" "$work/newer"; done

  mkdir -p "$prefix/newer"
  cp -a "$work"/own/usr/bin "$work"/own/usr/lib "$work"/own/etc "$work"/own/var "$prefix/"
  cp -aL "$work"/newer/usr/lib/x86_64-linux-gnu/{ld-linux-x86-64.so.2,lib{c,m,resolv,dl}.so.[26],libpthread.so.0,libseccomp.so.2,libsqlite3.so.0} \
    "$prefix/newer/"
  rm -r "$work"
}

link_apptainer() {  # $1 where it lies now, $2 where it will lie
  local binary
  for binary in "$1/bin/apptainer" "$1/lib/x86_64-linux-gnu/apptainer/bin/starter"; do
    patchelf --set-interpreter "$2/newer/ld-linux-x86-64.so.2" --force-rpath --set-rpath "$2/newer" "$binary"
  done
  ln -sfn ../var "$1/lib/var"; ln -sfn ../etc "$1/lib/etc"  # the starter looks for both one level up
}

grant_capabilities() {  # by default Apptainer asks for every capability that exists, and fails where root lacks one
  sed -i 's/^root default capabilities = .*/root default capabilities = file/' "$1/etc/apptainer/apptainer.conf"
  python3 - "$1/etc/apptainer/capability.json" <<'PY'
import json, re, subprocess, sys
from pathlib import Path

held = re.search(r"CapPrm:\s*(\w+)", Path("/proc/self/status").read_text())[1]
shown = subprocess.run(["capsh", f"--decode={held}"], capture_output=True, text=True, check=True).stdout
Path(sys.argv[1]).write_text(json.dumps({"users": {"root": shown.strip().partition("=")[2].upper().split(",")}}))
PY
}

install_apptainer() {
  [ -x "$apptainer_prefix/bin/apptainer" ] || {
    [ "$(dpkg --print-architecture)" = amd64 ] || stop "the Apptainer recipe is for amd64"
    apt_install squashfs-tools squashfuse fuse2fs uidmap patchelf libcap2-bin
    rm -rf "$apptainer_prefix.new"
    unpack_apptainer "$apptainer_prefix.new"
    link_apptainer "$apptainer_prefix.new" "$apptainer_prefix"
    root_is_full || grant_capabilities "$apptainer_prefix.new"
    mv "$apptainer_prefix.new" "$apptainer_prefix"
  }
  for file in /etc/subuid /etc/subgid; do  # `apptainer build --fakeroot` wants a range of ids
    grep -qs '^root:' "$file" || echo root:1000000:65536 >> "$file"
  done
  if [ -e /dev/fuse ]; then chmod 666 /dev/fuse; fi  # for users other than root
  ln -sfn "$apptainer_prefix/bin/apptainer" /usr/local/bin/apptainer
}

install_docker() { [ -x /usr/sbin/dockerd ] || apt_install docker.io; }

[ $# -gt 0 ] || stop "usage: install.sh podman|apptainer|docker..."
[ "$(id -u)" = 0 ] || stop "must run as root"
for runtime in "$@"; do
  case $runtime in
    podman) install_podman; podman --version ;;
    apptainer) install_apptainer; apptainer --version ;;
    docker) install_docker; /usr/sbin/dockerd --version ;;
    *) stop "no recipe for '$runtime'; there are podman, apptainer, docker" ;;
  esac
done
