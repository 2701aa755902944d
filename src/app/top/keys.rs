// SPDX-License-Identifier: Apache-2.0
//! The terminal while `top` runs: a screen of its own, and keys as they are pressed.

use std::io::Read as _;

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use tokio::sync::mpsc;

use crate::app::output::print;
use crate::app::screen::size;

/// The screen beside that of the shell, without a cursor.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";

/// A key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    Sign(char),
    Enter,
    Escape,
    Backspace,
    /// There will be no more: the terminal is gone.
    End,
}

/// A terminal that is given back as it was when this is dropped.
#[derive(Debug)]
pub(super) struct Terminal {
    before: Termios,
    keys: mpsc::Receiver<Key>,
}

impl Terminal {
    /// `None` if stdin or stdout is no terminal.
    pub(super) fn enter() -> Option<Self> {
        size()?;
        let before = tcgetattr(std::io::stdin()).ok()?;
        let mut raw = before.clone();
        // Ctrl-C stays a signal.
        raw.local_modes -= LocalModes::ICANON | LocalModes::ECHO;
        tcsetattr(std::io::stdin(), OptionalActions::Now, &raw).ok()?;
        let (sender, keys) = mpsc::channel(16);
        // Ends with the process: nothing else reads the terminal.
        std::thread::spawn(move || read_keys(&sender));
        let terminal = Self { before, keys };
        print(ENTER).ok()?;
        Some(terminal)
    }

    pub(super) async fn key(&mut self) -> Key {
        self.keys.recv().await.unwrap_or(Key::End)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing.
        drop(print(LEAVE));
        let restored = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.before);
        if let Err(error) = restored {
            tracing::debug!(%error, "cannot restore the terminal");
        }
    }
}

fn read_keys(sender: &mpsc::Sender<Key>) {
    let mut buffer = [0; 64];
    loop {
        let length = std::io::stdin().read(&mut buffer).unwrap_or(0);
        let read = buffer.get(..length).unwrap_or_default();
        if read.is_empty() {
            return;
        }
        for key in keys_of(read) {
            if sender.blocking_send(key).is_err() {
                return;
            }
        }
    }
}

/// What was pressed. Arrows and other keys that send sequences count for nothing.
fn keys_of(read: &[u8]) -> Vec<Key> {
    if read.len() > 1 && read.first() == Some(&0x1b) {
        return Vec::new();
    }
    let text = String::from_utf8_lossy(read);
    let keys = text.chars().filter_map(|sign| match sign {
        '\r' | '\n' => Some(Key::Enter),
        '\x1b' => Some(Key::Escape),
        '\x08' | '\x7f' => Some(Key::Backspace),
        // Ctrl-D.
        '\x04' => Some(Key::End),
        sign if sign.is_control() => None,
        sign => Some(Key::Sign(sign)),
    });
    keys.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_terminals_send_them() {
        assert_eq!(keys_of(b"q"), [Key::Sign('q')]);
        assert_eq!(
            keys_of(b"/a\n"),
            [Key::Sign('/'), Key::Sign('a'), Key::Enter]
        );
        assert_eq!(keys_of(b"\x1b"), [Key::Escape]);
        assert_eq!(keys_of(b"\x7f\x08"), [Key::Backspace, Key::Backspace]);
        assert_eq!(keys_of(b"\x1b[A"), []);
        assert_eq!(keys_of(b"\x01"), []);
        assert_eq!(keys_of(b"\x04"), [Key::End]);
    }
}
