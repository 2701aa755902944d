// SPDX-License-Identifier: Apache-2.0
//! Runs external programs: logs and counts them, and kills those that take too long.
//!
//! Only iptables needs it. In steady state no program is started, as [`Exec::started`] shows.

mod patience;

use std::cell::Cell;
use std::fmt;
use std::io::{self, BufRead as _, BufReader, Read, Write as _};
use std::iter;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender, SyncSender};
use std::time::Duration;

use tracing::{debug, trace};

use crate::clock::Clock;
use patience::{Patience, processor_time};

/// How a program ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// The exit status; `None` if a signal killed it.
    pub status: Option<i32>,
    pub stderr: Vec<u8>,
}

impl Ended {
    pub const fn succeeded(&self) -> bool {
        matches!(self.status, Some(0))
    }

    /// Standard error as text.
    pub fn stderr_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).trim().to_owned()
    }
}

/// How a program ended, and its standard output.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Output {
    pub ended: Ended,
    pub stdout: Vec<u8>,
}

/// A program could not be run. One that ran and failed is an [`Output`].
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    #[error("{program} is not installed")]
    Missing { program: String },
    #[error("cannot start {program}")]
    Start {
        program: String,
        #[source]
        source: io::Error,
    },
    #[error("lost contact with {program}")]
    Lost {
        program: String,
        #[source]
        source: io::Error,
    },
    #[error("{program} timed out after {} s and was killed", after.as_secs())]
    TimedOut { program: String, after: Duration },
    #[error("{program} was ended because the proxy ends")]
    Abandoned { program: String },
}

impl ExecError {
    /// Whether the program is not installed.
    pub const fn is_missing(&self) -> bool {
        matches!(self, Self::Missing { .. })
    }
}

/// The bytes of a piece of input or output, more or less: what a pipe holds.
pub const PIECE: usize = 64 * 1024;

/// Standard input in pieces, each made while the program reads the one before it.
pub type Input<'a> = &'a mut dyn Iterator<Item = Vec<u8>>;

/// Takes standard output in pieces of whole lines, as they arrive.
pub type Sink<'a> = &'a mut dyn FnMut(&[u8]);

/// Runs programs.
pub trait Exec: fmt::Debug + Send + Sync {
    /// Runs a program to its end. Neither input nor output is ever in memory as a whole. A program
    /// that exits without reading all of its input is no error: its status and standard error say
    /// why.
    fn stream(
        &self,
        program: &str,
        args: &[&str],
        stdin: Input<'_>,
        stdout: Sink<'_>,
    ) -> Result<Ended, ExecError>;

    /// Runs a program that reads and writes little.
    fn run(&self, program: &str, args: &[&str], stdin: &[u8]) -> Result<Output, ExecError> {
        let mut stdout = Vec::new();
        let mut input = iter::once(stdin.to_vec());
        let mut collect = |piece: &[u8]| stdout.extend_from_slice(piece);
        let ended = self.stream(program, args, &mut input, &mut collect)?;
        Ok(Output { ended, stdout })
    }

    /// How many programs have been started.
    fn started(&self) -> u64;

    /// Ends the programs that run, and starts no more: this process is about to end, and what it
    /// leaves behind would write after its successor.
    fn abandon(&self) {}
}

/// Runs programs on this machine.
#[derive(Debug)]
pub struct System {
    clock: Clock,
    deadline: Duration,
    started: AtomicU64,
    is_abandoned: AtomicBool,
}

/// The first and longest pause before a program that has closed its output is polled for its end.
/// Usually it ends at once, and every change waits for it.
const EXIT_POLL: Duration = Duration::from_micros(50);
const LONGEST_EXIT_POLL: Duration = Duration::from_millis(2);

/// How long a program may run on after [`Exec::abandon`].
const ABANDON_LOOK: Duration = Duration::from_millis(250);

impl System {
    /// A restore of 160,000 rules takes seconds, and iptables waits 5 s for its lock.
    pub const DEFAULT_DEADLINE: Duration = Duration::from_mins(1);

