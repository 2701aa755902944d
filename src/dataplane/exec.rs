// SPDX-License-Identifier: Apache-2.0
//! The one door to external programs: logged, counted, ended when they take too long.
//!
//! Only iptables needs it. In steady state nothing passes here, which [`Exec::started`] lets tests and metrics
//! prove.

use std::fmt;
use std::io::{self, Read, Write as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::Duration;

use tracing::{debug, trace};

use crate::clock::Clock;

/// How a program ended and what it said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Output {
    /// The exit status; `None` if a signal ended it.
    pub status: Option<i32>,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

impl Output {
    pub const fn succeeded(&self) -> bool {
        matches!(self.status, Some(0))
    }

    /// Standard error as text for people.
    pub fn stderr_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).trim().to_owned()
    }
}

/// A program could not be run. That it ran and failed is an [`Output`].
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    #[error("program {program} is not installed")]
    Missing { program: String },
    #[error("cannot start program {program}")]
    Start {
        program: String,
        #[source]
        source: io::Error,
    },
    #[error("lost program {program} while it ran")]
    Lost {
        program: String,
        #[source]
        source: io::Error,
    },
    #[error("program {program} was ended after {} s without an end of its own", after.as_secs())]
    TimedOut { program: String, after: Duration },
}

impl ExecError {
    /// Whether the program is not there.
    pub const fn is_missing(&self) -> bool {
        matches!(self, Self::Missing { .. })
    }
}

/// Runs programs.
pub trait Exec: fmt::Debug + Send + Sync {
    /// Runs a program to its end, with `stdin` as its standard input.
    fn run(&self, program: &str, args: &[&str], stdin: &[u8]) -> Result<Output, ExecError>;

    /// How many programs were started so far.
    fn started(&self) -> u64;
}

/// Runs programs on this machine.
#[derive(Debug)]
pub struct System {
    clock: Clock,
    deadline: Duration,
    started: AtomicU64,
}

/// How long after the end of its output a program is asked whether it ended. Usually it has by the first time.
const EXIT_POLL: Duration = Duration::from_millis(2);

impl System {
    /// A restore of 160,000 rules takes seconds, and iptables waits 5 s for its lock.
    pub const DEFAULT_DEADLINE: Duration = Duration::from_mins(1);

    /// Programs are ended `deadline` after their start.
    pub const fn new(clock: Clock, deadline: Duration) -> Self {
        Self {
            clock,
            deadline,
            started: AtomicU64::new(0),
        }
    }

    fn wait(&self, child: &mut Child, pipes: &Pipes) -> Result<Option<Finished>, io::Error> {
        let start = self.clock.monotonic();
        let left = || {
            self.deadline
                .saturating_sub(self.clock.monotonic().saturating_sub(start))
        };
        let mut stdout = None;
        let mut stderr = None;
        while stdout.is_none() || stderr.is_none() {
            match pipes.0.recv_timeout(left()) {
                Ok((Pipe::Stdout, bytes)) => stdout = Some(bytes?),
                Ok((Pipe::Stderr, bytes)) => stderr = Some(bytes?),
                Err(RecvTimeoutError::Timeout) => return Ok(None),
                Err(RecvTimeoutError::Disconnected) => return Err(io::ErrorKind::BrokenPipe.into()),
            }
        }
        // A pause, as nothing is sent any more. The sender of `pause` is alive, so it is not cut short.
        let (_silent, pause) = mpsc::channel::<()>();
        loop {
            if let Some(status) = child.try_wait()? {
                let stdout = stdout.unwrap_or_default();
                let stderr = stderr.unwrap_or_default();
                return Ok(Some(Finished {
                    status,
                    stdout,
                    stderr,
                }));
            }
            if left().is_zero() {
                return Ok(None);
            }
            if pause.recv_timeout(EXIT_POLL) == Err(RecvTimeoutError::Disconnected) {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
        }
    }
}

struct Finished {
    status: ExitStatus,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

enum Pipe {
    Stdout,
    Stderr,
}

type FromPipe = (Pipe, io::Result<Vec<u8>>);

struct Pipes(Receiver<FromPipe>);

/// Feeds and drains the child on threads: a child that writes while we write would else block us both.
fn attend(child: &mut Child, stdin: &[u8]) -> Pipes {
    let (sender, receiver) = mpsc::channel();
    if let Some(mut pipe) = child.stdin.take() {
        let input = stdin.to_vec();
        std::thread::spawn(move || {
            // A child that ends without reading all says why in its status.
            if let Err(error) = pipe.write_all(&input) {
                trace!(%error, "program did not read all of its input");
            }
        });
    }
    if let Some(pipe) = child.stdout.take() {
        drain(pipe, Pipe::Stdout, sender.clone());
    }
    if let Some(pipe) = child.stderr.take() {
        drain(pipe, Pipe::Stderr, sender);
    }
    Pipes(receiver)
}

fn drain(mut pipe: impl Read + Send + 'static, which: Pipe, sender: Sender<FromPipe>) {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let result = pipe.read_to_end(&mut bytes).map(|_| bytes);
        // Nobody listens any more when the child was given up.
        if sender.send((which, result)).is_err() {
            trace!("output of an ended program dropped");
        }
    });
}

