# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# Makes OCI image archives from folders, without a container engine: same folders, same bits. Source it after common.sh
# and make_scratch; it needs tar, gzip and jq.
#
#   oci_begin
#   layer=$(oci_layer FOLDER)
#   image=$(oci_image amd64 '{"Entrypoint": ["/program"]}' "$layer")
#   oci_archive FILE "$image" docker.io/library/name:tag
#
# Layers and images are descriptors, as JSON. The archive can be read by `ctr images import`, `docker load`,
# `podman load`, `kind load image-archive` and `skopeo copy oci-archive:FILE`.

oci_begin() {
    oci_layout=$SCRATCH/oci
    rm -rf "$oci_layout"
    mkdir -p "$oci_layout/blobs/sha256"
}

# oci_tar FOLDER FILE...: writes a tar of files in the folder that depends on names, modes and contents only.
oci_tar() { LC_ALL=C tar --create --format=gnu --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -C "$@"; }

# oci_blob TYPE: keeps what it reads, and prints its descriptor.
oci_blob() {
    local file digest
    file=$(mktemp "$oci_layout/blobs/new.XXXXXX")
    cat >"$file"
    chmod 644 "$file"
    digest=$(sha256sum <"$file" | cut -d ' ' -f 1)
    mv "$file" "$oci_layout/blobs/sha256/$digest"
    jq -nc --arg type "$1" --arg digest "sha256:$digest" \
        --argjson size "$(stat -c %s "$oci_layout/blobs/sha256/$digest")" '{mediaType: $type, digest: $digest, size: $size}'
}

# oci_layer FOLDER [OPTION]...: OPTIONs are tar's. With OCI_COMPRESS=no it is not compressed.
oci_layer() {
    local tar digest
    tar=$(mktemp "$SCRATCH/layer.XXXXXX")
    oci_tar "$@" . >"$tar"
    digest=sha256:$(sha256sum <"$tar" | cut -d ' ' -f 1)
    if [[ ${OCI_COMPRESS:-yes} == yes ]]; then
        gzip -n <"$tar" | oci_blob application/vnd.oci.image.layer.v1.tar+gzip
    else
        oci_blob application/vnd.oci.image.layer.v1.tar <"$tar"
    fi | jq -c --arg digest "$digest" '. + {diffID: $digest}'
    rm "$tar"
}

# oci_image ARCHITECTURE CONFIG LAYER...: CONFIG is the JSON of `config`: Entrypoint, Env, Labels. The date is
# $SOURCE_DATE_EPOCH, or 1970.
oci_image() {
    local architecture=$1 settings=$2 config date
    shift 2
    date=$(date --utc --date "@${SOURCE_DATE_EPOCH:-0}" +%Y-%m-%dT%H:%M:%SZ)
    config=$(printf '%s\n' "$@" | jq -sc --arg architecture "$architecture" --arg date "$date" --argjson config "$settings" '{
        created: $date, architecture: $architecture, os: "linux", config: $config,
        rootfs: {type: "layers", diff_ids: map(.diffID)},
        history: map({created: $date, created_by: "hack/lib/oci.sh"})}' |
        oci_blob application/vnd.oci.image.config.v1+json)
    printf '%s\n' "$@" | jq -sc --argjson config "$config" '{
        schemaVersion: 2, mediaType: "application/vnd.oci.image.manifest.v1+json", config: $config,
        layers: map(del(.diffID))}' |
        oci_blob application/vnd.oci.image.manifest.v1+json |
        jq -c --arg architecture "$architecture" '. + {platform: {architecture: $architecture, os: "linux"}}'
}

# oci_index IMAGE...: one image for several architectures.
oci_index() {
    printf '%s\n' "$@" | jq -sc '{
        schemaVersion: 2, mediaType: "application/vnd.oci.image.index.v1+json", manifests: .}' |
        oci_blob application/vnd.oci.image.index.v1+json
}

# oci_content DIGEST: prints a blob.
oci_content() { cat "$oci_layout/blobs/sha256/${1#sha256:}"; }

# oci_archive FILE IMAGE NAME...: writes the archive, with full names (docker.io/library/name:tag).
oci_archive() {
    local file=$1 image=$2 manifest
    shift 2
    echo '{"imageLayoutVersion":"1.0.0"}' >"$oci_layout/oci-layout"
    # `ctr` takes the name from the first annotation, tools of OCI take the tag from the second.
    jq -nc --argjson image "$image" '{
        schemaVersion: 2, mediaType: "application/vnd.oci.image.index.v1+json",
        manifests: ($ARGS.positional | map(. as $name | $image + {annotations: {
            "io.containerd.image.name": $name, "org.opencontainers.image.ref.name": sub(".*:"; "")}}))}' \
        --args "$@" >"$oci_layout/index.json"
    # For engines that do not know OCI layouts: the first architecture.
    manifest=$(oci_content "$(jq -r .digest <<<"$image")")
    if jq -e .manifests <<<"$manifest" >/dev/null; then
        manifest=$(oci_content "$(jq -r '.manifests[0].digest' <<<"$manifest")")
    fi
    jq -c 'def path: "blobs/sha256/" + (.digest | ltrimstr("sha256:"));
        [{Config: (.config | path), RepoTags: $ARGS.positional, Layers: (.layers | map(path))}]' \
        --args "$@" <<<"$manifest" >"$oci_layout/manifest.json"
    oci_tar "$oci_layout" --mode=u=rwX,go=rX blobs index.json manifest.json oci-layout >"$file.new"
    mv "$file.new" "$file"
}