    /// Programs are killed when they have stood still for `deadline`, or used more processor time
    /// than that and what `Patience` allows for their input and output.
    pub const fn new(clock: Clock, deadline: Duration) -> Self {
        Self {
            clock,
            deadline,
            started: AtomicU64::new(0),
            is_abandoned: AtomicBool::new(false),
        }
    }

    fn check_abandoned(&self, program: &str) -> Result<(), ExecError> {
        if self.is_abandoned.load(Ordering::Relaxed) {
            let program = program.to_owned();
            return Err(ExecError::Abandoned { program });
        }
        Ok(())
    }

    /// Feeds and drains the child until it exits; `None` if that takes too long. Threads wait for
    /// its pipes, so that it can write while it does not read.
    fn attend(
        &self,
        child: &mut Child,
        stdin: Input<'_>,
        stdout: Sink<'_>,
    ) -> io::Result<Option<Finished>> {
        let mut patience = Patience::new(self.deadline, self.clock.monotonic());
        let stat = format!("/proc/{}/stat", child.id());
        let used = || processor_time(&std::fs::read_to_string(&stat).ok()?);
        let mut exit_poll = EXIT_POLL;
        // Bounded: a program that writes faster than we read waits. Our own sender stays, so that
        // waiting for events is a pause even when the other senders are gone.
        let (sender, events) = mpsc::sync_channel(AHEAD);
        let pipe = child.stdin.take();
        let mut pieces = pipe.map(|pipe| feed(pipe, sender.clone()));
        let mut is_writing = child.stdout.take().is_some_and(|pipe| {
            drain(pipe, sender.clone());
            true
        });
        let pipe = child.stderr.take();
        let mut stderr = pipe.is_none().then(Vec::new);
        if let Some(pipe) = pipe {
            drain_whole(pipe, sender.clone());
        }
        let (stdin_bytes, mut stdout_bytes) = (Cell::new(0), 0);
        let mut supply = || {
            let next = pieces.as_ref().and_then(|pieces| {
                let piece = stdin.next()?;
                let len = piece.len();
                pieces.send(piece).ok().map(|()| len)
            });
            match next {
                Some(len) => stdin_bytes.set(stdin_bytes.get() + len),
                // This closes the pipe.
                None => pieces = None,
            }
        };
        for _ in 0..AHEAD {
            supply();
        }
        loop {
            let now = self.clock.monotonic();
            if patience.is_over(now, stdin_bytes.get() + stdout_bytes, used) {
                return Ok(None);
            }
            let pause = match &mut stderr {
                Some(stderr) if !is_writing => {
                    if let Some(status) = child.try_wait()? {
                        return Ok(Some(Finished {
                            ended: Ended {
                                status: status.code(),
                                stderr: std::mem::take(stderr),
                            },
                            stdin_bytes: stdin_bytes.get(),
                            stdout_bytes,
                        }));
                    }
                    let pause = exit_poll;
                    exit_poll = (exit_poll * 2).min(LONGEST_EXIT_POLL);
                    pause
                }
                _ => patience.pause(now),
            };
            if self.is_abandoned.load(Ordering::Relaxed) {
                return Ok(None);
            }
            match events.recv_timeout(pause.min(ABANDON_LOOK)) {
                Ok(Event::Fed) => supply(),
                Ok(Event::Stdout(piece)) => {
                    let piece = piece?;
                    is_writing = !piece.is_empty();
                    stdout_bytes += piece.len();
                    if is_writing {
                        stdout(&piece);
                    }
                }
                Ok(Event::Stderr(bytes)) => stderr = Some(bytes?),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(io::ErrorKind::BrokenPipe.into()),
            }
        }
    }
}

/// Pieces of input made ahead: one that is being written, and the next.
const AHEAD: usize = 2;

struct Finished {
    ended: Ended,
    stdin_bytes: usize,
    stdout_bytes: usize,
}

enum Event {
    /// A piece of input was written.
    Fed,
    /// A piece of output; empty at its end.
    Stdout(io::Result<Vec<u8>>),
    /// All of standard error.
    Stderr(io::Result<Vec<u8>>),
}

