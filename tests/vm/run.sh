#!/usr/bin/env bash
# Run tests on other kernels: Debian's stable one and its 6.12 series, each in an emulated
# machine over this machine's own file system, both at once.
#
#   tests/vm/run.sh [--kernel 6.1|6.12] [--timeout S] [--console FILE]
#                   [PYTEST-ARG... | --run CMD ARG...]
#
# Without arguments for pytest it runs what chosen.txt lists. CMD runs as root in the
# checkout, with no input. The guest sees / under an overlay in its memory: what it writes
# is gone with it. It has no network device. Kernels come from apt as packages, are
# unpacked below .cache/vm and never installed.
# Status: the command's, the highest of all kernels', 45 for any above; 124 out of time;
# 125 no emulator, no kernel, or a guest that ended without a status.
set -euo pipefail

here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
root=$(readlink -f "$here/../..")
store=$root/.cache/vm

# The series, and the package that depends on its latest kernel.
declare -A newest=([6.1]=linux-image-amd64 [6.12]=linux-image-6.12-amd64)
series=(6.1 6.12)
# Five minutes are usual; nine where the machine is busy besides.
timeout_s=900
console=
boot_options="console=ttyS0 quiet panic=-1 mitigations=off random.trust_cpu=on"
boot_options+=" no_timer_check clocksource=hpet tsc=unstable"
pytest=("$root/.venv/bin/python" -m pytest --color=no -p no:cacheprovider --durations=5)

die() {
    echo "run.sh: $*" >&2
    exit 125
}

while (($#)); do
    case $1 in
        --kernel)
            [[ -n ${newest[${2:-none}]:-} ]] || die "no such series: ${2:-}"
            series=("$2")
            shift 2
            ;;
        --timeout) timeout_s=$2 && shift 2 ;;
        --console) console=$(readlink -m "$2") && shift 2 ;;
        *) break ;;
    esac
done

if [[ ${1:-} == --run ]]; then
    command=("${@:2}")
