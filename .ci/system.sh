#!/bin/sh
# Make sure that the system has what a target needs.
#
#     .ci/system.sh build|test|drivers|lint ...
#
# What is missing is installed with apt where this runs as root; otherwise the
# command is printed and the script fails; a missing /etc/hosts is written. Where
# nothing is missing, nothing is asked of the network. PYTHON and CC name the interpreter and the compiler.
set -eu

python=${PYTHON:-python3}
case $(basename "$python") in
python3.*) package=$(basename "$python") ;; # Debian's name of a version beside the default
*) package=python3 ;;
esac
missing=
need() { case " $missing " in *" $1 "*) ;; *) missing="$missing $1" ;; esac; }
have() { command -v "$1" >/dev/null 2>&1; }
# A system that no installer has set up, such as a bare chroot, has no /etc/hosts.
name_localhost() {
    if [ -e /etc/hosts ] || [ "$(id -u)" != 0 ]; then
        echo "offloop: the name localhost has no address here: it belongs into /etc/hosts" >&2
        exit 1
    fi
    echo "offloop: writing /etc/hosts, which is missing, with localhost in it"
    echo '127.0.0.1 localhost' >/etc/hosts
}
header() { echo "#include <$1>" | gcc -E -x c - >/dev/null 2>&1; }

for target; do
    case $target in
    build)
        have gcc || need gcc
        header stdio.h || need libc6-dev
        header openssl/ssl.h || need libssl-dev
        header ck_ec.h || need libck-dev
        "$python" -c 'import ensurepip, venv' 2>/dev/null || need "$package-venv"
        "$python" -c 'if 1:
            import os, sysconfig
            os.stat(os.path.join(sysconfig.get_path("include"), "Python.h"))
        ' 2>/dev/null || need "$package-dev" ;;
    test)
        getent hosts localhost >/dev/null || name_localhost
        have openssl || need openssl
        have "${REDIS_SERVER:-redis-server}" || need redis-server ;;
    drivers) # of databases, and their servers; no server is started by the installation
        [ -e /usr/sbin/mariadbd ] || need mariadb-server-core
        ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 || need postgresql
        ls /usr/lib/*/libodbc.so.2 >/dev/null 2>&1 || need libodbc2 # from 5.5 on pyodbc has none
        ls /usr/lib/*/odbc/libsqlite3odbc.so >/dev/null 2>&1 || need libsqliteodbc
        ls /usr/lib/*/odbc/psqlodbcw.so >/dev/null 2>&1 || need odbc-postgresql
        have pkg-config || need pkg-config
        header mysql.h || pkg-config --exists libmariadb 2>/dev/null || need libmariadb-dev ;;
    lint)
        have clang || need clang ;;
    *)
        echo "$0: unknown target: $target" >&2
        exit 2 ;;
    esac
done

[ -n "$missing" ] || exit 0
install="apt-get install -y --no-install-recommends$missing"
if ! have apt-get; then
    echo "offloop: missing here (by Debian's names):$missing" >&2
    exit 1
fi
if [ "$(id -u)" != 0 ]; then
    echo "offloop: the system lacks some packages; as root run:" >&2
    echo "    apt-get update && $install" >&2
    exit 1
fi
echo "offloop: installing with apt:$missing"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
export DEBIAN_FRONTEND=noninteractive
# An unreachable list of somebody else's is no reason to stop: the install tells.
apt-get update >"$log" 2>&1 </dev/null || cat "$log" >&2
if ! $install >"$log" 2>&1 </dev/null; then
    cat "$log" >&2
    echo "offloop: this failed: $install" >&2
    exit 1
fi