/// Writes pieces as they are sent, until the sender is dropped or the pipe is closed.
fn feed(mut pipe: ChildStdin, events: SyncSender<Event>) -> Sender<Vec<u8>> {
    let (sender, pieces) = mpsc::channel::<Vec<u8>>();
    std::thread::spawn(move || {
        for piece in pieces {
            // A child that exits without reading everything says why in its status.
            if let Err(error) = pipe.write_all(&piece) {
                trace!(%error, "program did not read all of its input");
                return;
            }
            if events.send(Event::Fed).is_err() {
                return;
            }
        }
    });
    sender
}

fn drain(pipe: ChildStdout, events: SyncSender<Event>) {
    std::thread::spawn(move || {
        let mut pipe = BufReader::new(pipe);
        loop {
            let piece = lines(&mut pipe);
            let is_last = piece.as_ref().map_or(true, Vec::is_empty);
            // The receiver is gone once the child was given up.
            if events.send(Event::Stdout(piece)).is_err() {
                trace!("dropped output of a killed program");
                return;
            }
            if is_last {
                return;
            }
        }
    });
}

/// About [`PIECE`] bytes, up to the end of a line.
fn lines(pipe: &mut BufReader<ChildStdout>) -> io::Result<Vec<u8>> {
    let mut piece = Vec::new();
    let limit = u64::try_from(PIECE).unwrap_or(u64::MAX);
    pipe.by_ref().take(limit).read_to_end(&mut piece)?;
    pipe.read_until(b'\n', &mut piece)?;
    Ok(piece)
}

fn drain_whole(mut pipe: impl Read + Send + 'static, events: SyncSender<Event>) {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let result = pipe.read_to_end(&mut bytes).map(|_| bytes);
        if events.send(Event::Stderr(result)).is_err() {
            trace!("dropped standard error of a killed program");
        }
    });
}

impl Exec for System {
    fn stream(
        &self,
        program: &str,
        args: &[&str],
        stdin: Input<'_>,
        stdout: Sink<'_>,
    ) -> Result<Ended, ExecError> {
        self.check_abandoned(program)?;
        let start = self.clock.monotonic();
        #[expect(clippy::disallowed_methods, reason = "all programs are started here")]
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
        let finished = self.attend(&mut child, stdin, stdout);
        if !matches!(finished, Ok(Some(_))) {
            kill(&mut child, program);
            self.check_abandoned(program)?;
        }
        let finished = finished
            .map_err(|source| ExecError::Lost {
                program: program.to_owned(),
                source,
            })?
            .ok_or_else(|| ExecError::TimedOut {
                program: program.to_owned(),
                after: self.clock.monotonic().saturating_sub(start),
            })?;
        debug!(
            program,
            ?args,
            stdin_bytes = finished.stdin_bytes,
            stdout_bytes = finished.stdout_bytes,
            status = ?finished.ended.status,
            elapsed_ms = self.clock.monotonic().saturating_sub(start).as_millis(),
            "program exited"
        );
        Ok(finished.ended)
    }

    fn started(&self) -> u64 {
        self.started.load(Ordering::Relaxed)
    }

    fn abandon(&self) {
        self.is_abandoned.store(true, Ordering::Relaxed);
    }
}

