#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Makes the certificates of the tests, valid for a hundred years. Needs OpenSSL 3.
set -euo pipefail
cd "$(dirname "$0")"
days=36500
curve=P-256
key() { openssl genpkey -quiet -algorithm EC -pkeyopt "ec_paramgen_curve:$curve" -out "$1.key"; }
authority() {
    key "$1"
    openssl req -x509 -new -key "$1.key" -out "$1.crt" -days $days -subj "/CN=$1" \
        -addext 'basicConstraints=critical,CA:TRUE'
}
# NAME AUTHORITY EXTENSIONS: a certificate of version 3, or of version 1 without extensions.
signed() {
    key "$1"
    openssl req -new -key "$1.key" -subj "/CN=$1" |
        openssl x509 -req -CA "$2.crt" -CAkey "$2.key" -days $days -out "$1.crt" \
            ${3:+-extfile <(printf '%b' "$3")} 2>/dev/null
}
names='subjectAltName=DNS:kubernetes,IP:127.0.0.1,IP:::1\n'
authority ca
authority other-ca
signed server ca "${names}extendedKeyUsage=serverAuth\n"
signed other-server other-ca "${names}extendedKeyUsage=serverAuth\n"
signed client ca 'extendedKeyUsage=clientAuth\n'
signed renewed-client ca 'extendedKeyUsage=clientAuth\n'
signed client-v1 ca
# The server is its own authority.
key own-authority
openssl req -x509 -new -key own-authority.key -out own-authority.crt -days $days \
    -subj /CN=own-authority -addext 'basicConstraints=critical,CA:TRUE' \
    -addext 'subjectAltName=IP:127.0.0.1'
# All on P-521, signed with each hash.
curve=P-521
authority p521-ca
for hash in sha256 sha384 sha512; do
    key "p521-$hash"
    openssl req -new -key "p521-$hash.key" -subj "/CN=p521-$hash" |
        openssl x509 -req "-$hash" -CA p521-ca.crt -CAkey p521-ca.key -days $days -out "p521-$hash.crt" \
            -extfile <(printf '%b' "${names}extendedKeyUsage=serverAuth\n") 2>/dev/null
done
rm ca.key other-ca.key p521-ca.key
