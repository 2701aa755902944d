// SPDX-License-Identifier: Apache-2.0
//! An error with its causes, in one line: each level says its own part only.

use std::error::Error;
use std::fmt;

/// Prints an error and all its causes in one line: `cannot open the set: permission denied`.
#[derive(Clone, Copy)]
pub struct ErrorChain<'a>(pub &'a dyn Error);

impl fmt::Display for ErrorChain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut said = self.0.to_string();
        f.write_str(&said)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            let text = error.to_string();
            // Some errors say what caused them themselves.
            if !said.ends_with(&text) {
                write!(f, ": {text}")?;
                said = text;
            }
            cause = error.source();
        }
        Ok(())
    }
}

impl fmt::Debug for ErrorChain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot apply the plan")]
    struct Outer(#[source] Middle);

    #[derive(Debug, thiserror::Error)]
    #[error("cannot open the set")]
    struct Middle(#[source] io::Error);

    #[test]
    fn an_error_is_printed_with_its_causes() {
        let cause = io::Error::from_raw_os_error(libc::EPERM);
        let expected = format!("cannot apply the plan: cannot open the set: {cause}");
        let error = Outer(Middle(cause));
        assert_eq!(ErrorChain(&error).to_string(), expected);
        assert_eq!(format!("{:?}", ErrorChain(&error)), expected);
    }

    #[derive(Debug, thiserror::Error)]
    #[error("cannot read the file: {0}")]
    struct Talkative(#[source] io::Error);

    #[test]
    fn a_cause_is_said_once() {
        let cause = io::Error::from_raw_os_error(libc::ENOENT);
        let expected = format!("cannot read the file: {cause}");
        assert_eq!(ErrorChain(&Talkative(cause)).to_string(), expected);
    }

    #[test]
    fn an_error_without_cause_is_itself() {
        assert_eq!(ErrorChain(&fmt::Error).to_string(), fmt::Error.to_string());
    }
}
