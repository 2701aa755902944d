// SPDX-License-Identifier: Apache-2.0
//! Reads `tests/wire/ipvs.txt`, which `tests/wire/capture-ipvs.sh` recorded.

/// A command of `ipvsadm` with what it sent and got, from `struct genlmsghdr` on.
pub(super) struct Capture {
    pub(super) command: &'static str,
    /// Flags of `struct nlmsghdr` as strace writes them, and the bytes.
    pub(super) requests: Vec<(&'static str, Vec<u8>)>,
    pub(super) replies: Vec<Vec<u8>>,
}

pub(super) fn all() -> Vec<Capture> {
    let mut captures: Vec<Capture> = Vec::new();
    for line in include_str!("../wire/ipvs.txt").lines() {
        let fields: Vec<&'static str> = line.splitn(2, ' ').collect();
        match fields[..] {
            ["#", command] => {
                captures.push(Capture {
                    command,
                    requests: vec![],
                    replies: vec![],
                });
            }
            [">", request] => {
                let (flags, hex) = request.split_once(' ').unwrap();
                captures
                    .last_mut()
                    .unwrap()
                    .requests
                    .push((flags, bytes(hex)));
            }
            ["<", hex] => captures.last_mut().unwrap().replies.push(bytes(hex)),
            _ => panic!("not a line of a capture: {line}"),
        }
    }
    captures
}

/// The last request of a command, which is the one that does what it says.
pub(super) fn request(command: &str) -> Vec<u8> {
    let capture = all().into_iter().find(|capture| capture.command == command);
    let (_, bytes) = capture
        .unwrap_or_else(|| panic!("not captured: {command}"))
        .requests
        .pop()
        .unwrap();
    bytes
}

/// The messages that answered a command.
pub(super) fn replies(command: &str) -> Vec<Vec<u8>> {
    all()
        .into_iter()
        .find(|capture| capture.command == command)
        .unwrap()
        .replies
}

fn bytes(hex: &str) -> Vec<u8> {
    hex.as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}