impl Exec for System {
    fn run(&self, program: &str, args: &[&str], stdin: &[u8]) -> Result<Output, ExecError> {
        let start = self.clock.monotonic();
        #[expect(clippy::disallowed_methods, reason = "this is the door")]
        let mut command = Command::new(program);
        let spawned = command
            .args(args)
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut child = spawned.map_err(|source| {
            let program = program.to_owned();
            if source.kind() == io::ErrorKind::NotFound {
                ExecError::Missing { program }
            } else {
                ExecError::Start { program, source }
            }
        })?;
        self.started.fetch_add(1, Ordering::Relaxed);
        let pipes = attend(&mut child, stdin);
        let finished = self.wait(&mut child, &pipes);
        if !matches!(finished, Ok(Some(_))) {
            end(&mut child, program);
        }
        let finished = finished
            .map_err(|source| ExecError::Lost {
                program: program.to_owned(),
                source,
            })?
            .ok_or_else(|| ExecError::TimedOut {
                program: program.to_owned(),
                after: self.deadline,
            })?;
        debug!(
            program,
            ?args,
            stdin_bytes = stdin.len(),
            stdout_bytes = finished.stdout.len(),
            status = ?finished.status.code(),
            elapsed_ms = self.clock.monotonic().saturating_sub(start).as_millis(),
            "program ended"
        );
        Ok(Output {
            status: finished.status.code(),
            stdout: finished.stdout,
            stderr: finished.stderr,
        })
    }

    fn started(&self) -> u64 {
        self.started.load(Ordering::Relaxed)
    }
}

/// Kills the child, this one only, and collects it.
fn end(child: &mut Child, program: &str) {
    let ended = child.kill().and_then(|()| child.wait().map(|_| ()));
    if let Err(error) = ended {
        debug!(program, %error, "cannot end program");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn system() -> System {
        System::new(Clock::system(), System::DEFAULT_DEADLINE)
    }

    #[test]
    fn input_output_and_status_are_passed_through() {
        let system = system();
        let output = system
            .run("sh", &["-c", "cat; echo oops >&2; exit 3"], b"hello")
            .unwrap();
        assert_eq!(
            output,
            Output {
                status: Some(3),
                stdout: b"hello".to_vec(),
                stderr: b"oops\n".to_vec()
            }
        );
        assert!(!output.succeeded());
        assert_eq!(output.stderr_text(), "oops");
        assert_eq!(system.started(), 1);
    }

    #[test]
    fn more_than_a_pipe_holds_flows_both_ways() {
        let input = vec![b'x'; 1 << 20];
        let output = system().run("cat", &[], &input).unwrap();
        assert_eq!(output.stdout, input);
    }

    #[test]
    fn a_program_that_does_not_read_its_input_is_no_error() {
        let output = system().run("true", &[], &vec![b'x'; 1 << 20]).unwrap();
        assert!(output.succeeded());
    }

    #[test]
    fn a_missing_program_is_named() {
        let system = system();
        let error = system.run("kpr-no-such-program", &[], b"").unwrap_err();
        assert!(error.is_missing());
        assert_eq!(
            error.to_string(),
            "program kpr-no-such-program is not installed"
        );
        assert_eq!(system.started(), 0);
    }

    #[test]
    fn a_program_that_takes_too_long_is_ended() {
        let system = System::new(Clock::system(), Duration::from_millis(50));
        // Would run until the end of the tests.
        let error = system.run("sleep", &["1000"], b"").unwrap_err();
        assert!(matches!(error, ExecError::TimedOut { .. }), "{error:?}");
        // The same when it closes its output first.
        let error = system
            .run("sh", &["-c", "exec >&- 2>&-; exec sleep 1000"], b"")
            .unwrap_err();
        assert!(matches!(error, ExecError::TimedOut { .. }), "{error:?}");
    }

    #[test]
    fn a_signal_is_no_status() {
        let output = system().run("sh", &["-c", "kill -9 $$"], b"").unwrap();
        assert_eq!(output.status, None);
    }
}
