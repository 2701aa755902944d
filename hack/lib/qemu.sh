# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# Debian's kernel in qemu, for hack/guest: the host's root read-only over virtio-9p, under a layer in
# memory. Source it after common.sh; prepare_qemu sets `qemu`, the command, and `modules`.

# of_suite SUITE: sets `apt_options`, with which apt knows the packages of a Debian suite instead of this machine's.
of_suite() {
    local state=$CACHE/kernels/apt-$1
    mkdir -p "$state/lists/partial" "$state/archives/partial"
    cat >"$state/suite.sources" <<END
Types: deb
URIs: ${KPR_DEBIAN_MIRROR:-http://deb.debian.org/debian}
Suites: $1
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
END
    apt_options=(-o "Dir::Etc::sourcelist=$state/suite.sources" -o Dir::Etc::sourceparts=/nowhere
        -o "Dir::State::lists=$state/lists" -o "Dir::Cache::archives=$state/archives"
        -o "Dir::Cache::pkgcache=$state/pkgcache.bin" -o "Dir::Cache::srcpkgcache=$state/srcpkgcache.bin")
    # Once: the newest kernel of that time stays the one.
    if [[ ! -e $state/updated ]]; then
        log "reading the list of packages of $1"
        apt-get -qq "${apt_options[@]}" -o APT::Sandbox::User=root update >&2 || die "cannot read the packages of $1"
        touch "$state/updated"
    fi
}

# unpacked_kernel [SUITE]: prints the folder of an unpacked linux-image package, made on demand.
unpacked_kernel() {
    local package folder part parts apt_options=()
    if [[ ${KPR_GUEST_KERNEL:-} ]]; then
        echo "$KPR_GUEST_KERNEL"
        return
    fi
    if [[ ${1:-} ]]; then of_suite "$1"; fi
    package=$(apt-cache "${apt_options[@]}" depends linux-image-amd64 2>/dev/null |
        sed -n 's/^ *Depends: *\(linux-image-[0-9]\)/\1/p' | head -n 1)
    [[ $package ]] || die "apt knows no linux-image-amd64; name an unpacked linux-image package with KPR_GUEST_KERNEL"
    folder=$CACHE/kernels/$package
    (
        flock 9
        [[ ! -e $folder/ready ]] || exit 0
        log "downloading $package"
        rm -rf "$folder" && mkdir -p "$folder/deb"
        cd "$folder/deb"
        # Since Linux 7 kernel and modules are packages of their own.
        mapfile -t parts < <(apt-cache "${apt_options[@]}" depends "$package" |
            sed -n 's/^ *Depends: *\(linux-\(base\|binary\|modules\)-[0-9]\)/\1/p')
        # As root, apt would want to download as another user.
        apt-get -qq "${apt_options[@]}" -o APT::Sandbox::User=root download "$package" "${parts[@]}" >&2 ||
            die "cannot download $package"
        for part in ./*.deb; do dpkg -x "$part" "$folder"; done
        rm -r "$folder/deb"
        [[ -e $folder/lib ]] || ln -s usr/lib "$folder/lib"
        touch "$folder/ready"
    ) 9>"$CACHE/kernels.lock" || return 1
    echo "$folder"
}

# shellcheck disable=SC2034 # for hack/guest
prepare_qemu() {
    local folder version vmlinuz initrd module files accel
    need_packages qemu-system-x86 busybox-static cpio kmod ipvsadm ipset iptables nftables iproute2 conntrack
    mkdir -p "$CACHE/kernels"
    folder=$(unpacked_kernel "${suite:-}") || exit 1
    folder=$(readlink -f "$folder")
    version=$(basename "$(echo "$folder"/lib/modules/*)")
    vmlinuz=$folder/boot/vmlinuz-$version
    [[ -e $vmlinuz ]] || vmlinuz=$folder/lib/modules/$version/vmlinuz
    [[ -e $vmlinuz ]] || die "no kernel $version in $folder"
    (
        flock 9
        [[ -e $folder/lib/modules/$version/modules.dep.bin ]] || depmod -b "$folder" "$version"
    ) 9>"$CACHE/kernels.lock"
    modules=$folder/lib/modules

    # What mounts the root: everything else is loaded on demand from the host's file system.
    initrd=$SCRATCH/initrd
    mkdir -p "$initrd"/{bin,proc,sys,lower,layer,root,modules}
    cp /bin/busybox "$initrd/bin/busybox"
    for module in virtio_pci 9pnet_virtio 9p overlay; do
        # insmod PATH, in the order of dependencies; `builtin` has no file.
        modprobe -d "$folder" -S "$version" --show-depends "$module" | awk '$1 == "insmod" {print $2}'
    done | awk '!seen[$0]++' >"$SCRATCH/wanted-modules"
    {
        echo '#!/bin/busybox sh'
        echo '/bin/busybox --install -s /bin'
        echo 'mount -t proc proc /proc'
        local number=0
        while read -r files; do
            number=$((number + 1))
            cp "$files" "$initrd/modules/$number-${files##*/}"
            case $files in
                *.xz) echo "xz -dc /modules/$number-${files##*/} >/modules/$number.ko && insmod /modules/$number.ko" ;;
                *) echo "insmod /modules/$number-${files##*/}" ;;
            esac
        done <"$SCRATCH/wanted-modules"
        printf 'scratch=%q\n' "$SCRATCH"
        cat <<'END'
options=trans=virtio,version=9p2000.L,msize=512000
mount -t 9p -o ro,cache=loose,$options root /lower
mount -t tmpfs -o size=80% tmpfs /layer
mkdir /layer/upper /layer/work
mount -t overlay -o lowerdir=/lower,upperdir=/layer/upper,workdir=/layer/work overlay /root
mkdir -p "/root$scratch"
# Results go straight to the host.
mount -t 9p -o $options scratch "/root$scratch"
mount -t devtmpfs devtmpfs /root/dev
umount /proc
exec switch_root /root "$scratch/init"
END
    } >"$initrd/init"
    chmod 755 "$initrd/init"
    (cd "$initrd" && find . | cpio --quiet -o -H newc | gzip -1 >"$SCRATCH/initrd.gz")
    rm -rf "$initrd"

    # A /dev/kvm that exists may still not run a guest, as in nested machines.
    accel=${KPR_GUEST_ACCEL:-tcg,thread=multi}
    qemu=(qemu-system-x86_64 -accel "$accel" -cpu max -smp 2 -nodefaults -display none -no-reboot -serial stdio
        -kernel "$vmlinuz" -initrd "$SCRATCH/initrd.gz"
        -append "console=ttyS0 quiet loglevel=4 panic=-1 net.ifnames=0 mitigations=off"
        -virtfs "local,path=/,mount_tag=root,security_model=none,readonly=on,multidevs=remap"
        -virtfs "local,path=$SCRATCH,mount_tag=scratch,security_model=none"
        -device virtio-rng-pci)
}