elif (($#)); then
    command=("${pytest[@]}" "$@")
else
    # Everything takes ten to twenty times as long as on the machine itself.
    mapfile -t chosen < <(grep -v '^#' "$here/chosen.txt")
    command=("${pytest[@]}" "${chosen[@]}")
fi

for tool in qemu-system-x86_64 busybox modprobe depmod dpkg-deb xz zstd; do
    command -v "$tool" > /dev/null || die "$tool is not installed: see vm_packages in ./dev"
done

# --- kernels --------------------------------------------------------------------------

# latest SERIES: the package of the kernel that Debian names now, linux-image-VERSION.
latest() {
    apt-cache depends "${newest[$1]}" 2> /dev/null |
        awk '$1 == "Depends:" && $2 ~ /^linux-image-[0-9]/ && !seen++ { print $2 }'
}

# unpack PACKAGE FOLDER: the kernel as an ELF file, and its modules with their index.
unpack() {
    local folder=$2 version=${1#linux-image-}
    apt-get -q -o Acquire::Retries=3 download "$1" && dpkg-deb -x "$1"_*.deb unpacked || return
    mkdir -p "$folder/lib" && mv unpacked/lib/modules "$folder/lib/" || return
    # No guest has such hardware, and it is most of the bytes.
    rm -r "$folder/lib/modules/$version/kernel/"{sound,drivers/gpu,drivers/media} || return
    depmod -b "$folder" "$version" || return
    # Uncompressed here once, not in each guest at a twentieth of the speed.
    "$root/.venv/bin/python" "$here/vmlinux.py" "unpacked/boot/vmlinuz-$version" "$folder/vmlinux"
}

# fetch SERIES: print the folder of its unpacked kernel, made unless it is there.
fetch() {
    local package folder work
    package=$(latest "$1")
    [[ -n $package ]] || return
    folder=$store/${package#linux-image-}
    if [[ ! -d $folder ]]; then
        work=$(mktemp -d "$store/unpack.XXXXXX")
        # apt downloads as a user of its own where it can.
        chmod 755 "$work"
        # Renamed whole: of two at once the second finds it done.
        if (cd "$work" && unpack "$package" "$work/done") > "$work/log" 2>&1; then
            mv -T "$work/done" "$folder" 2> /dev/null || true
        else
            cat "$work/log" >&2
        fi
        rm -rf "$work"
        [[ -d $folder ]] || return
    fi
    echo "$folder"
}

# Package lists may be absent, or name a kernel that the archive has no more.
fetch_anyhow() {
    fetch "$1" && return
    apt-get -q -o Acquire::Retries=3 update >&2 && fetch "$1" && return
    die "no kernel of series $1: apt cannot give what ${newest[$1]} depends on"
}

# --- guests ---------------------------------------------------------------------------

# initramfs FOLDER WORK: what brings the guest as far as this machine's file system.
initramfs() {
    local folder=$1 tree=$2/tree module file
    mkdir -p "$tree"/{bin,dev,proc,modules,host,kernel,memory,new}
    cp "$(command -v busybox)" "$tree/bin/busybox"
    install -m 755 "$here/init.sh" "$tree/init"
    cp "$here/guest.sh" "$tree/guest.sh"
    printf '%q ' "${command[@]}" > "$tree/command"
    echo "$root" > "$tree/root"
    for module in virtio_pci 9pnet_virtio 9p overlay; do
        modprobe -d "$folder" -S "${folder##*/}" --show-depends "$module"
    done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' | while read -r file; do
        module=$(basename "${file%.xz}")
        case $file in
            *.xz) xz -dc "$file" > "$tree/modules/$module" ;;
            *) cp "$file" "$tree/modules/$module" ;;
        esac
        echo "$module" >> "$tree/modules/order"
    done
    (cd "$tree" && find . | busybox cpio -o -H newc 2> /dev/null) | gzip -1 > "$2/initramfs"
}

# share TAG FOLDER: files of this machine that the guest cannot write to.
share() {
    printf '%s\n' -fsdev "local,id=$1,path=$2,security_model=none,multidevs=remap,readonly=on" \
        -device "virtio-9p-pci,fsdev=$1,mount_tag=$1"
}

# boot FOLDER WORK: run the command in a guest; its output is ours, and so is its status.
boot() {
    local folder=$1 work=$2 status=0 machine
    initramfs "$folder" "$work"
    mapfile -t machine < <(share host / && share kernel "$folder/lib/modules")
    # The time stamp counter's rate is measured at boot, and wrongly on a busy machine: the
    # guest's clock then runs fast. The HPET's rate is known. Commas are qemu's own.
    # shellcheck disable=SC2054
    machine+=(
        -nodefaults -no-user-config -display none -no-reboot -nic none
        -machine q35 -accel "tcg,thread=multi,tb-size=256" -cpu max,la57=off -smp 2 -m 2048
        -kernel "$folder/vmlinux" -initrd "$work/initramfs"
        -append "$boot_options"
        -chardev "file,id=console,path=$work/console" -serial chardev:console
        -chardev "stdio,id=out,signal=off" -serial chardev:out
        # The guest's write to this port ends the emulator with twice the byte, plus one.
        -device "isa-debug-exit,iobase=0x501,iosize=1"
    )
    timeout --foreground -k 5 "$timeout_s" qemu-system-x86_64 "${machine[@]}" < /dev/null ||
        status=$?
    [[ -z $console ]] || cp "$work/console" "$console"
    # guest.sh writes its status plus 16: qemu's own statuses are below 33, and those of
    # timeout and of signals above 123.
    if ((status >= 33 && status <= 123 && status % 2 == 1)); then
        return $(((status - 33) / 2))
    fi
    tail -n 30 "$work/console" >&2
    if ((status == 124)); then
        echo "run.sh: stopped after $timeout_s s" >&2
        return 124
    fi
    echo "run.sh: the guest ended without a status (qemu: $status)" >&2
    return 125
}

# boot_named FOLDER: each line with the kernel that it comes from.
boot_named() {
    local version=${1##*/} work status=0
    work=$(mktemp -d "$store/run.XXXXXX")
    # Expanded now: the variable is gone by then.
    # shellcheck disable=SC2064
    trap "rm -rf '$work'" EXIT
    SECONDS=0
    { boot "$1" "$work" 2>&1; } | sed -u "s/\r$//; s/^/$version | /" || status=${PIPESTATUS[0]}
    echo "$version | status $status after $SECONDS s"
    exit "$status"
}

mkdir -p "$store"
folders=()
for one in "${series[@]}"; do
    folder=$(fetch_anyhow "$one")
    folders+=("$folder")
done
# Each guest in a process group of its own, so that all of it ends when we are told to.
set -m
running=()
trap '((${#running[@]} == 0)) || kill -- "${running[@]/#/-}" 2> /dev/null; exit 130' INT TERM HUP
for one in "${folders[@]}"; do
    boot_named "$one" &
    running+=($!)
done
status=0
for one in "${running[@]}"; do
    ended=0
    wait "$one" || ended=$?
    ((ended <= status)) || status=$ended
done
exit "$status"
