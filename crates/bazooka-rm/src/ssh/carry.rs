//! `bazooka-rm ssh SOCKET USER`: sshd's forced command, which carries bytes between git and the daemon.
//!
//! The process ends with its user's connection. When the connection is lost, sshd closes the pipe of the output, so
//! that pipe is watched. The end of the input only means that git has sent its pack.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    os::{fd::AsFd, unix::net::UnixStream},
    process::ExitCode,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{Hello, Welcome};

/// The program's first argument in this role.
pub const NAME: &str = "ssh";

/// The number of bytes carried at a time.
const CHUNK: usize = 32 * 1024;

/// Carries bytes until git is done or the user has left.
pub fn run(mut args: impl Iterator<Item = std::ffi::OsString>) -> ExitCode {
    let (Some(socket), Some(user), None) = (args.next(), args.next(), args.next()) else {
        eprintln!("bazooka-rm: this is sshd's forced command, as `bazooka keys` sets it up");
        return ExitCode::FAILURE;
    };
    let command = std::env::var("SSH_ORIGINAL_COMMAND").unwrap_or_default();
    let user = user.to_string_lossy().into_owned();
    if command.is_empty() {
        eprintln!("hello {user}; there is no shell here: push and fetch with git");
        return ExitCode::FAILURE;
    }
    let hello = Hello { user, command, protocol: std::env::var("GIT_PROTOCOL").ok() };
    match carry(&socket, &hello) {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(words)) => {
            eprintln!("bazooka: {words}");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("bazooka: bazooka-rm doesn't answer ({error}); try again in a moment");
            ExitCode::FAILURE
        }
    }
}

fn carry(socket: &std::ffi::OsStr, hello: &Hello) -> io::Result<Option<String>> {
    let stream = UnixStream::connect(socket)?;
    let mut sending = stream.try_clone()?;
    frame(&mut sending, &serde_json::to_vec(hello)?)?;
    let mut receiving = BufReader::with_capacity(CHUNK, stream);
    let mut line = String::new();
    receiving.read_line(&mut line)?;
    match serde_json::from_str(&line)? {
        Welcome::No(words) => return Ok(Some(words)),
        Welcome::Go => {}
    }
    std::thread::spawn(move || {
        let mut input = io::stdin().lock();
        let mut chunk = vec![0; CHUNK];
        while let Ok(read @ 1..) = input.read(&mut chunk) {
            if frame(&mut sending, &chunk[..read]).is_err() {
                return;
            }
        }
        let _ = frame(&mut sending, &[]);
        // Kept open until the process ends, because the end of the connection tells the daemon that the user has left.
        std::mem::forget(sending);
    });
    std::thread::spawn(|| {
        let output = io::stdout();
        let mut watched = [PollFd::new(output.as_fd(), PollFlags::empty())];
        // poll reports an error or a hang-up without being asked for it.
        while poll(&mut watched, PollTimeout::NONE).is_ok_and(|ready| ready == 0) {}
        std::process::exit(1);
    });
    // Written directly: the standard library's buffer waits for the end of a line, which may not come.
    let mut output = std::fs::File::from(io::stdout().as_fd().try_clone_to_owned()?);
    // Copied in chunks as they come: `io::copy` would leave the copy to the kernel, which may wait for more bytes than
    // there are.
    let mut chunk = vec![0; CHUNK];
    loop {
        match receiving.read(&mut chunk)? {
            0 => return Ok(None),
            read => output.write_all(&chunk[..read])?,
        }
    }
}

/// Sends a frame: its length (four bytes, big-endian), then its bytes.
fn frame(stream: &mut UnixStream, bytes: &[u8]) -> io::Result<()> {
    let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    stream.write_all(&length.to_be_bytes())?;
    stream.write_all(bytes)
}
