// SPDX-License-Identifier: Apache-2.0
//! What runs inside the guest: an agent that runs scripts for the test outside, and the two ends of
//! a TCP connection. The guest ends when the agent does, and the agent ends when its one connection
//! does, so no guest outlives its test.

#![expect(
    clippy::disallowed_methods,
    reason = "the agent is there to start programs"
)]

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::wait::pause;

/// The argument before the address to listen on.
pub const AGENT: &str = "--agent";
/// The argument before the address at which everything that comes in is sent back.
pub const ECHO: &str = "--echo";
/// The argument before the address to talk to, and the file that says how often an answer came.
pub const TALK: &str = "--talk";
/// The variable with the word that the agent wants to hear first: others can reach it, too, and its
/// files are the host's.
pub const TOKEN: &str = "KPR_AGENT_TOKEN";

/// Plays the part that the arguments name, if they name one.
pub fn play(arguments: &[String]) -> bool {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        [AGENT, address] => agent(address),
        [ECHO, address] => echo(address),
        [TALK, address, file] => talk(address, file),
        _ => return false,
    }
    true
}

fn agent(address: &str) {
    let token = std::env::var(TOKEN).expect("the test sets it");
    let listener = TcpListener::bind(address).unwrap();
    loop {
        let (stream, _) = listener.accept().unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        let mut requests = BufReader::new(stream.try_clone().unwrap()).lines();
        if !requests
            .next()
            .is_some_and(|line| line.is_ok_and(|line| line == token))
        {
            continue;
        }
        stream.set_read_timeout(None).unwrap();
        answer(requests.map_while(Result::ok), stream);
        return;
    }
}

/// Runs one script after the other, each a line of JSON.
fn answer(requests: impl Iterator<Item = String>, mut stream: TcpStream) {
    for request in requests {
        let script: String = serde_json::from_str(&request).unwrap();
        let output = Command::new("sh")
            .args(["-c", &script])
            .env_remove(TOKEN)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let answer: Value = json!({
            "code": output.status.code(),
            "stdout": String::from_utf8_lossy(&output.stdout),
            "stderr": String::from_utf8_lossy(&output.stderr),
        });
        if writeln!(stream, "{answer}").is_err() {
            return;
        }
    }
}

fn echo(address: &str) {
    let listener = TcpListener::bind(address).unwrap();
    for stream in listener.incoming() {
        let mut stream = stream.unwrap();
        thread::spawn(move || {
            let mut byte = [0];
            while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
        });
    }
}

/// Holds one connection for ever and counts the answers on it. When it breaks, the file says so.
fn talk(address: &str, file: &str) {
    let result = TcpStream::connect(address).and_then(|mut stream| {
        // Ends with a reset: IPVS remembers one that ends in good order for two minutes.
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
        // A packet that is lost for good must show.
        stream.set_read_timeout(Some(Duration::from_mins(1)))?;
        for count in 1_u64.. {
            let mut byte = [0];
            stream.write_all(b".")?;
            stream.read_exact(&mut byte)?;
            // In one step, so that nobody reads half of it.
            fs::write(format!("{file}.new"), count.to_string())?;
            fs::rename(format!("{file}.new"), file)?;
            pause();
        }
        Ok(())
    });
    fs::write(file, format!("{result:?}")).unwrap();
}