/// Kills the child, but not its own children, and reaps it.
fn kill(child: &mut Child, program: &str) {
    let killed = child.kill().and_then(|()| child.wait().map(|_| ()));
    if let Err(error) = killed {
        debug!(program, %error, "cannot kill program");
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
                ended: Ended {
                    status: Some(3),
                    stderr: b"oops\n".to_vec()
                },
                stdout: b"hello".to_vec(),
            }
        );
        assert!(!output.ended.succeeded());
        assert_eq!(output.ended.stderr_text(), "oops");
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
        assert!(output.ended.succeeded());
    }

    #[test]
    fn a_missing_program_is_named() {
        let system = system();
        let error = system.run("kpr-no-such-program", &[], b"").unwrap_err();
        assert!(error.is_missing());
        assert_eq!(error.to_string(), "kpr-no-such-program is not installed");
        assert_eq!(system.started(), 0);
    }

    #[test]
    fn a_program_that_takes_too_long_is_killed() {
        let system = System::new(Clock::system(), Duration::from_millis(50));
        // Would run until the end of the tests.
        let error = system.run("sleep", &["1000"], b"").unwrap_err();
        assert!(matches!(error, ExecError::TimedOut { .. }), "{error:?}");
        assert_eq!(
            error.to_string(),
            "sleep timed out after 0 s and was killed"
        );
        // The same when it is busy all the time, or closes its output first.
        let error = system
            .run("sh", &["-c", "while :; do :; done"], b"")
            .unwrap_err();
        assert!(matches!(error, ExecError::TimedOut { .. }), "{error:?}");
        let error = system
            .run("sh", &["-c", "exec >&- 2>&-; exec sleep 1000"], b"")
            .unwrap_err();
        assert!(matches!(error, ExecError::TimedOut { .. }), "{error:?}");
    }

    #[test]
    fn a_signal_is_no_status() {
        let output = system().run("sh", &["-c", "kill -9 $$"], b"").unwrap();
        assert_eq!(output.ended.status, None);
    }

    /// Pieces of lines without an end.
    fn endless(made: &mut usize) -> impl Iterator<Item = Vec<u8>> {
        iter::from_fn(|| {
            *made += 1;
            Some(b"0123456789abcde\n".repeat(PIECE / 16))
        })
    }

    #[test]
    fn input_is_made_no_faster_than_it_is_read() {
        let mut made = 0;
        // It reads one piece, and waits for no other one to be made.
        let script = format!("head -c {PIECE} >/dev/null; echo enough >&2; exit 4");
        let ended = system().stream("sh", &["-c", &script], &mut endless(&mut made), &mut |_| {
            panic!("it writes nothing")
        });
        let ended = ended.unwrap();
        assert_eq!((ended.status, &*ended.stderr_text()), (Some(4), "enough"));
        // One read, one or two in the pipe and its buffer, two that wait.
        assert!(made <= 6, "{made} pieces made");
    }

    #[test]
    fn a_program_that_exits_early_says_why() {
        let mut made = 0;
        let script = "yes 'line 7 failed' | head -c 300000 >&2; exit 2";
        let ended = system().stream("sh", &["-c", script], &mut endless(&mut made), &mut |_| {
            panic!("it writes nothing")
        });
        let ended = ended.unwrap();
        assert_eq!(ended.status, Some(2));
        assert_eq!(ended.stderr.len(), 300_000);
        assert!(made <= 5, "{made} pieces made");
    }

    #[test]
    fn a_program_that_reads_for_ever_is_killed() {
        let system = System::new(Clock::system(), Duration::from_millis(50));
        let (mut read, mut fed) = (0, 0);
        let error = system
            .stream("cat", &[], &mut endless(&mut fed), &mut |piece| {
                read += piece.len();
            })
            .unwrap_err();
        assert!(matches!(error, ExecError::TimedOut { .. }), "{error:?}");
    }

    #[test]
    fn output_comes_in_whole_lines() {
        let line = "y".repeat(99) + "\n";
        let mut pieces = Vec::new();
        let ended = system().stream(
            "sh",
            &["-c", "yes $0 | head -n 5000; printf end", line.trim_end()],
            &mut iter::empty(),
            &mut |piece| pieces.push(String::from_utf8(piece.to_vec()).unwrap()),
        );
        assert!(ended.unwrap().succeeded());
        assert_eq!(pieces.concat(), line.repeat(5_000) + "end");
        let whole = pieces.as_slice();
        let (last, whole) = whole.split_last().unwrap();
        assert!(last.ends_with("\nend"), "{last}");
        assert!(!whole.is_empty());
        for piece in whole {
            assert!(
                piece.ends_with('\n') && piece.len() < PIECE + 100,
                "{}",
                piece.len()
            );
        }
    }
}
