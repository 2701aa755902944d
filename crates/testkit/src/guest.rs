// SPDX-License-Identifier: Apache-2.0
//! The guest kernel from outside: started, asked to run scripts, ended.

#![expect(
    clippy::disallowed_methods,
    reason = "the guest is a process of this machine"
)]

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::agent::{AGENT, TOKEN};
use crate::testbed::Testbed;
use crate::wait::{LIMIT, must};

const PORT: u16 = 7070;

/// What a script printed and how it ended.
#[derive(Debug)]
pub struct Answer {
    pub code: Option<i64>,
    pub stdout: String,
    pub stderr: String,
}

/// A guest that reaches the API server; it ends when this is dropped.
#[derive(Debug)]
pub struct Guest {
    process: Child,
    stream: TcpStream,
    answers: BufReader<TcpStream>,
    /// Its addresses in the network of the test bed.
    pub addresses: Vec<IpAddr>,
}

impl Guest {
    /// User-mode Linux.
    pub fn start(testbed: &Testbed) -> Self {
        Self::start_with(testbed, &[])
    }

    /// The same with further options of `hack/guest`.
    pub fn start_with(testbed: &Testbed, kernel: &[&str]) -> Self {
        let options = testbed.script("tap", &[]);
        let words: Vec<&str> = options.split_whitespace().collect();
        let addresses: Vec<IpAddr> = words
            .windows(2)
            .filter(|pair| pair[0] == "--addr")
            .map(|pair| pair[1].split('/').next().unwrap().parse().unwrap())
            .collect();
        let address = SocketAddr::new(addresses[0], PORT);
        let token = fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap();
        let mut process = Command::new(crate::repository().join("hack/guest"))
            .args(words)
            .args(kernel)
            // For all tests of a program; each has its own limits.
            .args(["--timeout", "7200"])
            .arg("--")
            .arg(std::env::current_exe().unwrap())
            .args([AGENT, &address.to_string()])
            .env(TOKEN, token.trim())
            .stdin(Stdio::null())
            .spawn()
            .expect("hack/guest starts");
        let mut stream = must("the guest is there", || {
            if let Some(status) = process.try_wait().unwrap() {
                panic!("the guest ended: {status}");
            }
            TcpStream::connect_timeout(&address, Duration::from_secs(1))
                .map_err(|error| error.to_string())
        });
        // Longer than any script may take.
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        write!(stream, "{token}").unwrap();
        let answers = BufReader::new(stream.try_clone().unwrap());
        Self {
            process,
            stream,
            answers,
            addresses,
        }
    }

    /// Runs a shell script inside.
    pub fn answer(&mut self, script: &str) -> Answer {
        writeln!(self.stream, "{}", Value::from(script)).unwrap();
        let mut line = String::new();
        self.answers
            .read_line(&mut line)
            .expect("the agent answers");
        let answer: Value = serde_json::from_str(&line).expect("the agent is there");
        let text = |name: &str| answer[name].as_str().unwrap().to_owned();
        Answer {
            code: answer["code"].as_i64(),
            stdout: text("stdout"),
            stderr: text("stderr"),
        }
    }

    /// Runs a shell script that must succeed, and returns what it prints.
    pub fn run(&mut self, script: &str) -> String {
        let answer = self.answer(script);
        assert_eq!(answer.code, Some(0), "{script}: {answer:?}");
        answer.stdout
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // The agent ends with its connection, and the guest with the agent.
        drop(self.stream.shutdown(std::net::Shutdown::Both));
        drop(self.process.wait());
    }
}
