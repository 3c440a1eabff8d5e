#!/usr/bin/env bash
# install.sh: the Debian or Ubuntu packages of a Slurm cluster with accounting; run as root. 10-25 s the first time, then
# nothing. Exit code 3: this machine cannot have such a cluster, because of its user or its distribution.
set -euo pipefail
export PATH=$PATH:/usr/sbin DEBIAN_FRONTEND=noninteractive
[ "$(id -u)" = 0 ] || { echo "install.sh: the cluster on one machine is raised by root only" >&2; exit 3; }
missing=0
for program in slurmctld slurmd slurmdbd munged mariadbd sbatch; do command -v "$program" >/dev/null || missing=1; done
[ $missing = 0 ] && exit 0
command -v apt-get >/dev/null || { echo "install.sh: Slurm is not installed, and there is no apt-get" >&2; exit 3; }
# The packages start no daemons: this machine's own services are left alone.
policy=/usr/sbin/policy-rc.d
[ -e $policy ] || { printf '#!/bin/sh\nexit 101\n' > $policy; chmod +x $policy; trap 'rm -f $policy' EXIT; }
get() {
  apt-get install -y -qq --no-install-recommends -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300 \
    slurm-wlm munge slurmdbd slurm-wlm-mysql-plugin mariadb-server-core mariadb-client-core >/dev/null
}
get 2>/dev/null || { apt-get update -qq && get; }
