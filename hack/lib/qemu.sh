# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# Debian's kernel in qemu, for hack/guest: the host's root read-only over virtio-9p, under a layer in
# memory. Source it after common.sh; prepare_qemu sets `qemu`, the command, and `modules`.

# unpacked_kernel: prints the folder of an unpacked linux-image package, made on demand.
unpacked_kernel() {
    local package folder
    if [[ ${KPR_GUEST_KERNEL:-} ]]; then
        echo "$KPR_GUEST_KERNEL"
        return
    fi
    package=$(apt-cache depends linux-image-amd64 2>/dev/null | sed -n 's/^ *Depends: //p' | head -n 1)
    [[ $package ]] || die "apt knows no linux-image-amd64; name an unpacked linux-image package with KPR_GUEST_KERNEL"
    folder=$CACHE/kernels/$package
    (
        flock 9
        [[ ! -e $folder/ready ]] || exit 0
        log "downloading $package"
        rm -rf "$folder" && mkdir -p "$folder/deb"
        cd "$folder/deb"
        # As root, apt would want to download as another user.
        apt-get -qq -o APT::Sandbox::User=root download "$package" >&2 || die "cannot download $package"
        dpkg -x ./*.deb "$folder"
        rm -r "$folder/deb"
        touch "$folder/ready"
    ) 9>"$CACHE/kernels.lock" || return 1
    echo "$folder"
}

# shellcheck disable=SC2034 # for hack/guest
prepare_qemu() {
    local folder version initrd module files accel
    need_packages qemu-system-x86 busybox-static cpio kmod ipvsadm ipset iptables nftables iproute2 conntrack
    mkdir -p "$CACHE/kernels"
    folder=$(unpacked_kernel) || exit 1
    folder=$(readlink -f "$folder")
    version=$(basename "$(echo "$folder"/lib/modules/*)")
    [[ -e $folder/boot/vmlinuz-$version ]] || die "no kernel $version in $folder/boot"
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
        -kernel "$folder/boot/vmlinuz-$version" -initrd "$SCRATCH/initrd.gz"
        -append "console=ttyS0 quiet loglevel=4 panic=-1 net.ifnames=0 mitigations=off"
        -virtfs "local,path=/,mount_tag=root,security_model=none,readonly=on,multidevs=remap"
        -virtfs "local,path=$SCRATCH,mount_tag=scratch,security_model=none"
        -device virtio-rng-pci)
}
